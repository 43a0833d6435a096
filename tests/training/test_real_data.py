"""Real COCO and Flickr8k images, where they lie beside the checkout."""

import json
import re
from pathlib import Path

import pytest
from support.shards import run_shards
from support.training import train


def losses(stdout: str) -> list[float]:
    return [float(value) for value in re.findall(r"loss ([\d.]+)", stdout)]


def test_coco_builds_verifies_and_trains_the_article_s_model(
    real_data: Path, tmp_path: Path
) -> None:
    coco = real_data / "coco-mini"
    annotations = coco / "annotations"
    tokenizer = tmp_path / "tokenizer.json"
    done = run_shards("tokenizer", "--annotations", annotations / "captions_train2017.json",
                      "--out", tokenizer, "--min-count", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for split, count in (("train", 80), ("val", 79)):
        out = tmp_path / split
        done = run_shards(
            "build", "--images", coco / f"{split}2017",
            "--annotations", annotations / f"captions_{split}2017.json", "--tokenizer", tokenizer,
            "--out", out, "--name", split, "--samples-per-shard", 30, "--workers", 2, "--json",
            "--max-unk", 0.2,  # of a vocabulary from 400 captions
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["images_packed"], summary["rejected"]) == (count, {})
        assert json.loads(run_shards("verify", out, "--json").stdout)["faults"] == []
    done = train(
        2, "--config", "configs/coco_densenet_lstm.yaml", "--model.encoder.name", "densenet121",
        "--data.image_size", 64, "--model.dim", 1024, "--model.encoder.hidden_dim", 1024,
        "--model.decoder.hidden_dim", 1024, "--data.train", tmp_path / "train",
        "--run_dir", tmp_path / "run", "--train.steps", 8, "--monitor.log_every", 1,
        "--data.global_batch_size", 8, "--optim.lr_batch_size", 8,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "precision fp32 (bf16 is for GPUs)" in done.stdout
    shown = losses(done.stdout)
    assert shown[-1] < 0.9 * shown[0]


def test_flickr8k_builds_in_one_command(real_data: Path, tmp_path: Path) -> None:
    flickr = real_data / "flickr8k"
    annotations = flickr / "annotations" / "captions_val.json"
    tokenizer = tmp_path / "tokenizer.json"
    assert run_shards("tokenizer", "--annotations", flickr / "annotations" / "captions_train.json",
                      "--out", tokenizer).returncode == 0  # fmt: skip
    done = run_shards(
        "build", "--images", flickr / "images" / "val", "--annotations", annotations,
        "--tokenizer", tokenizer, "--out", tmp_path / "val", "--name", "val", "--workers", 2,
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["images_packed"], summary["captions"]) == (1000, 5000)


@pytest.mark.slow
def test_flickr8k_trains_and_captions_its_validation_split(real_data: Path, tmp_path: Path) -> None:
    """All 6,000 images, 50 steps on two processes, a small encoder at a small size."""
    flickr = real_data / "flickr8k"
    tokenizer = tmp_path / "tokenizer.json"
    assert run_shards("tokenizer", "--annotations", flickr / "annotations" / "captions_train.json",
                      "--out", tokenizer).returncode == 0  # fmt: skip
    for split, count in (("train", 6000), ("val", 1000)):
        done = run_shards(
            "build", "--images", flickr / "images" / split, "--name", split, "--json",
            "--annotations", flickr / "annotations" / f"captions_{split}.json",
            "--tokenizer", tokenizer, "--out", tmp_path / split, "--workers", 2,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images_packed"] == count
    done = train(
        2, "--data.train", tmp_path / "train", "--data.val", tmp_path / "val",
        "--run_dir", tmp_path / "run", "--train.steps", 50, "--monitor.log_every", 10,
        "--model.encoder.name", "shufflenet_v2_x1_0", "--data.image_size", 64,
        "--model.dim", 256, "--model.encoder.hidden_dim", 256, "--model.decoder.hidden_dim", 256,
        "--data.global_batch_size", 48, "--data.workers", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = losses(done.stdout)
    assert shown[-1] < shown[0]
    assert "CIDEr" in done.stdout
