"""One start of the caption command: find the images, caption them, finish the output."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from pipeline.distributed.process_group import join_processes
from pipeline.evaluation.attended_images import attended_images, check_attends
from pipeline.evaluation.caption_files import BATCH_SIZE, caption_images
from pipeline.evaluation.caption_formats import (
    Destination,
    PrintedLines,
    TextFiles,
    count,
    image_id,
    text_path,
)
from pipeline.evaluation.caption_parts import PartFiles, fingerprint
from pipeline.evaluation.image_files import ImageList, read_image
from pipeline.generation.options import with_options
from pipeline.generation.trained import load_trained
from pipeline.observability.attention_panels import draw_attention
from pipeline.observability.contact_sheet import Captioned, draw_sheet
from pipeline.runtime.errors import usage_errors
from pipeline.runtime.world import World

PROGRESS_EVERY_S = 0.5
PROGRESS_EVERY_S_IN_LOGS = 30.0
SHEET_IMAGES = 64
ATTENTION_IMAGES = 16


class CaptionJob:
    """Images, a checkpoint and where the captions go.

    Args:
        arguments: of the command: `checkpoint`, `json`, `out`, `txt`, `sheet`, `attention`, and the
            options of generation.
    Raises:
        ValueError: the checkpoint is unusable, or has no attention to draw; images share a name in
            the output, or an output exists that belongs to another checkpoint or other images.
    """

    def __init__(self, arguments: argparse.Namespace, images: ImageList, world: World) -> None:
        self._world = world
        self._images = images
        self._sheet: Path | None = arguments.sheet
        self._attention: Path | None = arguments.attention
        trained = load_trained(*arguments.checkpoint)
        if self._attention:
            check_attends(trained)
        self._trained = replace(trained, config=with_options(trained.config, arguments))
        self._size = self._trained.config.data.image_size
        self._destination = self._open_destination(arguments)

    def _open_destination(self, arguments: argparse.Namespace) -> Destination:
        keep = SHEET_IMAGES if arguments.sheet else ATTENTION_IMAGES if arguments.attention else 0
        if arguments.txt:
            self._images.check_unique(text_path, "text file")
            return TextFiles(self._images)
        if not arguments.out:
            return PrintedLines(arguments.json, keep)
        if arguments.out.suffix.lower() == ".json":
            self._images.check_unique(image_id, "image_id")
        generation = self._trained.config.generation
        made_by = fingerprint(arguments.checkpoint, generation)
        return PartFiles(arguments.out, made_by, self._images, keep)

    def run(self) -> int:
        """Caption. Returns the exit code: 1 if an image could not be read, 2 for unusable input."""
        if self._destination.earlier:
            said, num_unreadable = self._destination.earlier
            tell(self._world, said)
            return 1 if num_unreadable else 0
        accelerator = join_processes(self._world)
        with usage_errors("caption", self._world):
            _check_same_images(accelerator, self._images)
            self._destination.open(self._world, accelerator.wait_for_everyone)
        num_unreadable = self._caption_share(accelerator)
        if accelerator.num_processes > 1:
            num_unreadable = sum(gather_object([num_unreadable]))
        accelerator.wait_for_everyone()
        if self._world.is_main:
            said = self._destination.finish(num_unreadable)
            if self._sheet:
                self._draw_sheet(self._sheet)
            if self._attention:
                self._draw_attention(self._attention, accelerator.device)
            if num_unreadable:
                said += f"; {count(num_unreadable, 'image')} could not be read"
            tell(self._world, said)
        accelerator.wait_for_everyone()  # the launcher ends all as soon as one ends with code 1
        accelerator.end_training()
        return 1 if num_unreadable else 0

    def _caption_share(self, accelerator: Accelerator) -> int:
        """Caption this rank's images. Returns how many could not be read."""
        num_unreadable = 0
        on_terminal = sys.stderr.isatty()
        lines_show_progress = isinstance(self._destination, PrintedLines) and sys.stdout.isatty()
        progress = tqdm(
            total=len(self._images),
            desc="captioning",
            unit=" images",
            leave=False,
            mininterval=PROGRESS_EVERY_S if on_terminal else PROGRESS_EVERY_S_IN_LOGS,
            disable=not self._world.is_main or lines_show_progress,
        )
        for batch in caption_images(
            self._trained,
            accelerator.device,
            self._images,
            self._world,
            self._destination.captioned,
        ):
            for path, reason in batch.unreadable:
                tqdm.write(f"{path}: {reason}", file=sys.stderr)
            num_unreadable += len(batch.unreadable)
            self._destination.write(batch.captions)
            done = BATCH_SIZE * self._world.world_size  # the other ranks are about as far
            progress.update(min(done, len(self._images) - progress.n))
        progress.close()
        return num_unreadable

    def _draw_sheet(self, path: Path) -> None:
        images = [
            Captioned(read_image(image, self._size), caption)
            for image, caption in self._destination.first(SHEET_IMAGES)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(images).save(path)

    def _draw_attention(self, path: Path, device: torch.device) -> None:
        paths = [image for image, _ in self._destination.first(ATTENTION_IMAGES)]
        attended = attended_images(self._trained, device, paths)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_attention(attended).save(path)


def _check_same_images(accelerator: Accelerator, images: ImageList) -> None:
    """Raises ValueError unless all ranks found the same images."""
    if accelerator.num_processes == 1:
        return
    found = gather_object([(len(images), images.sha256)])
    if len(set(found)) > 1:
        numbers = ", ".join(f"{number:,}" for number, _ in found)
        raise ValueError(
            f"the processes found different images ({numbers}); start again once the folders no "
            "longer change, or give a list with --from"
        )


def tell(world: World, text: str) -> None:
    """A line for people, on stderr: stdout is for captions."""
    if world.is_main:
        print(f"caption: {text}", file=sys.stderr, flush=True)
