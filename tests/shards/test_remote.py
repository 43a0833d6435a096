"""Images from and shards to an object store, also on a bad day: moto's S3 on loopback."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.flaky_proxy import flaky_proxy
from support.shards import Scenes, digests, run_shards

moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `remote`)")

SHARE = 0.15  # of all answers are faults


@dataclass(frozen=True)
class Store:
    """An S3-speaking server with the drawn data set in a bucket."""

    port: int
    files: "s3fs.S3FileSystem"


@pytest.fixture(scope="module")
def store(scenes: Scenes) -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    files = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False)
    files.mkdir("data")
    files.put(str(scenes.data / "train2017"), "data/", recursive=True)
    annotations = scenes.data / "annotations" / "captions_train2017.json"
    files.put_file(str(annotations), "data/captions.json")
    files.put_file(str(scenes.tokenizer), "data/tokenizer.json")
    files.mkdir("shards")
    yield Store(port, files)
    server.stop()


def build(
    out: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> "subprocess.CompletedProcess[str]":
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return run_shards(
        "build", "--images", "s3://data/train2017", "--annotations", "s3://data/captions.json",
        "--tokenizer", "s3://data/tokenizer.json", "--out", out, "--name", "train",
        "--samples_per_shard", 10, "--resize_short", 48, "--workers", 2, "--json",
    )  # fmt: skip


def fetched(store: Store, url: str, folder: Path) -> dict[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    store.files.get(url.removeprefix("s3://"), str(folder), recursive=True)
    return digests(folder)


def test_an_object_store_gives_the_same_bytes(
    scenes: Scenes, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{store.port}"
    done = build("s3://shards/whole", endpoint, monkeypatch)
    assert done.returncode == 0, done.stderr
    assert fetched(store, "s3://shards/whole", tmp_path / "whole") == digests(scenes.train)
    for command in (("verify",), ("verify", "--fast"), ("show", "--limit", 2)):
        done = run_shards(command[0], "s3://shards/whole", *command[1:])
        assert done.returncode == 0, done.stderr
    before = store.files.info("shards/whole/train-000003.tar")["LastModified"]
    store.files.rm("shards/whole/train-000002.json")
    done = build("s3://shards/whole", endpoint, monkeypatch)
    assert done.returncode == 0, done.stderr
    assert fetched(store, "s3://shards/whole", tmp_path / "whole") == digests(scenes.train)
    assert store.files.info("shards/whole/train-000003.tar")["LastModified"] == before


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_a_bad_day_changes_nothing(
    scenes: Scenes, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    url = f"s3://shards/bad-day-{seed}"
    with flaky_proxy(store.port, SHARE, seed) as (endpoint, injected):
        done = build(url, endpoint, monkeypatch)
        assert done.returncode == 0, done.stderr
        verified = run_shards("verify", url)
    assert json.loads(done.stdout)["rejected"] == {}
    assert fetched(store, url, tmp_path / "out") == digests(scenes.train)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert min(injected[fault] for fault in ("500", "503", "429", "cut off", "short")) > 0


@pytest.mark.slow  # it is not given up at once
def test_a_store_that_is_gone_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    done = build("s3://shards/gone", "http://127.0.0.1:9", monkeypatch)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "s3://data" in done.stderr


def test_a_url_without_its_library_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c",
         "import sys; sys.modules['upath'] = None\n"
         "from shards.storage import location; location('s3://bucket/x')"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "pip install '.[remote]'" in done.stderr
