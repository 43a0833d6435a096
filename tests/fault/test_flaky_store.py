"""Training and evaluating from an object store, on good days and on bad ones: moto's S3."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from support.flaky_proxy import flaky_proxy
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes
from support.training import read_sample_log, train, train_command

from shards.format.manifest import read_manifest

moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `remote`)")

SHARE = 0.2  # of all answers are faults
STALL_S = 2.0
# fsspec's own way to set what s3fs waits for: 15 s unless told otherwise.
IMPATIENT = json.dumps({"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}})

SETTINGS = ("--data.shuffle_block", 1, "--train.epochs", 2)


@dataclass(frozen=True)
class Store:
    """An S3-speaking server with the drawn shards in a bucket, and what training on them gives."""

    port: int
    files: "s3fs.S3FileSystem"
    sample_log: dict[int, list[object]]
    cache_gb: float  # room for 4 of the 7 training shards, and those of an evaluation


@pytest.fixture(scope="module")
def store(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # The contents belong to the process, not to the server, and this fixture may be set up twice in
    # a process, when tests are distributed.
    with urlopen(Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")) as answer:
        assert answer.status == 200
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    ONE_THREAD.update(os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    files = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False)
    files.mkdir("drawn")
    for folder in (scenes.train, scenes.val):
        files.put(str(folder), "drawn/", recursive=True)
    log = tmp_path_factory.mktemp("near") / "log"
    done = train(
        1, "--data.train", scenes.train, "--run_dir", log.parent / "run",
        "--monitor.sample_log", log, *SETTINGS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards = [shard.num_bytes for shard in read_manifest(scenes.train).shards]
    val_bytes = sum(shard.num_bytes for shard in read_manifest(scenes.val).shards)
    cache_gb = (4 * max(shards) + val_bytes) / 1e9
    assert sum(shards) + val_bytes > cache_gb * 1e9
    yield Store(port, files, read_sample_log(log), cache_gb)
    server.stop()


def from_store(store: Store, folder: Path, *settings: object) -> tuple[object, ...]:
    return (
        "--data.train", "s3://drawn/train", "--run_dir", folder / "run",
        "--data.cache_dir", folder / "cache", "--data.cache_gb", store.cache_gb,
        "--monitor.sample_log", folder / "log", *SETTINGS, *settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 50))]
)
def test_a_bad_day_trains_on_the_same_samples(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with flaky_proxy(store.port, SHARE, seed, STALL_S) as (endpoint, injected):
        monkeypatch.setitem(ONE_THREAD, "AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setitem(ONE_THREAD, "FSSPEC_S3", IMPATIENT)
        done = train(
            2, *from_store(store, tmp_path, "--data.val", "s3://drawn/val", "--data.workers", 1)
        )
    assert done.returncode == 0, done.stderr
    assert read_sample_log(tmp_path / "log") == store.sample_log
    assert (tmp_path / "run" / "checkpoints" / "scores.json").exists()
    cached = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar")]
    assert 0 < sum(cached) <= store.cache_gb * 1e9
    assert sum(count for fault, count in injected.items() if fault) >= 1  # 7 on an average


@pytest.mark.slow  # each start takes its seconds; the run above evaluates from afar too
def test_an_evaluation_from_afar_gives_the_same_captions(
    store: Store, scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ONE_THREAD, "AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
    run = tmp_path / "run"
    done = train(1, "--data.train", scenes.train, "--run_dir", run, "--train.steps", 1)
    assert done.returncode == 0, done.stderr
    results = []
    for place in (str(scenes.val), "s3://drawn/val"):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.evaluate", "--checkpoint", run / "checkpoints/best",
             "--shards", place, "--out", tmp_path / "out.json", "--batch_size", "3",
             "--cache_dir", tmp_path / "cache", "--workers", "1"],
            env=ONE_THREAD, cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / "out.json").read_text()))
    assert results[0] == results[1]
    assert len(results[0]) == 7


def test_an_object_replaced_in_mid_epoch_stops_the_run_and_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ONE_THREAD, "AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
    store.files.cp("drawn/train", "drawn/changing", recursive=True)
    command = train_command(
        1, *from_store(store, tmp_path, "--data.train", "s3://drawn/changing"),
        "--train.epochs", 10000,
    )  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    log, deadline = tmp_path / "log.rank0.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    store.files.pipe("drawn/changing/train-000004.tar", b"another build's shard")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "s3://drawn/changing/train-000004.tar: differs from manifest.json in " in stderr
    assert "another run_dir" in stderr
