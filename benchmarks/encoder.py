"""How fast a GPU trains the encoder alone: eager, captured as a CUDA graph, compiled.

    python benchmarks/encoder.py

Forward and backward of DenseNet121 at 224 pixels under bf16, in images/s, beside the limits of the
card: a copy in its memory and a matrix product in bf16.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.model import EncoderConfig
from pipeline.model.encoders.image_encoder import ImageEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[48, 256])
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--name", default="densenet121")
    parser.add_argument("--variants", nargs="+", default=["eager", "graph", "compiled"])
    arguments = parser.parse_args()
    print(json.dumps({"device": torch.cuda.get_device_name(), **limits()}), flush=True)
    for variant in arguments.variants:
        for size in arguments.batch_size:
            images = torch.randint(
                256, (size, arguments.image_size, arguments.image_size, 3),
                dtype=torch.uint8, device="cuda",
            )  # fmt: skip
            start = time.perf_counter()
            step = VARIANTS[variant](make_encoder(arguments.name), images)
            step()
            torch.cuda.synchronize()
            prepared_s = time.perf_counter() - start
            torch.cuda.reset_peak_memory_stats()
            seconds = median_s(step)
            row = {
                "variant": variant, "batch": size, "images/s": round(size / seconds, 1),
                "ms": round(1e3 * seconds, 2), "prepared in s": round(prepared_s, 1),
                "peak MB": torch.cuda.max_memory_allocated() // 10**6,
            }  # fmt: skip
            print(json.dumps(row), flush=True)


def make_encoder(name: str) -> ImageEncoder:
    torch.manual_seed(0)
    encoder = ImageEncoder(EncoderConfig(name=name), 1024).train().cuda()
    return encoder.to(memory_format=torch.channels_last)


def eager(encoder: ImageEncoder, images: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            pooled = encoder(images).pooled
        pooled.float().sum().backward()

    return step


def graph(encoder: ImageEncoder, images: torch.Tensor) -> Callable[[], None]:
    step = eager(encoder, images)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def compiled(encoder: ImageEncoder, images: torch.Tensor) -> Callable[[], None]:
    encoder.backbone = torch.compile(encoder.backbone, dynamic=False)
    return eager(encoder, images)


VARIANTS = {"eager": eager, "graph": graph, "compiled": compiled}


def median_s(step: Callable[[], None], repetitions: int = 15) -> float:
    for _ in range(3):
        step()
    times = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def limits() -> dict[str, float]:
    source = torch.randn(1 << 30, device="cuda").bfloat16()
    target = torch.empty_like(source)
    copy_s = median_s(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    product_s = median_s(lambda: torch.mm(a, b))
    return {
        "copy TB/s": round(2 * source.nbytes / copy_s / 1e12, 2),
        "bf16 TFLOP/s": round(2 * 8192**3 / product_s / 1e12),
    }


if __name__ == "__main__":
    main()
