"""Image files captioned once more, with where the decoder looked for each token."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.evaluation.caption_formats import image_id
from pipeline.evaluation.image_files import read_image
from pipeline.generation.blocks import generate_tokens
from pipeline.generation.constraints import Constraints
from pipeline.generation.trained import Trained
from pipeline.model.decoders import DECODERS
from pipeline.observability.attention_panels import Attended
from shards.tokenizer import EOS, PAD, decode, readable


def check_attends(trained: Trained) -> None:
    """Raises ValueError if the decoder of a checkpoint looks at no positions of the image."""
    kind = trained.config.model.decoder.kind
    if DECODERS[kind].output != "grid":
        others = [name for name, decoder in DECODERS.items() if decoder.output == "grid"]
        raise ValueError(
            f"--attention: the decoder of this checkpoint, {kind}, has no attention; use a "
            f"checkpoint with one of {', '.join(others)}"
        )


def attended_images(trained: Trained, device: torch.device, paths: Sequence[str]) -> list[Attended]:
    """Caption images, and keep where the decoder looked.

    The best captions are those of `caption_images`, since they do not depend on the batch.

    Args:
        trained: no ensemble, and of a decoder that passes `check_attends`.
        paths: readable images.
    """
    if not paths:
        return []
    captioner, tokenizer = trained.captioner.to(device).eval(), trained.tokenizer
    generation = trained.config.generation
    pixels = np.stack([read_image(path, trained.config.data.image_size) for path in paths])
    ids = [image_id(Path(path).name) for path in paths]
    constraints = Constraints.of(generation, tokenizer, device)
    images = torch.from_numpy(pixels).to(device)
    found = generate_tokens(captioner, images, ids, constraints, generation, with_attention=True)
    assert found.attention is not None
    attended = []
    for image, tokens, maps in zip(pixels, found.tokens, found.attention, strict=True):
        best = [token for token in tokens[0].tolist() if token not in (EOS, PAD)]
        words = [_label(readable(tokenizer, token)) for token in best]
        weights = maps[0, : len(best)].cpu().numpy()
        attended.append(Attended(image, decode(tokenizer, best), words, weights))
    return attended


def _label(token: str) -> str:
    """A token without the open box that stands for the space before a BPE piece."""
    return token.removeprefix("\u2423") or token
