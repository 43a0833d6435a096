"""The start of a run: its state, its first line, and what damage left behind."""

from pathlib import Path

import pytest
import torch
from support.shards import Scenes
from support.training import epochs, tiny_settings
from torchvision.models import shufflenet_v2_x0_5

from pipeline.checkpoint.commit import RunRecord, commit
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.checkpoint.state import TrainState
from pipeline.config.changes import shared_settings
from pipeline.config.parser import dump_config, parse_config
from pipeline.distributed.process_group import join_processes
from pipeline.runtime.world import World
from pipeline.training.inputs import Run, prepare
from pipeline.training.start import (
    check_same_on_all_ranks,
    first_line,
    restore,
    tidy_checkpoints,
)


@pytest.fixture
def settings(scenes: Scenes, tmp_path: Path) -> tuple[object, ...]:
    return ("--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.steps", 5)


def start(*settings: object) -> Run:
    run = prepare(parse_config(tiny_settings(*settings)), World())
    assert run.lock is not None
    run.lock.close()  # the next run of the test uses the same folder
    return run


def save(run: Run, state: TrainState) -> Path:
    _, optimizer, _ = restore(join_processes(World()), run)
    for parameter in run.captioner.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    record = RunRecord(
        run.identity, dump_config(run.config), run.train_shards.folder / "tokenizer.json"
    )
    optimizer_state = {"optimizer": optimizer.state_dict()}
    return commit(run.checkpoints, record, state, run.captioner.state_dict(), optimizer_state)


def test_a_run_starts_where_its_checkpoint_ends(settings: tuple[object, ...]) -> None:
    accelerator = join_processes(World())
    first = start(*settings)
    assert restore(accelerator, first)[2] == TrainState()
    state = TrainState(step=2, updates=2, num_bad=0, samples_consumed=20)
    save(first, state)
    resumed = start(*settings, "--optim.weight_decay", 0.125)
    _, optimizer, found = restore(accelerator, resumed)
    assert found == state
    expected = first.captioner.state_dict()
    weights = resumed.captioner.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    moments = [moment["exp_avg"] for moment in optimizer.state_dict()["state"].values()]
    assert moments
    assert all((moment > 0).all() for moment in moments)  # of the one update, not zero
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert max(decays) == 0.125  # the setting of today, not the one of the checkpoint


def test_the_first_line_says_what_runs(settings: tuple[object, ...]) -> None:
    accelerator = join_processes(World())
    run = start(*settings)
    line = first_line(accelerator, run, TrainState())
    assert line.startswith(f"1 process on {accelerator.device.type}; precision fp32; 63 images")
    assert run.identity.data_digest[:12] in line
    assert "5 steps, from the beginning" in line
    assert line.endswith(str(run.config.run_dir))
    assert "all done already" in first_line(accelerator, run, TrainState(step=5))
    save(run, TrainState(step=2, samples_consumed=20))
    assert "5 steps, from step 2" in first_line(accelerator, start(*settings), TrainState(step=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has bf16")
def test_a_precision_that_the_cpu_does_not_use_is_said(settings: tuple[object, ...]) -> None:
    run = start(*settings, "--train.precision", "bf16")
    line = first_line(join_processes(World(), "bf16"), run, TrainState())
    assert "precision fp32 (bf16 is for GPUs)" in line


def test_damaged_checkpoints_are_renamed_and_named(settings: tuple[object, ...]) -> None:
    run = start(*settings)
    kept = save(run, TrainState(step=1, samples_consumed=10))
    damaged = save(run, TrainState(step=2, samples_consumed=20))
    (damaged / "optimizer.pt").write_bytes(b"")
    (line,) = tidy_checkpoints(start(*settings, "--train.resume", "previous"))
    assert "optimizer.pt" in line
    assert line.endswith("not used, and renamed to damaged-step-00000002")
    assert list(list_checkpoints(run.checkpoints)) == [kept]


def test_an_encoder_that_cannot_encode_the_images_is_refused(settings: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"vit_b_32 does not accept images of data\.image_size 32"):
        start(*settings, "--model.encoder.name", "vit_b_32")


def test_ranks_that_see_different_runs_are_refused_by_name() -> None:
    settings = {
        rank: shared_settings(parse_config([
            "--data.train", f"/{rank}", "--run_dir", "r", "--data.workers", str(rank),
            "--optim.lr", lr,
        ]))
        for rank, lr in enumerate(("1e-3", "1e-3", "1e-4"))
    }  # fmt: skip
    check_same_on_all_ranks([settings[0], settings[1]], "r", "/0")
    message = r"by rank, optim\.lr is \[0\.001, 0\.001, 0\.0001\]"
    with pytest.raises(RuntimeError, match=message):
        check_same_on_all_ranks(list(settings.values()), "r", "/0")


def test_the_first_line_counts_what_is_trained(
    settings: tuple[object, ...], tmp_path: Path
) -> None:
    network = shufflenet_v2_x0_5()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    weights = ("--model.encoder.weights", tmp_path / "w.pth", "--model.dim", 256)
    run = start(*settings, *weights, "--model.encoder.tune", "none")
    num_features = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("fc"))
    total = sum(parameter.numel() for parameter in run.captioner.parameters())
    line = first_line(join_processes(World()), run, TrainState())
    expected = f"{(total - num_features) / 1e6:.1f} M of {total / 1e6:.1f} M parameters trained;"
    assert expected in line
    run = start(*settings, *weights, "--model.encoder.frozen_epochs", epochs(3))
    line = first_line(join_processes(World()), run, TrainState())
    assert f"{total / 1e6:.1f} M parameters trained, the backbone from step 3 on;" in line
