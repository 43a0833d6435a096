"""One start of the caption command: find the images, caption them, finish the output."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from shards.messages import counted

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
        if arguments.txt:
            self._images.check_unique(text_path, "text file")
            return TextFiles(self._images)
        if not arguments.out:
            return PrintedLines(arguments.json, SHEET_IMAGES)
        if arguments.out.suffix.lower() == ".json":
            self._images.check_unique(image_id, "image_id")
        generation = self._trained.config.generation
        made_by = fingerprint(arguments.checkpoint, generation)
        return PartFiles(arguments.out, made_by, self._images, SHEET_IMAGES)

    def run(self) -> int:
        """Caption. Returns the exit code: 1 if an image could not be read, 2 for unusable input."""
        if self._destination.earlier:
            said, num_unreadable = self._destination.earlier
            if self._sheet or self._attention:
                accelerator = join_processes(self._world)
                self._draw(accelerator)
                accelerator.end_training()
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
        said = ""
        if self._world.is_main:
            said = self._destination.finish(num_unreadable)
            if num_unreadable:
                said += f"; {counted(num_unreadable, 'image')} could not be read"
        self._draw(accelerator)
        tell(self._world, said)
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

    def _draw(self, accelerator: Accelerator) -> None:
        """Draw what was asked for on the main process; the others wait.

        The launcher would end all of them as soon as one ends with code 1.
        """
        if self._world.is_main and self._sheet:
            images = [Captioned(pixels, text) for _, text, pixels in self._first(SHEET_IMAGES)]
            self._sheet.parent.mkdir(parents=True, exist_ok=True)
            draw_sheet(images).save(self._sheet)
        if self._world.is_main and self._attention:
            paths = [path for path, _, _ in self._first(ATTENTION_IMAGES)]
            attended = attended_images(self._trained, accelerator.device, paths)
            self._attention.parent.mkdir(parents=True, exist_ok=True)
            draw_attention(attended).save(self._attention)
        accelerator.wait_for_everyone()

    def _first(self, count: int) -> Iterator[tuple[str, str, np.ndarray]]:
        """The first captioned images: path, caption, pixels (S, S, 3) uint8.

        One that cannot be read now is named and left out: it was captioned earlier.
        """
        for path, caption in self._destination.first(count):
            try:
                yield path, caption, read_image(path, self._size)
            except ValueError as error:
                print(f"{path}: not drawn: {error}", file=sys.stderr)


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
