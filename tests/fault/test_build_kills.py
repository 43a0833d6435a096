"""Builds killed at random moments: run again, they end with the bytes of an undisturbed one."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from support.repository import ROOT
from support.shards import Scenes, build_command, coco_folder, digests, run_shards

from shards.verify import verify

ROUNDS_S = 60


@dataclass(frozen=True)
class Work:
    """A build that takes a few seconds, and what comes of it undisturbed."""

    command: Callable[[Path], list[object]]
    digests: dict[str, str]
    seconds: float
    tokenizer: Path


@pytest.fixture(scope="module")
def work(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    data, annotations = coco_folder(scenes, folder / "data")
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    for number, image in enumerate(annotations["images"]):
        path = data / "train2017" / image["file_name"]
        Image.fromarray(np.roll(noise, number, axis=0)).save(path, quality=80)

    def command(out: Path) -> list[object]:
        return build_command(data, scenes, out, "--samples-per-shard", 5, "--workers", 2)

    started = time.monotonic()
    done = run_shards(*command(folder / "whole"))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    return Work(command, digests(folder / "whole"), seconds, scenes.tokenizer)


def start(command: list[object]) -> psutil.Popen:
    return psutil.Popen(
        [sys.executable, "-m", "shards", *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def packers_of(build: psutil.Popen) -> list[psutil.Process]:
    return [p for p in build.children() if "spawn_main" in " ".join(p.cmdline())]


def kill_one(build: psutil.Popen, rng: random.Random, delay_s: float) -> None:
    """After a while kill the build, one of its packers, or all. A dead packer does not stop it."""
    time.sleep(delay_s)
    who = rng.choice(("build", "packer", "all"))
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended meanwhile
        children, packers = build.children(recursive=True), packers_of(build)
        if who == "packer" and packers:
            rng.choice(packers).kill()
        elif who == "all":
            os.killpg(build.pid, signal.SIGKILL)
        else:
            who = "build"
            build.kill()
        psutil.wait_procs(children, timeout=ROUNDS_S)
    code = build.wait(ROUNDS_S)
    assert code == 0 or who != "packer"


def check(work: Work, out: Path) -> None:
    assert digests(out) == work.digests
    assert [fault for _, faults in verify(out) for fault in faults] == []


def kill_local(work: Work, out: Path, rng: random.Random) -> None:
    kill_one(start(work.command(out)), rng, rng.uniform(0.2, work.seconds))
    done = run_shards(*work.command(out))
    assert done.returncode == 0, done.stderr
    check(work, out)


def kill_array(work: Work, out: Path, rng: random.Random) -> None:
    shares = [["--job-index", index, "--job-count", 3] for index in range(3)]
    rng.shuffle(shares)
    for share in shares:
        command = [*work.command(out), *share]
        kill_one(start(command), rng, rng.uniform(0.2, work.seconds / 2))
        done = run_shards(*command)  # as a scheduler requeues it
        assert done.returncode == 0, done.stderr
    done = run_shards("finalize", out, "--tokenizer", work.tokenizer)
    assert done.returncode == 0, done.stderr
    check(work, out)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """A Ray cluster of two CPUs that outlives the builds."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    port = "6399"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray 2.60 refuses its own token when one joins later
    subprocess.run(
        [*ray, "start", "--head", "--num-cpus", "2", "--port", port, "--include-dashboard", "false",
         "--disable-usage-stats"], check=True, capture_output=True,
    )  # fmt: skip
    yield f"127.0.0.1:{port}"
    subprocess.run([*ray, "stop", "--force"], check=True, capture_output=True)
    del os.environ["RAY_AUTH_MODE"]


def kill_ray(work: Work, out: Path, rng: random.Random, address: str) -> None:
    command = [*work.command(out), "--executor", "ray", "--ray-address", address]
    build = start(command)
    time.sleep(rng.uniform(1.0, 3.0 + work.seconds))
    packing = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "_run_on_ray" in " ".join(process.info["cmdline"] or [])
    ]
    victims = [build, *packing, *(child for p in packing for child in p.children())]
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(victims).kill()
    build.wait(ROUNDS_S)
    done = run_shards(*command)
    assert done.returncode == 0, done.stderr
    check(work, out)


@pytest.mark.parametrize("seed", range(4))
def test_local_builds_survive_kills(work: Work, tmp_path: Path, seed: int) -> None:
    kill_local(work, tmp_path / "out", random.Random(seed))


@pytest.mark.parametrize("seed", range(2))  # three kills each
def test_arrays_survive_kills(work: Work, tmp_path: Path, seed: int) -> None:
    kill_array(work, tmp_path / "out", random.Random(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 150))
def test_local_builds_survive_many_kills(work: Work, tmp_path: Path, seed: int) -> None:
    kill_local(work, tmp_path / "out", random.Random(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(200, 210))
def test_arrays_survive_many_kills(work: Work, tmp_path: Path, seed: int) -> None:
    kill_array(work, tmp_path / "out", random.Random(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(300, 320))
def test_ray_survives_many_kills(work: Work, tmp_path: Path, seed: int, ray_cluster: str) -> None:
    kill_ray(work, tmp_path / "out", random.Random(seed), ray_cluster)
