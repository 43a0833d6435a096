"""Captions and scores of a data set, over all ranks.

accelerate launch -m pipeline.evaluate --checkpoint DIR --shards DIR_OR_URL --out results.json
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from tokenizers import Tokenizer
from tqdm import tqdm

from pipeline.data.batch import ImageId, check_bad
from pipeline.data.dataset import EvalDataset
from pipeline.data.loader import eval_loader
from pipeline.distributed.fault_policy import FETCH_LIMIT_S, Phase
from pipeline.generation.trained import generate
from pipeline.model.captioner import Captioner
from pipeline.observability.contact_sheet import Captioned
from pipeline.runtime.world import World


@dataclass(frozen=True)
class Evaluation:
    """A captioned data set; complete on the main process, empty on the others."""

    captions: dict[ImageId, str]
    references: dict[ImageId, list[str]]
    pictures: list[Captioned]
    bad: list[str]  # damaged samples, left out

    def results(self) -> list[dict[str, Any]]:
        """COCO's own results format."""
        return [{"image_id": i, "caption": caption} for i, caption in self.captions.items()]


def evaluate(
    accelerator: Accelerator,
    world: World,
    captioner: Captioner,
    dataset: EvalDataset,
    tokenizer: Tokenizer,
    max_tokens: int,
    batch_size: int,
    workers: int,
    beat: Callable[..., None],
    num_pictures: int = 0,
    max_bad: float = 0.0,
) -> Evaluation:
    """Caption every image of a data set once, each rank its share.

    Args:
        captioner: the unwrapped model, on the accelerator's device; its mode is restored.
        beat: told of each phase, and how long it may take: `Watchdog.beat` of this round.
        num_pictures: keep so many of the pictures, for showing.
        max_bad: share of the samples, 0 to 1, that may prove damaged and be left out.
    Raises:
        TooManyBadError: more are damaged.
        RuntimeError: the ranks together did not caption each image.
    """
    loader = eval_loader(
        dataset,
        batch_size,
        world,
        workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    was_training = captioner.training
    captioner.eval()
    for buffer in captioner.buffers():  # ranks' own BatchNorm statistics: rank 0's count
        if accelerator.num_processes > 1:
            broadcast(buffer)
    rows: list[tuple[ImageId, str, list[str]]] = []
    bad: list[str] = []
    pictures: list[Captioned] = []
    progress = tqdm(
        total=len(dataset.shards),
        desc="captioning",
        unit=" images",
        leave=False,
        disable=not accelerator.is_main_process,
    )
    limit_s = FETCH_LIMIT_S if dataset.shards.cache else None
    beat(Phase.EVALUATE, limit_s)
    for batch in loader:
        beat(Phase.EVALUATE, limit_s)
        with accelerator.autocast():
            images = batch.images.to(accelerator.device, non_blocking=True)
            captions = generate(captioner, images, tokenizer, max_tokens)
        rows += zip(batch.ids, captions, batch.references, strict=True)
        bad += batch.bad
        for number in range(min(num_pictures - len(pictures), len(captions))):
            pixels = batch.images[number].numpy()
            pictures.append(Captioned(pixels, captions[number], batch.references[number][0]))
        done = len(captions) * accelerator.num_processes  # the others are about as far
        progress.update(min(done, len(dataset.shards) - progress.n))
    progress.close()
    captioner.train(was_training)
    beat(Phase.GATHER)
    gathered = gather_object(rows) if accelerator.num_processes > 1 else rows
    bad = gather_object(bad) if accelerator.num_processes > 1 else bad
    check_bad(len(bad), max_bad, len(dataset.shards), bad)
    unique = {image_id: (caption, refs) for image_id, caption, refs in gathered}
    if len(unique) + len(bad) != len(dataset.shards) or len(gathered) != len(unique):
        raise RuntimeError(
            f"{len(gathered)} captions of {len(unique)} images came together, of "
            f"{len(dataset.shards)} images in {dataset.shards.place}"
        )
    if not accelerator.is_main_process:
        return Evaluation({}, {}, [], [])
    ids = sorted(unique, key=str)  # one order, so that sums of scores round alike
    captions_of = {i: unique[i][0] for i in ids}
    return Evaluation(captions_of, {i: unique[i][1] for i in ids}, pictures, bad)
