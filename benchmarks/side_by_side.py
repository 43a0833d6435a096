"""What the benchmarks share: measuring variants in turns, one table, the machine's facts."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

LIBRARIES = (
    "torch", "torchvision", "accelerate", "webdataset", "simplejpeg", "opencv-python-headless",
    "pillow", "numpy",
)  # fmt: skip

Result = tuple[float, dict[str, float]]  # images/s, and other figures by their titles


@dataclass
class Measured:
    """One variant's repetitions."""

    name: str
    images_per_s: list[float] = field(default_factory=list)
    others: list[dict[str, float]] = field(default_factory=list)  # other figures, by their titles

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_s)

    @property
    def other_medians(self) -> dict[str, float]:
        titles = self.others[0]
        return {title: statistics.median(row[title] for row in self.others) for title in titles}


def take_turns(variants: Mapping[str, Callable[[], Result]], repetitions: int) -> list[Measured]:
    """Run every variant once, then every one again: what slows the machine down slows all.

    Args:
        variants: each returns its images/s and, by title, other figures.
    """
    measured = {name: Measured(name) for name in variants}
    rounds = [name for _ in range(repetitions) for name in variants]
    for name in tqdm(rounds, "measuring", unit=" runs", leave=False):
        rate, others = variants[name]()
        measured[name].images_per_s.append(rate)
        measured[name].others.append(others)
    return list(measured.values())


def ratio(measured: Sequence[Measured], ours: int, other: int) -> float:
    """Ours over another's: the median of the rounds' quotients, for neighbours in time compare."""
    pairs = zip(measured[ours].images_per_s, measured[other].images_per_s, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def machine_facts() -> dict[str, Any]:
    """Processor, cores, library versions and date: a figure cannot be compared without them."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **versions,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=5, help="rounds; medians are shown")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def report(
    facts: dict[str, Any],
    measured: Sequence[Measured],
    ratios: Mapping[str, tuple[float, float | None]],
    as_json: bool,
) -> None:
    """Print the results.

    Args:
        ratios: the compared variants -> the ratio, and the target, if there is one.
    """
    if as_json:
        rows = [
            {"name": m.name, "median": m.median, "images_per_s": m.images_per_s, **m.other_medians}
            for m in measured
        ]
        values = {name: {"value": value, "target": low} for name, (value, low) in ratios.items()}
        print(json.dumps({"machine": facts, "variants": rows, "ratios": values}))
        return
    columns = list(dict.fromkeys(title for m in measured for title in m.other_medians))
    table = [["", "images/s", "lowest - highest", *columns]]
    for m in measured:
        span = f"{min(m.images_per_s):,.0f} - {max(m.images_per_s):,.0f}"
        others = m.other_medians
        rest = [f"{others[column]:,.4g}" if column in others else "" for column in columns]
        table.append([m.name, f"{m.median:,.0f}", span, *rest])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
    print()
    for name, (value, low) in ratios.items():
        print(f"{name}: {value:.2f}" + (f" (target: {low} or more)" if low else ""))
    print()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
