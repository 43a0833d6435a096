"""How fast images are packed: short side 256, quality 90, by two processes; and untouched.

    python benchmarks/build.py [--img2dataset PYTHON]

Side by side: the command `python -m shards build`; the bare work of as many processes, decoding,
shrinking and encoding JPEG bytes that lie in memory; webdataset's ShardWriter with Pillow as
documented, a range of images a process; img2dataset, reading the same files by their URLs, where
a Python is named that has it. Then packing untouched bytes beside copying the files. Starting and
ending does not count, but the start of the command has its own column: the time that it takes for
one image a process.

At the end: what the resizing does to the pixels, and the memory of a packing process.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import simplejpeg
import webdataset
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.images import (
    ROOT,
    add_image_options,
    build_command,
    repeated,
    run_quietly,
    source,
    write_source,
)
from benchmarks.side_by_side import (
    Result,
    add_common_options,
    machine_facts,
    ratio,
    report,
    take_turns,
)
from shards.images import shrink, target_size

SHORT_SIDE = 256
QUALITY = 90
SAMPLES_PER_SHARD = 1000  # the command's default
SAMPLE_MEMORY_S = 0.2

Work = Callable[[range], None]  # takes numbers of images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_image_options(parser, samples=4000)
    parser.add_argument("--workers", type=int, default=2, help="processes of each variant")
    parser.add_argument("--img2dataset", metavar="PYTHON", help="a Python that has img2dataset")
    add_common_options(parser)
    parser.set_defaults(repetitions=3)
    arguments = parser.parse_args()
    facts = machine_facts()
    num_samples, workers = arguments.samples, arguments.workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, data, facts["images"] = source(arguments, folder / "drawn")
        write_source(repeated(data, num_samples), folder / "all")
        write_source(repeated(data, workers), folder / "few")
        out = folder / "out"
        pack_all, keep_all = (
            build_command(images, folder / "all", out, SAMPLES_PER_SHARD, workers, resize_short)
            for resize_short in (256, 0)
        )
        pack_few, keep_few = (
            build_command(images, folder / "few", out, 1, workers, resize_short)
            for resize_short in (256, 0)
        )

        jpegs = [(images / image["file_name"]).read_bytes() for image in data["images"]]
        records = repeated(data, num_samples)

        def bare_work(numbers: range) -> None:
            _bare_work(jpegs, numbers)

        def with_webdataset(numbers: range) -> None:
            _write_shards(images, records, folder / "webdataset", numbers)

        def copy(numbers: range) -> None:
            _copy_files(images, records, folder / "copies", numbers)

        variants: dict[str, Callable[[], Result]] = {
            "capstream": lambda: _command(pack_all, pack_few, num_samples, out),
            "bare work": lambda: (_rate(bare_work, num_samples, workers), {}),
            # The slow ones take their time over a quarter of the images.
            "webdataset": lambda: (_rate(with_webdataset, num_samples // 4, workers), {}),
            "capstream, untouched": lambda: _command(keep_all, keep_few, num_samples, out),
            "copying the files": lambda: (_rate(copy, num_samples, workers), {}),
        }
        if arguments.img2dataset:
            urls = _url_list(images, records, num_samples // 4, folder / "urls.tsv")
            few_urls = _url_list(images, records, workers, folder / "few-urls.tsv")
            all_at_once, few = (
                _img2dataset(arguments.img2dataset, file, folder / "img2dataset", workers)
                for file in (urls, few_urls)
            )
            variants["img2dataset"] = lambda: _command(
                all_at_once, few, num_samples // 4, folder / "img2dataset"
            )
        measured = take_turns(variants, arguments.repetitions)
        rss, private = _peak_memory(pack_all, out)
        facts["PSNR to Lanczos, dB: ours, areas, areas of all pixels"] = _fidelity(jpegs)
    facts["workers"] = workers
    facts["images packed"] = num_samples
    facts["peak MB of a packing process"] = f"{rss / 1e6:.0f} ({private / 1e6:.0f} private)"
    ratios = {
        "capstream / bare work": (ratio(measured, 0, 1), 0.95),
        "capstream / webdataset": (ratio(measured, 0, 2), 2.5),
        "untouched / copying": (ratio(measured, 3, 4), 0.8),
    }
    if arguments.img2dataset:
        ratios["capstream / img2dataset"] = (ratio(measured, 0, 5), 3.5)
    report(facts, measured, ratios, arguments.json)


def _command(pack_all: list[str], pack_few: list[str], num_samples: int, out: Path) -> Result:
    start_s, seconds = _seconds(pack_few, out), _seconds(pack_all, out)
    others = {"start, s": start_s, "images/s with it": num_samples / seconds}
    return num_samples / (seconds - start_s), others


def _seconds(command: list[str], out: Path) -> float:
    """Wall-clock time of the whole command, its start and the closing of the data set included."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    run_quietly(command)
    return time.perf_counter() - start


def _rate(work: Work, num_images: int, workers: int) -> float:
    """Images/s of processes that do an equal share each, from the first start to the last end."""
    context = multiprocessing.get_context("fork")  # shares the images' bytes
    ready, done = context.Barrier(workers + 1), context.Barrier(workers + 1)

    def run(numbers: range) -> None:
        ready.wait()
        work(numbers)
        done.wait()

    cuts = [num_images * worker // workers for worker in range(workers + 1)]
    shares = [range(first, last) for first, last in pairwise(cuts)]
    processes = [context.Process(target=run, args=(share,)) for share in shares]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return num_images / seconds


def _bare_work(jpegs: list[bytes], numbers: range) -> None:
    cv2.setNumThreads(1)
    for number in numbers:
        jpeg = jpegs[number % len(jpegs)]
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        scale = min(1.0, SHORT_SIDE / min(height, width))
        size = round(width * scale), round(height * scale)
        pixels = simplejpeg.decode_jpeg(
            jpeg, "RGB", fastdct=False, fastupsample=False, min_height=size[1], min_width=size[0]
        )
        if pixels.shape[1::-1] != size:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "420", fastdct=False)


def _write_shards(images: Path, records: dict[str, Any], out: Path, numbers: range) -> None:
    captions: dict[int, list[str]] = {number: [] for number in numbers}
    for entry in records["annotations"]:
        if entry["image_id"] in captions:
            captions[entry["image_id"]].append(entry["caption"])
    out.mkdir(exist_ok=True)
    pattern = str(out / f"{numbers.start}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
        for number in numbers:
            with Image.open(images / records["images"][number]["file_name"]) as image:
                width, height = image.size
                scale = min(1.0, SHORT_SIDE / min(height, width))
                small = image.convert("RGB").resize((round(width * scale), round(height * scale)))
            encoded = io.BytesIO()
            small.save(encoded, "JPEG", quality=QUALITY)
            meta = json.dumps({"image_id": number, "captions": captions[number]}).encode()
            writer.write({"__key__": f"{number:012d}", "jpg": encoded.getvalue(), "json": meta})


def _copy_files(images: Path, records: dict[str, Any], out: Path, numbers: range) -> None:
    """Copy files, and see them to the disk as a build sees its tars there."""
    out.mkdir(exist_ok=True)
    for number in numbers:
        source = images / records["images"][number]["file_name"]
        shutil.copyfile(source, out / f"{number:012d}.jpg")
    os.sync()


def _url_list(images: Path, records: dict[str, Any], count: int, path: Path) -> Path:
    rows = [
        f"{(images / image['file_name']).as_uri()}\ta caption"
        for image in records["images"][:count]
    ]
    path.write_text("\n".join(["url\tcaption", *rows]))
    return path


def _img2dataset(python: str, urls: Path, out: Path, workers: int) -> list[str]:
    options = {
        "url_list": urls, "input_format": "tsv", "url_col": "url", "caption_col": "caption",
        "output_folder": out, "output_format": "webdataset", "processes_count": workers,
        "thread_count": 16, "image_size": SHORT_SIDE, "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True, "encode_quality": QUALITY,
        "number_sample_per_shard": SAMPLES_PER_SHARD // 2, "enable_wandb": False,
    }  # fmt: skip
    return [str(Path(python).with_name("img2dataset")), *(f"--{n}={v}" for n, v in options.items())]


def _fidelity(jpegs: list[bytes]) -> str:
    """Mean PSNR in dB, against Lanczos from the full image, of what our packing resizes to, of
    areas after the same DCT scaling, and of areas of all pixels. JPEG encoding is left out."""
    totals = np.zeros(3)
    for jpeg in jpegs:
        full = simplejpeg.decode_jpeg(jpeg, "RGB")
        height, width = target_size(*full.shape[:2], SHORT_SIDE)
        scaled = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=height, min_width=width)
        best = np.asarray(Image.fromarray(full).resize((width, height), Image.Resampling.LANCZOS))
        size = (width, height)
        areas = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (scaled, full)]
        for number, pixels in enumerate([shrink(scaled, height, width), *areas]):
            error = np.mean((pixels.astype(float) - best) ** 2)
            totals[number] += 10 * np.log10(255**2 / max(error, 1e-9))
    return ", ".join(f"{total / len(jpegs):.1f}" for total in totals)


def _peak_memory(command: list[str], out: Path) -> tuple[int, int]:
    """The most memory, in all and private, that a packing process takes: bytes.

    Measuring slows the work down, so this is a separate run.
    """
    shutil.rmtree(out, ignore_errors=True)
    rss = private = 0
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        parent = psutil.Process(running.pid)
        while running.poll() is None:
            for process in parent.children():
                try:
                    memory = process.memory_full_info()
                except psutil.Error:  # it has ended meanwhile
                    continue
                rss, private = max(rss, memory.rss), max(private, memory.uss)
            time.sleep(SAMPLE_MEMORY_S)
    return rss, private


if __name__ == "__main__":
    main()
