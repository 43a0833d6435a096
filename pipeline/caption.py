"""Caption picture files.

python -m pipeline.caption --checkpoint DIR IMAGE... [--json] [--sheet FILE.png]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from pipeline.data.transforms import resize_center
from pipeline.generation.trained import Trained, generate, load_trained
from pipeline.observability.contact_sheet import Captioned, draw_sheet
from pipeline.runtime.errors import usage_errors
from pipeline.runtime.world import read_world
from shards.images import BadImageError, decode_any

BATCH_SIZE = 32


def read_picture(path: Path, size: int) -> np.ndarray:
    """A picture file of any allowed format as the (S, S, 3) uint8 square that the encoder sees.

    Raises:
        ValueError: the file is missing or not a whole picture.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        pixels = decode_any(path.read_bytes())
    except (OSError, BadImageError) as error:
        raise ValueError(f"{path}: {error}") from None
    square = np.empty((size, size, 3), dtype=np.uint8)
    resize_center(np.ascontiguousarray(pixels), square)
    return square


def caption_files(trained: Trained, paths: list[Path]) -> list[Captioned]:
    """Caption each file, in order. Raises ValueError as `read_picture`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    captioner = trained.captioner.to(device)
    pictures = [read_picture(path, trained.config.data.image_size) for path in paths]
    captions: list[str] = []
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = torch.from_numpy(np.stack(pictures[start : start + BATCH_SIZE])).to(device)
        captions += generate(captioner, batch, trained.tokenizer, trained.config.model.max_tokens)
    return [Captioned(*pair) for pair in zip(pictures, captions, strict=True)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.caption", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint's folder")
    parser.add_argument("images", type=Path, nargs="+", help="picture files")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--sheet", type=Path, help="also draw pictures and captions into this file")
    arguments = parser.parse_args()
    with usage_errors("caption", read_world()):
        if arguments.sheet and arguments.sheet.suffix.lower() not in (".png", ".jpg"):
            raise ValueError(f"--sheet: {arguments.sheet}: must end in .png or .jpg")
        pictures = caption_files(load_trained(arguments.checkpoint), arguments.images)
    for path, picture in zip(arguments.images, pictures, strict=True):
        if arguments.json:
            print(json.dumps({"image": str(path), "caption": picture.caption}))
        else:
            print(f"{path}: {picture.caption}")
    if arguments.sheet:
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(pictures).save(arguments.sheet)


if __name__ == "__main__":
    main()
