"""Stored features: made once, byte for byte, and as good as the images.

All runs in this process, except where one is killed: a start of a process costs seconds.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from support.checkpoints import draw_weights
from support.in_process import prepare_here, run_here, train_here
from support.repository import ONE_THREAD, ROOT
from support.shard_server import serving
from support.shards import Scenes, digests, run_shards
from support.training import read_sample_log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import caption, evaluate
from pipeline import features as features_command
from pipeline.checkpoint.best import load_scores
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.config.data import DataConfig
from pipeline.data.dataset import TrainDataset
from pipeline.data.reader import ShardFolder
from pipeline.data.views import make_views
from shards.format.features import unpack_features
from shards.format.manifest import read_manifest, write_manifest
from shards.show import show
from shards.storage import location
from shards.verify import verify

LAUNCH = ["-m", "launch", "--config_file", "launch/cpu.yaml", "--num_processes"]
BACKBONE = "shufflenet_v2_x0_5"
FLOAT32 = ("--dtype", "float32")
NO_WEIGHTS = ("--model.encoder.weights", "null", "--model.encoder.tune", "all")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started here: sums in other parts would round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose statistics fit its weights, so that its features are neither 0 nor huge."""
    return save_backbone(tmp_path_factory.mktemp("weights") / "backbone.safetensors")


def save_backbone(path: Path, name: str = BACKBONE, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = torchvision.models.get_model(name, weights=None).train()
    with torch.no_grad():
        for _ in range(30):
            network(torch.rand(4, 3, 64, 64) * 4 - 2)
    save_file(network.state_dict(), path)
    return path


def model_settings(weights: Path, kind: str = "soft_attention") -> list[object]:
    settings = {
        "model.encoder.name": BACKBONE, "model.encoder.weights": weights,
        "model.encoder.tune": "none", "model.decoder.kind": kind, "model.decoder.attention_dim": 8,
        "data.image_size": 64,
    }  # fmt: skip
    return [part for key, value in settings.items() for part in (f"--{key}", value)]


def options_of(shards: object, weights: Path, out: object, *options: object) -> list[object]:
    """Of the features command; options given here replace the usual ones.

    Without workers it stays in one process, which is quicker.
    """
    flags = [option for option in options if option in ("--flip", "--json")]
    usual = ("--shards", shards, "--out", out, "--batch_size", 4, "--workers", 0)
    pairs = [*usual, *model_settings(weights), *(o for o in options if o not in flags)]
    latest = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return [*(part for pair in latest.items() for part in pair), *flags]


def make(shards: object, weights: Path, out: object, *options: object) -> int:
    return run_here(features_command.main, *options_of(shards, weights, out, *options))


def start(*arguments: object, processes: int = 1) -> subprocess.Popen[bytes]:
    """The features command in processes of its own, which are one group."""
    launched = [*LAUNCH, processes] if processes > 1 else []
    command = [sys.executable, *launched, "-m", "pipeline.features", *options_of(*arguments)]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def features(scenes: Scenes, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float32 features of the training images."""
    out = tmp_path_factory.mktemp("features") / "train"
    assert make(scenes.train, weights, out, *FLOAT32) == 0
    return out


# ---------------------------------------------------------------------------------------- making


def test_what_the_command_prints(
    scenes: Scenes, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(scenes.val, weights, tmp_path / "a") == 0
    printed = capsys.readouterr().out
    # Two positions a side, 32 pixels each, and 1,024 channels.
    assert f"grid features of {BACKBONE} at 64 pixels; 1 view an image, each 4 x 1024" in printed
    assert "float16; 7 images, " in printed
    assert make(scenes.val, weights, tmp_path / "b", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    manifest = read_manifest(tmp_path / "b")
    assert (result["images"], result["digest"]) == (7, manifest.digest)
    assert result["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").glob("*.tar"))


def test_two_processes_make_the_same_bytes(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need not run at the same time; the one that finishes last writes the manifest."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, num_tars in ((1, 3), (0, 7)):
        monkeypatch.setenv("RANK", str(rank))
        assert make(scenes.train, weights, tmp_path, *FLOAT32) == 0
        assert len(list(tmp_path.glob("*.tar"))) == num_tars
        assert (tmp_path / "manifest.json").exists() == (rank == 0)
    assert digests(tmp_path) == digests(features)


def kill_and_finish(
    source: Path, weights: Path, out: Path, num_done: int, processes: int
) -> dict[str, int]:
    """Kill all processes once so many shards are done. Returns what is done and when it was."""
    killed = start(source, weights, out, *FLOAT32, "--workers", 1, processes=processes)
    while len(list(out.glob("train-*.json"))) < num_done:
        assert killed.poll() is None
        time.sleep(0.001)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(0.1 * processes)  # until the others are gone as well
    assert not (out / "manifest.json").exists()
    return {path.name: path.stat().st_mtime_ns for path in out.glob("train-*.json")}


@pytest.mark.parametrize("num_done", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_after_a_kill_it_finishes_with_the_same_bytes(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path, num_done: int
) -> None:
    before = kill_and_finish(scenes.train, weights, tmp_path, num_done, processes=1)
    assert make(scenes.train, weights, tmp_path, *FLOAT32) == 0
    assert digests(tmp_path) == digests(features)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}  # not again


@pytest.mark.slow
@pytest.mark.parametrize("num_done", [1, 3])
def test_after_a_kill_of_two_processes_two_finish_with_the_same_bytes(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path, num_done: int
) -> None:
    before = kill_and_finish(scenes.train, weights, tmp_path, num_done, processes=2)
    again = start(scenes.train, weights, tmp_path, *FLOAT32, "--workers", 1, processes=2)
    assert again.wait() == 0
    assert digests(tmp_path) == digests(features)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}


def test_only_what_is_missing_is_made_again(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path
) -> None:
    """What a kill between two files leaves behind, and a tar that was cut short."""
    out = Path(shutil.copytree(features, tmp_path / "out"))
    (out / "train-000001.json").unlink()
    (out / "train-000003.json").unlink()
    (out / "train-000003.tar").unlink()
    os.truncate(out / "train-000005.tar", 1000)
    (out / ".train-000003.tar.host-1.tmp").write_bytes(b"half a tar")
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*.tar")}
    assert make(scenes.train, weights, out, *FLOAT32) == 0
    assert digests(out) == digests(features)
    again = {name for name, ns in stamps.items() if (out / name).stat().st_mtime_ns != ns}
    assert again == {"train-000001.tar", "train-000005.tar"}


def test_views_are_keyed_crops_and_every_second_one_is_mirrored(
    scenes: Scenes, weights: Path, tmp_path: Path
) -> None:
    assert make(scenes.val, weights, tmp_path / "one", *FLOAT32) == 0
    options = (*FLOAT32, "--views", 3, "--flip", "--data.min_crop", 0.6)
    assert make(scenes.val, weights, tmp_path / "three", *options) == 0
    images, one, three = map(ShardFolder, (scenes.val, tmp_path / "one", tmp_path / "three"))
    policy = three.features
    assert one.features
    assert policy
    encoder = prepare_here(
        "--data.train", scenes.train, "--run_dir", tmp_path / "run", *model_settings(weights)
    ).captioner.encoder.eval()
    for sample in range(len(images)):
        key, image, meta = images.read(sample)
        pixels, unflipped = (np.empty((3, 64, 64, 3), np.uint8) for _ in range(2))
        make_views(image, key, policy, pixels)
        make_views(image, key, replace(policy, flip=False), unflipped)
        assert np.array_equal(pixels[::2], unflipped[::2])
        assert np.array_equal(pixels[1], unflipped[1, :, ::-1])
        assert not np.array_equal(pixels[2], unflipped[1])
        stored_key, data, stored_meta = three.read(sample)
        assert (stored_key, stored_meta) == (key, meta)
        stored = unpack_features(data, policy)
        with torch.no_grad():
            expected = encoder.features(torch.from_numpy(pixels)).numpy()
        assert stored == pytest.approx(expected, abs=1e-5)
        center = unpack_features(one.read(sample)[1], one.features)[0]
        assert stored[0] == pytest.approx(center, abs=1e-5)
    dataset = TrainDataset(three, DataConfig(train="", captions_per_image=5), seed=0)
    chosen = set()
    for epoch in range(9):
        row = dataset[np.array([[epoch, 6]])].images[0].numpy()
        matching = [np.array_equal(row, view) for view in stored]
        assert sum(matching) == 1
        chosen.add(matching.index(True))
    assert chosen == {0, 1, 2}


def test_tars_that_were_indexed_in_place_are_encoded_too(
    scenes: Scenes, weights: Path, tmp_path: Path
) -> None:
    tars, out = tmp_path / "Their Tars", tmp_path / "out"
    tars.mkdir()
    shutil.copyfile(scenes.val / "val-000000.tar", tars / "Part 1.tar")
    done = run_shards("index", tars, "--tokenizer", scenes.tokenizer)
    assert done.returncode == 0, done.stderr
    assert make(tars, weights, out) == 0
    assert faults(out) == []
    assert f"{len(ShardFolder(tars))} images" in show(out, 1)
    theirs, ours = ShardFolder(tars), ShardFolder(out)
    assert ours.manifest.order_digest == theirs.manifest.digest
    for sample in range(len(theirs)):
        key, _, meta = theirs.read(sample)
        assert ours.read(sample)[::2] == (key, meta)


# -------------------------------------------------------------------------------- show and verify


def test_show_says_what_a_folder_of_features_holds(features: Path, tmp_path: Path) -> None:
    text = show(features, 1)
    headline, encoder, _, sample, caption_line = text.splitlines()[:5]
    assert "train, 63 images with 315 captions in 7 shards" in headline
    assert f"grid features of {BACKBONE} at 64 pixels; 1 view an image, each 4 x 1024" in encoder
    shards = ShardFolder(features)
    key, data, meta = shards.read(0)
    assert shards.features
    highest = unpack_features(data, shards.features).max()
    assert sample.startswith(f"{key}  1 x 4 x 1024 float32, mean ")
    assert f"highest {highest:.3g}, 16.1 KiB, from {meta['file_name']}" in sample
    assert caption_line.strip() == meta["captions"][0]
    page = tmp_path / "page.html"
    done = run_shards("show", features, "--limit", 2, "--html", page)
    assert done.returncode == 0, done.stderr
    assert page.read_text().count("<article><div>") == 2
    assert "<img" not in page.read_text()


def faults(folder: Path) -> list[str]:
    return [fault for _, found in verify(folder) for fault in found]


def test_verify_finds_every_damaged_byte(features: Path, tmp_path: Path) -> None:
    assert faults(features) == []
    folder = Path(shutil.copytree(features, tmp_path / "spoiled"))
    tar = folder / "train-000002.tar"
    whole = tar.read_bytes()
    index = ShardFolder(features).index
    first = int(index.shard_starts[2])
    array, meta = int(index.image_offset[first]), int(index.meta_offset[first])
    end = array + int(index.image_size[first])
    for place in (0, array, array + 128, end - 1, end, meta, len(whole) - 1):
        spoiled = bytearray(whole)
        spoiled[place] ^= 1
        tar.write_bytes(spoiled)
        found = faults(folder)
        assert f"{tar.name}: its sha256 differs from its sidecar" in found, place
        named = f"{tar.name}: {index.key(first)}.npy: its crc32 differs from the sidecar"
        assert (named in found) == (array <= place < end), place
    done = run_shards("verify", folder)
    assert done.returncode == 1
    assert "run the same python -m pipeline.features again" in done.stdout


def test_verify_finds_an_array_that_is_not_what_the_manifest_says(
    features: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(features, tmp_path / "other"))
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace("1024", "512"))
    found = faults(folder)
    differs = ".npy: features (1, 4, 1024) float32, not (1, 4, 512) float32"
    assert len([line for line in found if line.endswith(differs)]) == 63


# ------------------------------------------------------------------------------------------- URLs


@pytest.mark.usefixtures("remote_extra")
def test_they_are_made_from_a_url_to_a_url_and_trained_on_behind_one(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path
) -> None:
    url = f"memory://{tmp_path.name}/features"
    with serving(scenes.train) as server:
        options = (*FLOAT32, "--cache_dir", tmp_path / "cache")
        assert make(server.url, weights, url, *options) == 0
    out = location(url)
    fetched = tmp_path / "fetched"
    out.fs.get(str(out), str(fetched), recursive=True)
    assert digests(fetched) == digests(features)
    assert faults(out) == []
    assert show(out, 1).splitlines()[1:] == show(features, 1).splitlines()[1:]
    out.fs.rm(f"{out}/train-000004.json")  # what is uploaded already is not made again
    before = out.fs.created(f"{out}/train-000003.tar")
    assert make(scenes.train, weights, url, *FLOAT32) == 0
    assert (out / "train-000004.json").read_bytes() == (features / "train-000004.json").read_bytes()
    assert out.fs.created(f"{out}/train-000003.tar") == before
    with serving(features) as server:
        afar = run_training(
            tmp_path / "afar", server.url, weights, 3, "--data.cache_dir", tmp_path / "cache",
            "--data.shuffle_block", 1,
        )  # fmt: skip
    near = run_training(tmp_path / "near", features, weights, 3, "--data.shuffle_block", 1)
    assert losses(afar) == losses(near)


@pytest.fixture
def remote_extra() -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (the extra `remote`)")
    pytest.importorskip("aiohttp", reason="aiohttp is not installed (the extra `remote`)")


# --------------------------------------------------------------------------------------- training


def losses(run: Path) -> list[float]:
    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [point.value for point in log.Scalars("train/loss")]


def run_training(
    folder: Path, shards: object, weights: Path, steps: int, *settings: object,
    kind: str = "soft_attention",
) -> Path:  # fmt: skip
    train_here(
        "--data.train", shards, "--run_dir", folder, "--train.steps", steps, "--train.epochs", 20,
        "--monitor.log_every", 1, "--monitor.sample_log", folder / "log", "--data.crop", "center",
        *model_settings(weights, kind), *settings,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("soft_attention", 15),  # two epochs
        pytest.param("soft_attention", 50, marks=pytest.mark.slow),
        pytest.param("lstm", 50, marks=pytest.mark.slow),  # on pooled features
    ],
)
def test_training_on_them_is_training_on_the_images(
    scenes: Scenes, weights: Path, tmp_path: Path, kind: str, steps: int
) -> None:
    """The same samples, the same losses to rounding, and the same scores; dropout on."""
    runs = {}
    for name, options in (("images", None), ("float32", FLOAT32), ("float16", ())):
        shards = {"train": scenes.train, "val": scenes.val}
        for split, source in shards.items() if options is not None else ():
            out = tmp_path / name / split
            shards = {**shards, split: out}
            assert make(source, weights, out, *options, "--model.decoder.kind", kind) == 0
        runs[name] = run_training(
            tmp_path / f"on-{name}", shards["train"], weights, steps, "--data.val", shards["val"],
            "--train.eval_every_epochs", 1, kind=kind,
        )  # fmt: skip
    found = {name: losses(run) for name, run in runs.items()}
    assert len(found["images"]) == steps
    assert found["float32"] == pytest.approx(found["images"], rel=1e-6)
    assert found["float16"] == pytest.approx(found["images"], rel=0.01)
    assert found["float16"] != found["images"]
    logs = [read_sample_log(run / "log") for run in runs.values()]
    assert logs[0] == logs[1] == logs[2]
    scores = [load_scores(run / "checkpoints", steps).by_step for run in runs.values()]
    assert scores[0]
    assert scores[1] == scores[0]


def test_a_stopped_training_on_them_continues(
    features: Path, weights: Path, tmp_path: Path
) -> None:
    """The checkpoint brings the backbone's weights, to which the features must fit."""
    often = ("--train.checkpoint_minutes", 1e-6, "--train.keep", 9)
    whole = run_training(tmp_path / "whole", features, weights, 4, *often)
    stopped = Path("checkpoints") / "step-00000002"
    shutil.copytree(whole / stopped, tmp_path / "continued" / stopped)
    continued = run_training(tmp_path / "continued", features, weights, 4, *often)
    logs = [read_sample_log(run / "log") for run in (whole, continued)]
    assert logs[1] == {step: ids for step, ids in logs[0].items() if step >= 2}
    ends = [list(list_checkpoints(run / "checkpoints"))[-1] for run in (whole, continued)]
    states = [load_file(end / "model.safetensors") for end in ends]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# ------------------------------------------------------------------------ evaluating, captioning


@pytest.fixture(scope="module")
def checkpoint(features: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on features; its captions differ from image to image."""
    run = run_training(tmp_path_factory.mktemp("run") / "run", features, weights, 2)
    newest = list(list_checkpoints(run / "checkpoints"))[-1]
    draw_weights(newest, scale=0.3)
    return newest


def captions_of(checkpoint: Path, shards: Path, out: Path, *options: object) -> dict[int, str]:
    arguments = ("--checkpoint", checkpoint, "--shards", shards, "--out", out, "--workers", 0)
    assert run_here(evaluate.main, *arguments, *options) == 0
    return {row["image_id"]: row["caption"] for row in json.loads(out.read_text())}


def test_a_checkpoint_from_features_captions_images(
    scenes: Scenes, weights: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """The checkpoint brings the backbone; features, shards and files get the same captions."""
    elsewhere = weights.rename(weights.with_name("moved.safetensors"))
    try:
        val = tmp_path / "val"
        given = ("--checkpoint", checkpoint, "--shards", scenes.val, "--out", val, "--workers", 0)
        assert run_here(features_command.main, *given, *FLOAT32) == 0
        sampled = ("--method", "sample", "--seed", 3)
        for options in ((), sampled):
            on_images = captions_of(checkpoint, scenes.val, tmp_path / "images.json", *options)
            assert captions_of(checkpoint, val, tmp_path / "features.json", *options) == on_images
            assert len(set(on_images.values())) > 2, "too much alike to show anything"
        photos = tmp_path / "photos"
        photos.mkdir()
        shards = ShardFolder(scenes.val)
        for key, image, _ in map(shards.read, range(7)):
            (photos / f"{key}.jpg").write_bytes(image)
        out = tmp_path / "captions.json"
        assert run_here(caption.main, "--checkpoint", checkpoint, photos, "--out", out) == 0
        greedy = captions_of(checkpoint, val, tmp_path / "features.json")
        rows = json.loads(out.read_text())
        assert {row["image_id"]: row["caption"] for row in rows} == greedy
    finally:
        elsewhere.rename(weights)


def test_a_tuned_backbone_is_evaluated_on_its_own_features_only(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = run_training(
        tmp_path / "run", scenes.train, weights, 1, "--model.encoder.tune", "conv5",
        "--optim.lr", 0.1,
    )  # fmt: skip
    tuned = list(list_checkpoints(run / "checkpoints"))[-1]
    given = ("--checkpoint", tuned, "--shards", scenes.val, "--out", tmp_path / "val")
    assert run_here(features_command.main, *given, *FLOAT32, "--workers", 0) == 0
    on_images = captions_of(tuned, scenes.val, tmp_path / "images.json")
    assert captions_of(tuned, tmp_path / "val", tmp_path / "features.json") == on_images
    capsys.readouterr()
    arguments = ("--checkpoint", tuned, "--shards", features, "--out", tmp_path / "x.json")
    assert run_here(evaluate.main, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{features}: its features were made with other weights of {BACKBONE}" in line
    assert f"than those of {tuned}" in line
    assert "make the features again with `python -m pipeline.features`" in line


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("--model.encoder.tune", "all"),
            "holds features of a frozen backbone, but this run trains the backbone; set "
            "model.encoder.tune to `none`, or use the shards of images",
        ),
        (
            ("--data.image_size", 96),
            "made with image_size 64, but this run has 96; change data.image_size, or make",
        ),
        (
            ("--model.decoder.kind", "lstm"),
            "made with output grid, but this run has pooled; change model.decoder.kind, or make",
        ),
        (
            ("--model.encoder.grid", 1),
            "made with shape (4, 1024), but this run has (1, 1024); change model.encoder.grid",
        ),
    ],
)
def test_training_that_does_not_fit_is_refused(
    weights: Path, features: Path, tmp_path: Path, settings: tuple[object, ...], message: str
) -> None:
    refused(features, tmp_path, message, *model_settings(weights), *settings)


def refused(features: Path, folder: Path, message: str, *settings: object) -> None:
    with pytest.raises(ValueError, match="features") as error:
        prepare_here("--data.train", features, "--run_dir", folder / "run", *settings)
    assert str(error.value).startswith(f"{features}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_another_backbone_and_other_weights_are_refused(
    weights: Path, features: Path, tmp_path: Path
) -> None:
    other = save_backbone(tmp_path / "other.safetensors", seed=1)
    message = f"made with other weights of {BACKBONE} than those of this run; change"
    refused(features, tmp_path, message, *model_settings(other))
    name = "shufflenet_v2_x1_0"
    larger = save_backbone(tmp_path / "larger.safetensors", name)
    message = f"made with encoder {BACKBONE}, but this run has {name}; change model.encoder.name"
    settings = (*model_settings(larger), "--model.encoder.name", name)
    refused(features, tmp_path / "larger", message, *settings)


def test_another_normalisation_is_refused(weights: Path, features: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(features, tmp_path / "features"))
    manifest = read_manifest(folder)
    assert manifest.image_policy["std"] == [0.229, 0.224, 0.225]
    policy = {**manifest.image_policy, "mean": [0.5, 0.5, 0.5]}
    write_manifest(folder, replace(manifest, image_policy=policy))
    message = "made with mean (0.5, 0.5, 0.5), but this run has (0.485, 0.456, 0.406); change"
    refused(folder, tmp_path, message, *model_settings(weights))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line with which the features command refuses."""
    capsys.readouterr()
    assert run_here(features_command.main, *arguments) == 2
    (line,) = (text for text in capsys.readouterr().err.splitlines() if "features: " in text)
    return line


def test_what_the_command_refuses(
    scenes: Scenes, weights: Path, features: Path, checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    another = "choose another --out or remove this folder"
    before = digests(features)
    for shards, out, options, message in (
        (scenes.train, features, ("--dtype", "float16"), another),
        (scenes.train, features, (*FLOAT32, "--data.image_size", 96), another),
        (scenes.val, features, FLOAT32, another),
        (scenes.train, scenes.train, (), another),
        (features, tmp_path, (), "holds features; give the images' shards"),
        (scenes.train, features, ("--flip",), "--flip: needs --views 2 or more"),
        (scenes.train, features, ("--views", 0), "--views: 0: must be 1 or more"),
        (scenes.train, features, ("--cache_gb", 0), "--cache_gb: 0.0: must be above 0"),
        (scenes.train, features, ("--checkpoint", checkpoint), "brings its own settings"),
        (scenes.train, features, NO_WEIGHTS, "must name pretrained weights"),
        (scenes.train, features, ("--model.encoder.tune", "all"), "cannot train the backbone on"),
    ):
        line = refusal(capsys, *options_of(shards, weights, out, *options))
        assert line.startswith("features: ")
        assert message in line
    assert digests(features) == before


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bad_sample_ends_it_with_one_line(
    scenes: Scenes, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    source = Path(shutil.copytree(scenes.train, tmp_path / "source"))
    index = ShardFolder(source).index
    bad = int(index.shard_starts[4]) + 1
    with open(source / "train-000004.tar", "r+b") as tar:
        tar.seek(int(index.image_offset[bad]) + 99)
        tar.write(b"bad")
    options = options_of(source, weights, tmp_path / "out", "--workers", workers)
    line = refusal(capsys, *options)
    assert f"train-000004.tar: sample {index.key(bad)} is bad (crc32 differs)" in line
    assert "Traceback" not in line
    done = {path.name for path in (tmp_path / "out").glob("train-*.json")}
    assert {f"train-{number:06d}.json" for number in range(3)} <= done
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_numbers_that_float16_cannot_hold_are_refused(
    scenes: Scenes, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(weights)
    state["conv5.1.weight"] = 1e6 * state["conv5.1.weight"]
    save_file(state, tmp_path / "huge.safetensors")
    options = options_of(scenes.val, tmp_path / "huge.safetensors", tmp_path / "out")
    assert "exceed what float16 holds; use --dtype float32" in refusal(capsys, *options)
    state["conv5.1.weight"][0] = float("nan")
    save_file(state, tmp_path / "huge.safetensors")
    for dtype in ((), FLOAT32):
        assert "are not finite; the weights of the backbone" in refusal(capsys, *options, *dtype)
    assert not list((tmp_path / "out").glob("*.tar"))
