"""Imports point one way, room by room, and the packing jobs do without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The rooms of pipeline/ by rank: a room imports rooms of lower ranks (docs/architecture.md).
RANKS = [
    {"runtime", "config", "metrics"},
    {"data", "remote", "model", "distributed", "checkpoint"},
    {"generation", "objectives"},
    {"evaluation", "observability"},
    {"training"},
]
COMMANDS = len(RANKS)  # what stands directly in pipeline/ may import every room

# Between rooms of one rank: who imports whom.
WITHIN_A_RANK = {
    ("data", "remote"),  # the reader opens shards through the cache
    ("evaluation", "observability"),  # captioned images, and the contact sheet of `caption`
}

# Third-party packages that only some rooms may know.
KNOWS = {
    "accelerate": {"distributed", "training", "evaluation", "checkpoint", "commands"},
    "torch": {
        "data", "remote", "model", "distributed", "checkpoint", "generation", "objectives",
        "evaluation", "observability", "training", "commands",
    },
    "torchvision": {"model"},
}  # fmt: skip
ONLY = {  # rooms that know these third-party packages and no others
    "model": {"torch", "torchvision", "timm", "safetensors"},
    "objectives": {"torch"},
    "generation": {"torch", "tokenizers"},
}


def imports_of(path: Path) -> set[str]:
    """Absolute names of all that a file imports, `from a import b` as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "pipeline").parts
    return parts[0] if len(parts) > 1 else "commands"


def files() -> list[Path]:
    return sorted((ROOT / "pipeline").rglob("*.py"))


def rank_of(room: str) -> int:
    if room == "commands":
        return COMMANDS
    return next(rank for rank, rooms in enumerate(RANKS) if room in rooms)


def test_every_room_has_a_rank() -> None:
    rooms = {room_of(path) for path in files()} - {"commands"}
    assert rooms == set.union(*RANKS)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_to_lower_ranks(path: Path) -> None:
    room = room_of(path)
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "pipeline":
            target = rest.split(".")[0]
            if target != room:
                allowed = rank_of(target) < rank_of(room) or (room, target) in WITHIN_A_RANK
                assert allowed, f"{room} must not import {name}"
        elif top in KNOWS:
            assert room in KNOWS[top], f"{room} must not import {name}"
        if room in ONLY and top not in sys.stdlib_module_names:
            known = ONLY[room] | {"pipeline", "shards"}
            assert top in known, f"{room} must not import {name}"


def test_shards_never_imports_pipeline_or_torch() -> None:
    for path in (ROOT / "shards").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & {"pipeline", "torch", "torchvision", "webdataset"}, path


def test_a_packing_process_loads_no_torch() -> None:
    code = "import sys, shards.packer; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


# Imports all modules of the project in a fresh process, and before them what they import from
# elsewhere, because libraries do act when imported. Prints what differs afterwards.
IMPORT_EVERYTHING = """
import atexit, importlib, multiprocessing.forkserver, os, signal, sys, threading
import psutil

def state():
    import cv2
    return {
        "exit handlers": atexit._ncallbacks(),
        "signal handlers": [signal.getsignal(n) for n in signal.valid_signals()],
        "environment": dict(os.environ),
        "import path": list(sys.path),
        "threads": threading.enumerate(),
        "child processes": psutil.Process().children(),
        "OpenCV's threads": cv2.getNumThreads(),
        "fork server's modules": list(multiprocessing.forkserver._forkserver._preload_modules),
    }

foreign, own = (names.split(",") for names in sys.argv[1:])
for name in foreign:
    importlib.import_module(name)
before = state()
for name in own:
    importlib.import_module(name)
after = state()
print({what: (before[what], after[what]) for what in before if before[what] != after[what]})
"""


def test_nothing_acts_when_imported() -> None:
    """Loader workers and the console command import modules of which they use a part only."""
    paths = [path for top in ("pipeline", "shards") for path in (ROOT / top).rglob("*.py")]
    own, foreign = [], {"cv2"}
    for path in paths:
        if path.name != "__main__.py":
            own.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                foreign.add(node.module)
            elif isinstance(node, ast.Import):
                foreign |= {alias.name for alias in node.names}
    foreign = {name for name in foreign if name.split(".")[0] not in ("pipeline", "shards")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, ",".join(sorted(foreign)), ",".join(own)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "{}"
