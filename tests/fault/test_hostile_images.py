"""2,000 altered images: each is packed or named in quarantine, and none takes long."""

import contextlib
import io
import json
import multiprocessing
import random
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.shards import Scenes, run_shards

from shards.guard import IMAGE_CPU_S, bounded
from shards.images import ImagePolicy, RejectedImageError, pack_image

NUM_IMAGES = 2_000
SLOWEST_S = IMAGE_CPU_S

Mutation = Callable[[random.Random, bytes], bytes]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def good_images() -> list[bytes]:
    """One of each kind that cameras, scanners and the web give."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (60, 90, 3), np.uint8)
    large = Image.fromarray(np.repeat(np.repeat(noise, 3, 0), 3, 1))
    small = large.resize((90, 60))
    grey16 = Image.fromarray(rng.integers(0, 65535, (60, 90), np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [small.rotate(90 * turn) for turn in range(3)]
    animation = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return [
        encoded(large, "JPEG", quality=85),
        encoded(large, "JPEG", progressive=True, exif=exif),
        encoded(large.convert("L"), "JPEG"),
        encoded(large.convert("CMYK"), "JPEG"),
        encoded(large, "PNG"),
        encoded(small.convert("P"), "PNG"),
        encoded(small.convert("RGBA"), "PNG"),
        encoded(grey16, "PNG"),
        encoded(large, "WEBP"),
        encoded(small.convert("RGBA"), "WEBP", lossless=True),
        encoded(frames[0], "WEBP", **animation),
        encoded(frames[0], "PNG", **animation),
        encoded(frames[0], "GIF", **animation),
        encoded(small, "TIFF"),
        encoded(small, "BMP"),
        encoded(Image.new("RGB", (1, 1)), "JPEG"),
        encoded(Image.new("RGB", (1, 60_000)), "PNG"),
        encoded(Image.new("RGB", (60_000, 1)), "JPEG"),
        encoded(Image.new("RGB", (29_000, 1)), "JPEG"),
        encoded(Image.new("1", (13_000, 13_000)), "PNG"),
        png_of_lies(60_000, 60_000),
        png_of_lies(7_000, 7_000),
    ]


def png_of_lies(width: int, height: int) -> bytes:
    """A PNG whose header promises more than there is."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    altered = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def flip_header_bits(rng: random.Random, data: bytes) -> bytes:
    return flip_bits(rng, data[:200]) + data[200:]


def zero_a_block(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]


def repeat_a_part(rng: random.Random, data: bytes) -> bytes:
    start, stop = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:stop] + data[start:]


def leave(rng: random.Random, data: bytes) -> bytes:
    return data


MUTATIONS: tuple[Mutation, ...] = (
    truncate, flip_bits, flip_bits, flip_header_bits, zero_a_block, repeat_a_part, leave,
)  # fmt: skip


def altered_images(count: int) -> list[bytes]:
    rng = random.Random(0)
    good = good_images()
    return [rng.choice(MUTATIONS)(rng, good[number % len(good)]) for number in range(count)]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return altered_images(NUM_IMAGES)


def test_each_altered_image_is_packed_or_named(
    scenes: Scenes, tmp_path: Path, images: list[bytes]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    suffixes = (".jpg", ".png", ".webp", ".jpg", ".tif", "")  # mostly wrong
    names = [f"{number:05d}{suffixes[number % 6]}" for number in range(len(images))]
    for name, data in zip(names, images, strict=True):
        (folder / name).write_bytes(data)
    table = tmp_path / "captions.jsonl"
    lines = [json.dumps({"image": name, "caption": "a red circle"}) for name in names]
    table.write_text("\n".join(lines))
    done = run_shards(
        "build", "--images", folder, "--annotations", table, "--tokenizer", scenes.tokenizer,
        "--out", tmp_path / "out", "--resize-short", 64, "--workers", 2, "--max_rejected", 1,
        "--samples-per-shard", 250, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["images_packed"] + sum(report["rejected"].values()) == len(images)
    assert set(report["rejected"]) <= {
        "damaged image", "empty file", "format not allowed", "image too large", "too costly",
    }  # fmt: skip
    assert report["rejected"].get("too costly", 0) == 0  # bombs go by their header
    assert report["images_packed"] > len(images) // 5
    checked = run_shards("verify", tmp_path / "out")
    assert checked.returncode == 0, checked.stdout


def test_no_altered_image_takes_long(images: list[bytes]) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:  # which would break if one crashed it
        seconds = pool.submit(seconds_of_each, images).result()
    assert len(seconds) == NUM_IMAGES
    assert max(seconds) < SLOWEST_S


def seconds_of_each(images: list[bytes]) -> list[float]:
    policy = ImagePolicy(resize_short=64, quality=90)
    seconds = []
    for data in images:
        started = time.monotonic()
        with contextlib.suppress(RejectedImageError):
            bounded(lambda data=data: pack_image(data, policy))  # type: ignore[misc]
        seconds.append(time.monotonic() - started)
    return seconds
