"""Settings: defaults, YAML, flags; and one clear line for each that cannot be."""

from pathlib import Path

import pytest

from pipeline.config.parser import dump_config, load_config, parse_config

ROOT = Path(__file__).resolve().parents[2]


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 4\noptim:\n  lr: 3e-4\n  clip: 1\ndata:\n  train: shards\n")
    config = parse_config(["--config", str(path), "--optim.clip", "2.5"])
    assert (config.seed, config.optim.lr, config.optim.clip) == (4, 3e-4, 2.5)
    assert config.data.global_batch_size == 48


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = parse_config(["--data.train", "x", "--optim.lr", "1e-5", "--train.epochs", "2"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_a_url_stays_as_it_is(tmp_path: Path) -> None:
    for url in ("s3://bucket/a folder/b", "https://host:8080/x?y=1#z", "file:///data/x"):
        config = parse_config(["--data.train", url, "--data.val", url])
        (tmp_path / "config.yaml").write_text(dump_config(config))
        data = load_config(tmp_path / "config.yaml").data
        assert (data.train, data.val) == (url, url)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_each_recipe_parses(recipe: Path) -> None:
    assert parse_config(["--config", str(recipe), "--data.train", "x"]).data.train == "x"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ("--optim.lrr 1", "optim.lrr"),
        ("--optim.lr fast", "optim.lr"),
        ("--data.workers 1.5", "data.workers"),
        ("--train.precision fp8", "train.precision"),
        ("--model.decoder.kind rnn", "model.decoder.kind"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--data.min_crop 0", "data.min_crop"),
        ("--data.global_batch_size 0", "data.global_batch_size"),
        ("--data.cache_gb 0", "data.cache_gb"),
        ("--data.cache_gb .inf", "data.cache_gb"),
        ("--train.steps 0", "train.steps"),
        ("--train.epochs null", "train.epochs"),
        ("--train.accumulation_steps 0", "train.accumulation_steps"),
        ("--train.checkpoint_minutes -1", "train.checkpoint_minutes"),
        ("--train.resume latest", "train.resume"),
        ("--model.encoder.freeze true", "model.encoder.freeze"),
        ("--model.encoder.dropout 1.0", "model.encoder.dropout"),
    ],
)
def test_an_impossible_setting_is_named(arguments: str, key: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        parse_config(["--data.train", "x", *arguments.split()])


def test_an_unknown_key_in_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim:\n  learning_rate: 0.1\n")
    with pytest.raises(ValueError, match="learning_rate"):
        parse_config(["--config", str(path), "--data.train", "x"])


def test_a_training_folder_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"data\.train"):
        parse_config([])
