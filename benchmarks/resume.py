"""How long a run waits for its first batch: from a cold start, and at 90 % of an epoch.

    python benchmarks/resume.py [--peers PYTHON]

Each figure is a process of its own from its first line to its first batch, the libraries' import
included, since that is what a user waits for; and, apart, from the loader's making on. webdataset
can only resume by reading all earlier samples again. litdata and MosaicML Streaming, where a
Python is named that has them, load a state that their loaders gave there. Files are in the page
cache for all.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.batches import BATCH_SIZE, SIZE

WORKERS = 2
SHARE = 0.9  # of the epoch, already seen
TARGET = 1.2  # the wait at 90 % over that of a cold start, at the most
VARIANTS = ("capstream", "webdataset")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # variant, shards, share
    known, _ = parser.parse_known_args()
    if known.one:
        variant, shards, share = known.one
        print(json.dumps(_first_batch(variant, Path(shards), float(share))))
        return
    _compare(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    from benchmarks.images import add_image_options, make_shards
    from benchmarks.peers import PEERS, add_peers_option, chosen_peers
    from benchmarks.side_by_side import add_common_options, machine_facts

    add_image_options(parser, samples=6000)
    add_peers_option(parser)
    add_common_options(parser)
    arguments = parser.parse_args()
    facts = machine_facts()
    variants = list(VARIANTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards, facts["images"] = make_shards(arguments, folder, 250, WORKERS)
        peers = chosen_peers(arguments.peers, folder / "peers")
        if peers:
            facts.update(peers.store(shards))
            for peer in PEERS.values():
                peers.run("state", peer, workers=WORKERS, share=SHARE)
            variants += PEERS
        cases = [(variant, share) for variant in variants for share in (0.0, SHARE)]
        waits: dict[tuple[str, float], list[tuple[float, float]]] = {case: [] for case in cases}
        for variant, share in tqdm(
            cases * arguments.repetitions, "measuring", unit=" runs", leave=False
        ):
            start = time.perf_counter()
            if peers and variant in PEERS:
                loading = peers.run("first-batch", PEERS[variant], workers=WORKERS, share=share)
            else:
                loading = _run(variant, share, shards)
            waits[variant, share].append((time.perf_counter() - start, float(loading)))
    rows = []
    for (variant, share), seconds in waits.items():
        whole, loading = (statistics.median(column) for column in zip(*seconds, strict=True))
        rows.append({"variant": variant, "share": share, "whole_s": whole, "loading_s": loading})
    ratios = {
        variant: statistics.median(
            late[1] / cold[1]
            for late, cold in zip(waits[variant, SHARE], waits[variant, 0.0], strict=True)
        )
        for variant in variants
    }
    if arguments.json:
        print(json.dumps({"machine": facts, "variants": rows, "ratios": ratios}))
        return
    for row in rows:
        print(f"{row['variant']:<18} at {row['share']:4.0%}: {row['loading_s']:6.2f} s from the "
              f"loader's making, {row['whole_s']:6.2f} s from the process's start")  # fmt: skip
    for variant, value in ratios.items():
        target = f" (target: {TARGET} or less)" if variant == "capstream" else ""
        print(f"{variant}: at {SHARE:.0%} {value:.2f} times a cold start{target}")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))


def _run(variant: str, share: float, shards: Path) -> float:
    """Seconds from the loader's making to the first batch, in a process of its own."""
    command = [sys.executable, __file__, "--one", variant, str(shards), str(share)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def _first_batch(variant: str, shards: Path, share: float) -> float:
    """Make a loader with its workers and take one batch. Returns the seconds that took."""
    if variant == "capstream":
        from benchmarks.images import trainer_batches
        from pipeline.config.data import DataConfig
        from pipeline.data.reader import ShardFolder
        from pipeline.data.worker_processes import start_worker_server

        start_worker_server()  # as train.py does, while the model is made
        start = time.perf_counter()
        folder = ShardFolder(shards)
        config = DataConfig(image_size=SIZE, global_batch_size=BATCH_SIZE, workers=WORKERS)
        step = int(share * len(folder)) // BATCH_SIZE
        batch = next(trainer_batches(folder, config, first_step=step))
        assert len(batch.ids) == BATCH_SIZE
        return time.perf_counter() - start
    from benchmarks.loader import webdataset_batches

    start = time.perf_counter()
    batches = webdataset_batches(shards, workers=WORKERS)
    total = len(list(shards.glob("*.tar"))) * 250
    for _ in range(int(share * total) // BATCH_SIZE + 1):
        size = next(batches)
    assert size > 0
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
