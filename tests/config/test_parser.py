"""Settings: defaults, YAML, flags; and one clear line for each that cannot be."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.data import DataConfig
from pipeline.config.parser import dump_config, load_config, parse_config
from pipeline.config.run import Config
from pipeline.config.training import OptimConfig, TrainConfig

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
        ("--train.eval_every_epochs -1", "train.eval_every_epochs"),
        ("--train.checkpoint_every_epochs .inf", "train.checkpoint_every_epochs"),
        ("--optim.warmup_epochs .nan", "optim.warmup_epochs"),
        ("--optim.lr_batch_size 0", "optim.lr_batch_size"),
        ("--optim.lr_scaling cubic", "optim.lr_scaling"),
        ("--train.accumulation_steps 0", "train.accumulation_steps"),
        ("--train.checkpoint_minutes -1", "train.checkpoint_minutes"),
        ("--train.resume latest", "train.resume"),
        ("--model.encoder.tune none", "model.encoder.tune"),
        ("--model.encoder.tune layer4", "model.encoder.tune"),
        ("--model.encoder.frozen_epochs 1", "model.encoder.frozen_epochs"),
        ("--model.encoder.frozen_epochs -1", "model.encoder.frozen_epochs"),
        ("--model.encoder.lr_factor 0", "model.encoder.lr_factor"),
        ("--model.encoder.grid 0", "model.encoder.grid"),
        (
            "--model.encoder.weights w.pth --model.encoder.tune none --model.encoder.lr_factor 2",
            "model.encoder.lr_factor",
        ),
        (
            "--model.encoder.weights w.pth --model.encoder.tune none "
            "--model.encoder.frozen_epochs 1",
            "model.encoder.frozen_epochs",
        ),
        (
            "--model.encoder.freeze true",
            "model.encoder.freeze is now --model.encoder.tune",
        ),
        ("--model.encoder.dropout 1.0", "model.encoder.dropout"),
        ("--generation.beam 3", "generation.beam"),
        ("--generation.method beam --generation.beam 0", "generation.beam"),
        ("--generation.method beam --generation.num_captions 6", "generation.num_captions"),
        ("--generation.method diverse_beam --generation.groups 2", "generation.groups"),
        ("--generation.method sample --generation.top_p 0", "generation.top_p"),
        ("--generation.min_tokens 31", "generation.min_tokens"),
        ("--generation.max_tokens 0", "generation.max_tokens"),
    ],
)
def test_an_impossible_setting_is_named(arguments: str, key: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        parse_config(["--data.train", "x", *arguments.split()])


def test_a_training_folder_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"data\.train"):
        parse_config([])


def write(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["--data.train", "x", "--config", str(path)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim:\n  lr: 1\n   clip: 3\n", "line 3: the YAML is broken"),
        ('run_dir: "a\n', "the YAML is broken"),
        ("data:\n  batch_size: 3\n", "line 2: data.batch_size: unknown setting; did you mean "
         "data.global_batch_size"),
        ("optim: {lr: 1e-3}\nsede: 4\n", "line 2: sede: unknown setting; did you mean seed?"),
        ("optim:\n  lr: fast\n", "line 2: optim.lr: expected a number, not `fast`"),
        ("data:\n  workers: 1.5\n", "line 2: data.workers: expected a whole number, not `1.5`"),
        ("train:\n  epochs: [3]\n", "train.epochs: expected a whole number or null, not `[3]`"),
        ("train:\n  precision: fp8\n", "train.precision: expected one of fp32, bf16, fp16"),
        ("model:\n  encoder:\n    grid: a\n", "line 3: model.encoder.grid: expected a whole"),
        ("data:\n  train: 2017\n", "line 2: data.train: expected text, not `2017`"),
        ("data: coco\n", "line 1: data: is a section"),
        ("- seed\n", "line 1: expected lines of the form"),
        ("data:\n  workers: 1\n  workers: 2\n", "line 3: data.workers: is given twice"),
        ("seed: !!python/name:os.system x\n", "line 1: the YAML is broken"),
        ("\0", "is not YAML text"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_one_line_that_names_file_and_line(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(ValueError, match=re.escape(told)) as raised:
        parse_config(write(path, text))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    told = rf"^{tmp_path}/nowhere.yaml: No such file.*; {tmp_path} holds recipe.yaml$"
    with pytest.raises(ValueError, match=told):
        parse_config(["--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(ValueError, match=rf"^{tmp_path}: is a folder; name a YAML file"):
        parse_config(["--config", str(tmp_path)])


def test_a_checkpoint_of_an_earlier_version_says_so_and_what_replaces_each_setting(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.yaml"
    write(path, "optim:\n  warmup_steps: 50\ntrain:\n  eval_every: 0\n  checkpoint_every: 250\n")
    with pytest.raises(ValueError, match=r"config\.yaml, line 2: .*earlier version") as raised:
        load_config(path)
    for name in ("warmup_epochs", "eval_every_epochs", "checkpoint_every_epochs"):
        assert f"is now {'optim' if 'warm' in name else 'train'}.{name}" in str(raised.value)


def test_an_empty_file_and_an_empty_section_set_nothing(tmp_path: Path) -> None:
    assert parse_config(write(tmp_path / "c.yaml", "")) == parse_config(["--data.train", "x"])
    found = parse_config(write(tmp_path / "c.yaml", "optim:\nmodel:\n  encoder:\n"))
    assert found == parse_config(["--data.train", "x"])


def test_of_several_files_the_later_wins_and_options_win_over_both(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "seed: 1\noptim: {lr: 1, clip: 1}\n")
    second = write(tmp_path / "b.yaml", "optim: {lr: 2, clip: 2}\n")
    config = parse_config(["--optim.clip", "3", *first, *second[2:]])
    assert (config.seed, config.optim.lr, config.optim.clip) == (1, 2.0, 3.0)


def test_dashes_and_underscores_name_the_same_option() -> None:
    config = parse_config(["--data.train", "x", "--data.global-batch-size=7"])
    assert config.data.global_batch_size == 7
    with pytest.raises(ValueError, match=r"--data\.global_batch_size: is given twice"):
        parse_config(["--data.global-batch-size", "7", "--data.global_batch_size", "8"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--optim.warmup_steps", "--optim.warmup_epochs"),
        ("--train.eval-every", "--train.eval_every_epochs"),
        ("--monitor.num_pictures", "--monitor.num_images"),
    ],
)
def test_an_option_of_an_earlier_version_is_answered_with_its_successor(old: str, new: str) -> None:
    shown = old.replace("-every", "_every")
    with pytest.raises(ValueError, match=f"{shown} is now {new}"):
        parse_config([old, "3"])


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    expected = r"unknown option --data\.batch_size; did you mean --data\.global_batch_size"
    with pytest.raises(ValueError, match=expected):
        parse_config(["--data.batch_size", "3"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", "-1"), ("seed", str(1 << 63)), ("run_dir", ""), ("data.val", ""), ("data.train", "")],
)
def test_values_that_cannot_work_are_refused_by_their_key(key: str, value: str) -> None:
    options = {"data.train": "x", key: value}
    with pytest.raises(ValueError, match=f"^{key}: must"):
        parse_config([f"--{name}={text}" for name, text in options.items()])


@settings(max_examples=25)
@given(st.text(min_size=1), st.text(min_size=1), st.floats(1e-9, 1e3), st.none() | st.integers(1))
def test_any_values_survive_a_dump(run_dir: str, train: str, lr: float, steps: int | None) -> None:
    config = Config(
        run_dir=run_dir.replace("://", "") or "r",
        data=DataConfig(train=train),
        optim=OptimConfig(lr=lr),
        train=TrainConfig(steps=steps),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config


# ----------------------------------------------------------------------------- python train.py ...


def run_train(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_print_config_prints_a_file_that_gives_the_same_settings(tmp_path: Path) -> None:
    settings = ("--config", "configs/demo.yaml", "--optim.lr", "3e-4", "--data.train", "x")
    done = run_train("--print_config", *settings)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "printed.yaml").write_text(done.stdout)
    assert load_config(tmp_path / "printed.yaml") == parse_config(list(settings))


@pytest.mark.parametrize("command", [["train.py"], ["-m", "pipeline.evaluate"]])
def test_an_environment_that_cannot_be_is_one_line(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "RANK": "first"},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "RANK: the environment variable" in line


def test_help_is_answered_before_anything_slow_is_imported() -> None:
    """It takes 0.2 s; the limit leaves room for a machine that does other things too."""
    started = time.monotonic()
    done = run_train("--help")
    assert time.monotonic() - started < 3
    assert done.returncode == 0, done.stderr
    assert "--data.global_batch_size" in done.stdout
    assert "--data CONFIG" not in done.stdout
    assert "Literal[" not in done.stdout
    assert "(type: text or null, default: null)" in done.stdout
    script = (
        "import sys, pipeline.train\n"
        "sys.argv = ['train.py', '--help']\n"
        "try: pipeline.train.main()\n"
        "except SystemExit: print(sorted({'torch', 'torchvision', 'accelerate'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("optim:\n lr: 1\n  clip: 3\n", [], "c.yaml, line 3: the YAML is broken"),
        ("data:\n  batch_size: 3\n", [], "did you mean data.global_batch_size"),
        ("optim:\n  lr: fast\n", [], "c.yaml, line 2: optim.lr: expected a number, not `fast`"),
        ("", ["--data.workers", "many"], "data.workers: expected a whole number, not `many`"),
        ("", ["--seed", 1, "--seed", 2], "--seed: is given twice"),
    ],
)
def test_a_mistake_ends_train_py_with_one_line_and_code_2(
    tmp_path: Path, text: str, arguments: list[object], told: str
) -> None:
    done = run_train(*write(tmp_path / "c.yaml", text), *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("train: ")
    assert told in line
