"""Evaluation: all ranks together caption a data set, each rank its share of the images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from tqdm import tqdm

from pipeline.config.generation import GenerationConfig
from pipeline.data.batch import EvalBatch, ImageId, check_bad
from pipeline.data.dataset import EvalDataset
from pipeline.data.loader import eval_loader
from pipeline.distributed.phases import Phase
from pipeline.distributed.time_limits import FETCH_LIMIT_S
from pipeline.distributed.watchdog import Watchdog
from pipeline.generation.blocks import generate
from pipeline.generation.ensemble import Ensemble
from pipeline.model.captioner import Captioner
from pipeline.observability.contact_sheet import Captioned
from pipeline.runtime.world import World

Row = tuple[ImageId, str, list[str]]  # an image's id, generated caption and reference captions


@dataclass(frozen=True)
class EvaluationTask:
    """What an evaluation captions, and in which portions.

    Args:
        dataset: its images are captioned; its tokenizer is the captioner's.
        generation: how the captions are generated.
        batch_size: images that a process loads at once. The captions do not depend on it.
        workers: loader workers of each process.
        max_bad: share of the samples, 0 to 1, that may be bad; they are left out.
        num_shown: how many images to return with their captions, for display.
    """

    dataset: EvalDataset
    generation: GenerationConfig
    batch_size: int
    workers: int
    max_bad: float = 0.0
    num_shown: int = 0


@dataclass(frozen=True)
class Evaluation:
    """A captioned data set; complete on the main process, empty on the others."""

    captions: dict[ImageId, str]
    references: dict[ImageId, list[str]]
    shown: list[Captioned]  # the first images of the main process, with their captions
    bad: list[str]  # a message for each bad sample that was left out

    def results(self) -> list[dict[str, Any]]:
        """The captions in COCO's results format."""
        return [{"image_id": i, "caption": caption} for i, caption in self.captions.items()]


def evaluate(
    accelerator: Accelerator,
    world: World,
    captioner: Captioner | Ensemble,
    task: EvaluationTask,
    watchdog: Watchdog,
    step: int = 0,
) -> Evaluation:
    """Caption every image of a data set once. All ranks call this together.

    Args:
        accelerator: of this process.
        world: of this process.
        captioner: the unwrapped model, on the accelerator's device. It is set to eval mode and
            afterwards back to the mode that it was in.
        task: what to caption.
        watchdog: of this process.
        step: training steps done so far, for the watchdog.
    Returns:
        The captions of all ranks on the main process.
    Raises:
        TooManyBadError: the share of bad samples exceeds `task.max_bad`.
        RuntimeError: the ranks together did not caption each image exactly once.
    """
    was_training = captioner.training
    captioner.eval()
    shards = task.dataset.shards
    limit_s = FETCH_LIMIT_S if shards.cache else None
    with watchdog.phase(Phase.EVALUATE, step, limit_s):
        if world.world_size > 1:
            for buffer in captioner.buffers():  # each rank has BatchNorm statistics; use rank 0's
                broadcast(buffer)
        pin_memory = accelerator.device.type == "cuda"
        loader = eval_loader(
            task.dataset, task.batch_size, world, task.workers, pin_memory=pin_memory
        )
        batches = iter(loader)  # starts the loader workers

    def in_phase() -> Iterator[EvalBatch]:
        """The batches; each is loaded and captioned within the time limit of the phase."""
        while True:
            with watchdog.phase(Phase.EVALUATE, step, limit_s):
                batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    try:
        rows, bad, shown = _caption_share(accelerator, world, captioner, task, in_phase())
    finally:
        captioner.train(was_training)
    if world.world_size > 1:
        with watchdog.phase(Phase.GATHER, step):
            rows, bad = gather_object(rows), gather_object(bad)
    num_images = len(shards)
    check_bad(len(bad), task.max_bad, num_images, bad)
    by_id = {image_id: (caption, references) for image_id, caption, references in rows}
    if len(by_id) + len(bad) != num_images or len(rows) != len(by_id):
        raise RuntimeError(
            f"the ranks gathered {len(rows):,} captions of {len(by_id):,} images, but "
            f"{shards.location} has {num_images:,} images ({len(bad):,} of them bad)"
        )
    if not world.is_main:
        return Evaluation({}, {}, [], [])
    ids = sorted(by_id, key=str)  # always in one order, so that sums of scores round alike
    return Evaluation({i: by_id[i][0] for i in ids}, {i: by_id[i][1] for i in ids}, shown, bad)


def _caption_share(
    accelerator: Accelerator,
    world: World,
    captioner: Captioner | Ensemble,
    task: EvaluationTask,
    batches: Iterable[EvalBatch],
) -> tuple[list[Row], list[str], list[Captioned]]:
    """Caption this rank's share. Returns its rows, its bad samples and the images to show."""
    shards = task.dataset.shards
    rows: list[Row] = []
    bad: list[str] = []
    shown: list[Captioned] = []
    progress = tqdm(
        total=len(shards),
        desc="captioning",
        unit=" images",
        leave=False,
        disable=not world.is_main,
    )
    for batch in batches:
        images = batch.images.to(accelerator.device, non_blocking=True)
        found = generate(captioner, images, batch.ids, shards.tokenizer, task.generation)
        captions = [best.text for best, *_ in found]
        rows += zip(batch.ids, captions, batch.references, strict=True)
        bad += batch.bad
        can_show = 0 if shards.features else task.num_shown - len(shown)
        for number in range(min(can_show, len(captions))):
            pixels = batch.images[number].numpy()
            shown.append(Captioned(pixels, captions[number], batch.references[number][0]))
        done = len(captions) * world.world_size  # the other ranks are about as far
        progress.update(min(done, len(shards) - progress.n))
    progress.close()
    return rows, bad, shown
