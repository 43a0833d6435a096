"""What a resumed run says of changed settings."""

from dataclasses import replace
from pathlib import Path

import yaml

from pipeline.config.changes import changed_settings
from pipeline.config.parser import dump_config, parse_config


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    config = parse_config(["--data.train", "a", "--run_dir", "r", "--train.epochs", "3"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert changed_settings(path, config) == []
    longer = replace(
        config, train=replace(config.train, epochs=6.5), data=replace(config.data, val="b")
    )
    assert changed_settings(path, longer) == ["data.val: null, now b", "train.epochs: 3, now 6.5"]


def test_settings_of_another_version_are_left_out(tmp_path: Path) -> None:
    config = parse_config(["--data.train", "a", "--run_dir", "r"])
    other = yaml.safe_load(dump_config(config))
    del other["data"]["workers"]
    other["optim"]["momentum"] = 0.9
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(other))
    assert changed_settings(path, config) == []
