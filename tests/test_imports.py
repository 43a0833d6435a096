"""Imports point one way, and the packing jobs do without torch."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Who may import whom inside the project; see docs/design.md.
LAYERS = [
    {"launcher_report"},
    {"config", "order", "images", "exits", "run_lock", "shares", "machine", "phases"},
    {"loader_server", "download"},
    {
        "cache",
        "places",
        "ahead",
        "data",
        "model",
        "decode",
        "loss",
        "optim",
        "metrics",
        "sheet",
        "checkpoint",
    },
    {"buffers", "loader", "generate", "processes", "watchdog", "commit_writer"},
    {"step", "evaluate", "caption"},
    {"monitor", "prepare", "progress", "stop_request"},
    {"train"},
    {"training"},
]
FROM_SHARDS = {"format", "tokenizer", "atomic", "images", "index_tars"}
KNOW_STORAGE = {"download", "places", "order"}
KNOW_ACCELERATE = {"progress", "processes", "train", "step", "evaluate"}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_shards_never_imports_pipeline_or_torch() -> None:
    for path in (ROOT / "shards").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & {"pipeline", "torch", "torchvision", "webdataset"}, path


def test_pipeline_imports_point_down() -> None:
    level = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    for path in (ROOT / "pipeline").rglob("*.py"):
        module = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        for name in imports_of(path):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package == "pipeline" and target != module:
                assert level[target] <= level[module], f"{path.name} imports {name}"
            if package == "shards":
                known = target in FROM_SHARDS or (target == "storage" and module in KNOW_STORAGE)
                assert known, f"{path.name} imports {name}"
            if package == "accelerate":
                assert module in KNOW_ACCELERATE, f"{path.name} imports {name}"


def test_a_packing_process_loads_no_torch() -> None:
    code = "import sys, shards.packer; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"
