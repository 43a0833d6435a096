"""litdata and MosaicML Streaming as variants of a benchmark, in a separate environment.

They are no dependency of Capstream: --peers names a Python that has them installed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PEERS = {"litdata": "litdata", "MosaicML Streaming": "mosaicml"}  # title -> name of its jobs
SCRIPT = Path(__file__).with_name("loader_peers.py")


def add_peers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peers", metavar="PYTHON", help="a Python that has litdata and mosaicml-streaming"
    )


class Peers:
    """The shards in the peers' formats, and what is measured on them by the peers' Python."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder

    def store(self, shards: Path) -> dict[str, str]:
        """Store the images of `shards`. Returns the versions of the peers and of their torch."""
        self.folder.mkdir()
        return dict(self.run("store", "all", shards=shards))

    def run(self, job: str, peer: str, **options: object) -> Any:
        """Run a job of the script in a separate process. Returns its answer."""
        flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        command = [self.python, str(SCRIPT), job, peer, "--stored", str(self.folder), *flags]
        # The peers' locks and caches go with the folder.
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])  # the peers may have printed before


def chosen_peers(python: str | None, folder: Path) -> Peers | None:
    """The peers, if a Python was named; else says that they are left out."""
    if python is None:
        names = " and ".join(PEERS)
        print(f"{names} are left out: --peers names a Python that has them", file=sys.stderr)
        return None
    return Peers(python, folder)
