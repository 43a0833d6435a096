"""The schedule: settings in epochs become steps, whatever the batch size is."""

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.parser import parse_config
from pipeline.config.training import OptimConfig, TrainConfig
from pipeline.training.schedule import Schedule, make_schedule

ROOT = Path(__file__).resolve().parents[2]
SIZES = st.integers(1, 200_000)
BATCHES = st.integers(1, 4096)
INTERVALS = st.floats(0.01, 20)


def schedule(
    num_samples: int = 1000, batch_size: int = 10, num_steps: int = 300, **settings: object
) -> Schedule:
    """A schedule of a run without warm-up, unless the settings say otherwise."""
    optim = {"warmup_epochs": 0.0}
    train: dict[str, object] = {}
    for name, value in settings.items():
        (train if name in TrainConfig.__annotations__ else optim)[name] = value
    return make_schedule(
        OptimConfig(**optim), TrainConfig(**train), num_samples, batch_size, num_steps
    )


def recipe(name: str, *arguments: str) -> tuple[OptimConfig, TrainConfig, int]:
    """Optimiser, training and global batch of a recipe in configs/."""
    path = str(ROOT / "configs" / f"{name}.yaml")
    config = parse_config(["--config", path, "--data.train", "x", *arguments])
    return config.optim, config.train, config.data.global_batch_size


def test_the_demo_has_the_learning_rates_and_commits_that_it_had_in_steps() -> None:
    """Bit for bit: 50 warm-up steps at 5e-4, a commit each 250 steps, evaluation at the end."""
    optim, train, batch_size = recipe("demo")
    num_steps = 506
    demo = make_schedule(optim, train, 8100, batch_size, num_steps)

    def before(step: int) -> float:
        if step < 50:
            return 5.0e-4 * (step + 1) / 50
        progress = (step - 50) / max(num_steps - 50, 1)
        return 5.0e-4 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

    steps = range(num_steps + 1)
    assert [demo.learning_rate(step) for step in steps] == [before(step) for step in steps]
    assert [step for step in steps if demo.commit_due(step)] == [250, 500, 506]
    assert [step for step in steps if demo.evaluation_due(step)] == [506]


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = schedule(40, 10, 12, lr=2.0, warmup_epochs=1.0)
    values = [rates.learning_rate(updates) for updates in range(13)]
    assert values[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert values[8] == pytest.approx(1.0)
    assert values[12] == pytest.approx(0.0)
    assert schedule(lr=2.0).learning_rate(0) == 2.0


@given(SIZES, BATCHES, st.floats(0, 2), st.integers(1, 5))
def test_the_rate_rises_in_the_warm_up_and_never_after_it(
    num_samples: int, batch_size: int, warmup_epochs: float, epochs: int
) -> None:
    num_steps = math.ceil(epochs * num_samples / batch_size)
    try:
        rates = schedule(num_samples, batch_size, num_steps, warmup_epochs=warmup_epochs)
    except ValueError:
        return
    warmup = rates.warmup_steps
    assert abs(warmup - warmup_epochs * num_samples / batch_size) <= 0.5
    around = [*range(min(warmup + 3, 40)), *range(max(warmup - 3, 0), warmup + 40)]
    for step in around:
        rate, following = rates.learning_rate(step), rates.learning_rate(step + 1)
        assert 0 <= rate <= rates.peak_lr
        assert rate < following if step + 1 < warmup else rate >= following


@given(
    st.floats(1e-6, 1.0),
    BATCHES,
    BATCHES,
    st.sampled_from([("none", 0), ("sqrt", 0.5), ("linear", 1)]),
)
def test_the_rate_scales_with_the_batch(
    lr: float, lr_batch_size: int, batch_size: int, rule: tuple[str, float]
) -> None:
    name, power = rule
    scaled = schedule(1000, batch_size, 9, lr=lr, lr_batch_size=lr_batch_size, lr_scaling=name)
    assert scaled.peak_lr == pytest.approx(lr * (batch_size / lr_batch_size) ** power)
    if batch_size == lr_batch_size:
        assert scaled.peak_lr == lr


@given(SIZES, BATCHES, INTERVALS, st.integers(1, 2000))
def test_there_is_one_evaluation_and_one_commit_in_each_interval(
    num_samples: int, batch_size: int, every: float, num_steps: int
) -> None:
    planned = schedule(
        num_samples, batch_size, num_steps, eval_every_epochs=every, checkpoint_every_epochs=every
    )
    due = [step for step in range(num_steps + 1) if planned.evaluation_due(step)]
    assert due == [step for step in range(num_steps + 1) if planned.commit_due(step)]
    assert due[-1] == num_steps
    interval = every * num_samples / batch_size
    if interval < 1:  # more than one in a step: every step evaluates, once
        assert due == list(range(1, num_steps + 1))
        return
    for number, step in enumerate(due[:-1], 1):
        assert abs(step - number * interval) <= 0.5 + 1e-6 * step
    in_run = (num_steps - 1) / interval  # intervals that end before the last step, which counts too
    assert math.floor(in_run * (1 - 1e-12)) < len(due) <= math.floor(in_run * (1 + 1e-12)) + 1
    gaps = [later - earlier for earlier, later in itertools.pairwise([0, *due])]
    assert max(gaps) <= interval * (1 + 1e-9) + 1.5  # two roundings, and an end left to the run's


def test_zero_evaluates_and_commits_at_the_end_only() -> None:
    planned = schedule(num_steps=300, eval_every_epochs=0, checkpoint_every_epochs=0)
    assert [step for step in range(301) if planned.evaluation_due(step)] == [300]
    assert [step for step in range(301) if planned.commit_due(step)] == [300]


@given(SIZES, BATCHES, st.floats(0, 10), st.integers(1, 5000))
def test_a_warm_up_of_more_than_a_third_of_the_run_is_refused(
    num_samples: int, batch_size: int, warmup_epochs: float, num_steps: int
) -> None:
    warmup_steps = round(warmup_epochs * num_samples / batch_size)
    if 3 * warmup_steps <= num_steps:
        planned = schedule(num_samples, batch_size, num_steps, warmup_epochs=warmup_epochs)
        assert planned.warmup_steps == warmup_steps
        return
    with pytest.raises(ValueError, match=r"^optim\.warmup_epochs: .*a third") as raised:
        schedule(num_samples, batch_size, num_steps, warmup_epochs=warmup_epochs)
    found = re.search(r"set it to (\S+) or less", str(raised.value))
    assert found
    schedule(num_samples, batch_size, num_steps, warmup_epochs=float(found[1]))


def test_a_backbone_that_is_frozen_to_the_end_is_refused() -> None:
    parts = (OptimConfig(warmup_epochs=0.0), TrainConfig(), 1000, 10, 300)
    assert make_schedule(*parts, frozen_epochs=2.99).frozen_steps == 299
    with pytest.raises(ValueError, match=r"frozen_epochs: 3 epochs are 300 steps, but the run has"):
        make_schedule(*parts, frozen_epochs=3.0)


@pytest.mark.parametrize("gpus", [1, 4, 8, 16])
def test_coco_on_many_gpus_warms_up_briefly_and_evaluates_each_epoch(gpus: int) -> None:
    """The README's commands. Given in steps, 8 GPUs warmed up for half the run without a score."""
    batch = ("--data.global_batch_size", str(48 * gpus))
    optim, train, batch_size = recipe("coco_densenet_lstm", *batch)
    num_steps = math.ceil(3 * 118_287 / batch_size)
    planned = make_schedule(optim, train, 118_287, batch_size, num_steps)
    assert planned.warmup_steps / num_steps == pytest.approx(0.2 / 3, abs=0.01)
    assert sum(map(planned.evaluation_due, range(num_steps + 1))) == 3
    assert planned.peak_lr == pytest.approx(5e-4 * gpus**0.5)
