"""The monitor: means over a window of steps, on TensorBoard and the console."""

import time
from math import inf
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.observability.contact_sheet import Captioned
from pipeline.observability.monitor import Monitor, StepResult


def result(loss: float, num_terms: int, **fields: object) -> StepResult:
    values = {
        "grad_norm": 1.0, "num_images": 10, "num_bad": 0, "wait_s": 0.0, "skipped": False,
        "stop": False, **fields,
    }  # fmt: skip
    return StepResult(loss=loss, num_terms=num_terms, **values)  # type: ignore[arg-type]


def make_monitor(run_dir: Path, active: bool = True, first_step: int = 0) -> Monitor:
    return Monitor(run_dir, active, first_step, num_steps=5, num_processes=2, log_every=2)


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def test_losses_are_means_over_the_tokens_of_a_window(tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path)
    monitor.step(1, result(2.0, 100, logged={"x": 1.0}, grad_norm=1.0), 0.1, num_bad=0)
    monitor.step(2, result(4.0, 300, logged={"x": 3.0}, grad_norm=inf, skipped=True), 0.2, 3)
    monitor.step(3, result(9.0, 10, logged={"x": 0.0}), 0.3, 3)
    monitor.close()
    found = events(tmp_path)
    expected = {
        "train/loss": 3.5, "train/x": 2.5, "train/gradient_norm": 1.0, "train/learning_rate": 0.2,
        "train/skipped_steps": 1.0, "data/bad_samples": 3.0,
    }  # fmt: skip
    for name, value in expected.items():
        (event,) = found.Scalars(name)
        assert event.step == 2
        assert event.value == pytest.approx(value)
    one, per_process = (
        found.Scalars(f"speed/images_per_s{end}")[0].value for end in ("", "_per_process")
    )
    assert one == pytest.approx(2 * per_process)


def test_a_checkpoint_takes_no_result_and_its_time_does_not_count(tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path)
    monitor.step(1, result(2.0, 100, num_images=1000, skipped=True), 0.1, 0)
    time.sleep(0.5)  # the checkpoint
    monitor.restart_clock()
    monitor.step(2, result(4.0, 300, num_images=1000), 0.2, 0)
    monitor.close()
    found = events(tmp_path)
    assert [point.value for point in found.Scalars("train/loss")] == [3.5]
    assert [point.value for point in found.Scalars("train/skipped_steps")] == [1.0]
    assert found.Scalars("speed/images_per_s")[0].value > 2000 / 0.5


def test_the_last_step_is_shown_though_no_window_ends_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = make_monitor(tmp_path)
    monitor.step(5, result(1.25, 10), 0.1, 0)
    monitor.close()
    assert "step 5/5  loss 1.250" in capsys.readouterr().out
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == [5]


def test_what_was_logged_after_the_checkpoint_is_hidden_when_the_run_resumes(
    tmp_path: Path,
) -> None:
    killed = make_monitor(tmp_path)
    for step in (2, 4):
        killed.step(step, result(1.0, 10), 0.1, 0)
    killed.close()
    resumed = make_monitor(tmp_path, first_step=2)
    resumed.step(4, result(7.0, 10), 0.1, 0)
    resumed.close()
    shown = [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")]
    assert shown == [(2, 1.0), (4, 7.0)]


def test_an_evaluation_shows_scores_and_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = make_monitor(tmp_path)
    image = Captioned(np.zeros((8, 8, 3), np.uint8), "a dog", "a cat")
    monitor.evaluation(1000, {"CIDEr": 0.5, "BLEU-4": 0.25}, [image])
    monitor.close()
    assert "step 1,000: CIDEr 0.500  BLEU-4 0.250" in capsys.readouterr().out
    found = events(tmp_path)
    assert found.Scalars("eval/CIDEr")[0].value == 0.5
    assert len(found.Images("captions")) == 1


def test_other_processes_show_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = make_monitor(tmp_path, active=False)
    monitor.say("hello")
    monitor.step(5, result(1.0, 10), 0.1, 0)
    monitor.evaluation(5, {"CIDEr": 0.5}, [])
    monitor.flush()
    monitor.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
