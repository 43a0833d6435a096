"""litdata and MosaicML Streaming, measured by the Python of an environment that has them.

    PYTHON benchmarks/loader_peers.py JOB ...

`loader.py` and `resume.py` run this by their option `--peers`; each job is a process of its own and
prints JSON. The jobs: `store` shards in the formats of both, `rate`, `state` and `first-batch`.

Both get what their documentation advises: bytes stored as they are, chunks of the default 64 MB,
which are read where they lie, a shuffle, their own stateful loaders. They do a captioner's work:
crops are handed over as arrays of bytes, made by the decoder and the interpolation that Capstream
uses, and beside them the captions' tokens, padded.
"""

import argparse
import importlib.metadata
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.batches import BATCH_SIZE, SIZE, consume, decode_and_crop

NUM_CAPTIONS, NUM_TOKENS = 5, 32  # an image, and a caption at the most
EPOCH_IMAGES = 60_000  # the least when measuring a rate: no epoch ends meanwhile, as in our run

Transform = Callable[[dict[str, bytes]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("store", "rate", "state", "first-batch"))
    parser.add_argument("peer", choices=("all", *LOADERS))
    parser.add_argument("--stored", type=Path, required=True, help="folder of both formats")
    parser.add_argument("--shards", type=Path, help="to be stored")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring a rate")
    parser.add_argument("--share", type=float, default=0.0, help="of the epoch, already seen")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)  # inherited by the workers, as in the other benchmarks
    torch.set_num_threads(1)
    stored, workers = arguments.stored, arguments.workers
    if arguments.job != "store":
        _import_peer(arguments.peer)
    if arguments.job == "store":
        answer: Any = _store(arguments.shards, stored, workers)
    elif arguments.job == "rate":
        repeats = -(-EPOCH_IMAGES // _num_images(stored))
        loader = LOADERS[arguments.peer](stored, workers, _example, repeats)
        answer = consume(_endlessly(loader), workers, arguments.seconds)
    elif arguments.job == "state":
        answer = _write_state(arguments.peer, stored, workers, arguments.share)
    else:
        answer = _first_batch(arguments.peer, stored, workers, arguments.share)
    print(json.dumps(answer))


def _store(shards: Path, stored: Path, workers: int) -> dict[str, str]:
    """Write the shards' images and captions, byte for byte, in both formats.

    Returns:
        The versions of what wrote them.
    """
    from litdata import optimize
    from streaming import MDSWriter

    tars = sorted(map(str, shards.glob("*.tar")))
    optimize(
        fn=_samples, inputs=tars, output_dir=str(stored / "litdata"), chunk_bytes="64MB",
        num_workers=workers, verbose=False,
    )  # fmt: skip
    num_images = 0
    with MDSWriter(
        columns={"jpg": "bytes", "json": "bytes"}, out=str(stored / "mosaicml")
    ) as writer:
        for tar in tars:
            for sample in _samples(tar):
                writer.write(sample)
                num_images += 1
    (stored / "count.json").write_text(json.dumps(num_images))
    versions = {
        name: importlib.metadata.version(name) for name in ("litdata", "mosaicml-streaming")
    }
    return {**versions, "peers' torch": torch.__version__}


def _samples(tar: str) -> Iterator[dict[str, bytes]]:
    """Each image, `jpg`, with the `json` of its captions and tokens."""
    with tarfile.open(tar) as opened:
        members = iter(opened)
        for image, captions in zip(members, members, strict=True):
            files = opened.extractfile(image), opened.extractfile(captions)
            assert files[0] is not None  # it is no folder
            assert files[1] is not None
            yield {"jpg": files[0].read(), "json": files[1].read()}


def _num_images(stored: Path) -> int:
    return int(json.loads((stored / "count.json").read_text()))


def _example(sample: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    decode_and_crop(sample["jpg"], pixels)
    tokens = np.zeros((NUM_CAPTIONS, NUM_TOKENS), dtype=np.int64)
    for row, ids in zip(tokens, json.loads(bytes(sample["json"]))["tokens"], strict=False):
        row[: len(ids)] = ids[:NUM_TOKENS]
    return pixels, tokens


def _undecoded(sample: dict[str, bytes]) -> int:
    return len(sample["jpg"])


def _litdata(stored: Path, workers: int, transform: Transform, repeats: int) -> Any:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(
        str(stored / "litdata"),
        shuffle=True,
        drop_last=True,
        subsample=float(repeats),
        transform=transform,
    )
    return StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)


def _mosaicml(stored: Path, workers: int, transform: Transform, repeats: int) -> Any:
    from streaming import Stream, StreamingDataLoader, StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            return transform(super().__getitem__(at))

    stream = Stream(local=str(stored / "mosaicml"), repeat=repeats)
    dataset = Images(streams=[stream], shuffle=True, batch_size=BATCH_SIZE)
    return StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)


LOADERS = {"litdata": _litdata, "mosaicml": _mosaicml}


def _import_peer(peer: str) -> None:
    if peer == "litdata":
        import litdata  # noqa: F401
    else:
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()  # of a run that was ended: the next would wait for it


def _endlessly(loader: Any) -> Iterator[int]:
    while True:
        for pixels, _ in loader:
            yield len(pixels)


def _state_file(peer: str, stored: Path) -> Path:
    return stored / f"{peer}-state.json"


def _write_state(peer: str, stored: Path, workers: int, share: float) -> int:
    """Go through a share of an epoch and write the loader's state. Returns the batches seen.

    Images are not decoded: the state does not depend on it.
    """
    loader = LOADERS[peer](stored, workers, _undecoded, 1)
    batches = iter(loader)
    steps = int(share * _num_images(stored)) // BATCH_SIZE
    for _ in range(steps):
        next(batches)
    _state_file(peer, stored).write_text(json.dumps(loader.state_dict()))
    return steps


def _first_batch(peer: str, stored: Path, workers: int, share: float) -> float:
    """Seconds from the loader's making to its first batch, after a share of the epoch if any."""
    start = time.perf_counter()
    loader = LOADERS[peer](stored, workers, _example, 1)
    if share:
        loader.load_state_dict(json.loads(_state_file(peer, stored).read_text()))
    pixels, _ = next(iter(loader))
    assert pixels.shape == (BATCH_SIZE, SIZE, SIZE, 3)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
