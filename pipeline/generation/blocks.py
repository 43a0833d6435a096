"""Images to captions in blocks of a fixed size, so that no caption depends on its batch.

A matrix product or a convolution of another batch size takes another path through the numerical
libraries and rounds differently; a caption changes wherever two tokens are nearly tied. So every
batch is cut into blocks of a fixed number of images, and a block that is not full is filled up with
copies of its last image. A row of a block then has the same bits whatever stands in the other rows
and wherever in the block it stands (docs/log.md says how this was measured). The caption of an
image is thus the same for every batch size and for any number of processes.

Encoder and decoder always compute in the type of their weights here, also where the training around
them uses mixed precision: a checkpoint is captioned later as it was validated.

B images, N captions an image, T tokens at most, P grid positions, S image side in pixels
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch.nn.functional import pad

from pipeline.config.generation import GenerationConfig
from pipeline.generation.attention import attention_maps
from pipeline.generation.beam import beam_search
from pipeline.generation.captions import Captions
from pipeline.generation.constraints import Constraints
from pipeline.generation.ensemble import EncodedByAll, Ensemble
from pipeline.generation.sampling import greedy, keyed_noise, sample
from pipeline.model.captioner import Captioner
from pipeline.model.protocols import Decoder, Encoded
from shards.tokenizer import PAD, decode

# Images of a block. A GPU needs many rows to be busy; a CPU is nearly as fast with few, and one
# image costs as much as a block.
ENCODER_BLOCK = {"cpu": 8, "cuda": 64}
DECODER_BLOCK = {"cpu": 32, "cuda": 64}  # a multiple of the encoder's


class ScoredCaption(NamedTuple):
    """A caption of an image."""

    text: str
    score: float  # sum of log-probabilities in nats, or as `length_penalty` changes it


def generate(
    captioner: Captioner | Ensemble,
    images: torch.Tensor,
    ids: Sequence[object],
    tokenizer: Tokenizer,
    config: GenerationConfig,
) -> list[list[ScoredCaption]]:
    """Caption a batch of images.

    Args:
        captioner: in eval mode.
        images: (B, S, S, 3) uint8, on the captioner's device.
        ids: of the images; `sample` draws by them.
        tokenizer: of the captioner.
    Returns:
        For each image its captions, the best first.
    """
    if not len(images):
        return []
    constraints = Constraints.of(config, tokenizer, images.device)
    captions = generate_tokens(captioner, images, ids, constraints, config)
    return [
        [
            ScoredCaption(decode(tokenizer, tokens), score)
            for tokens, score in zip(*rows, strict=True)
            if score != -torch.inf
        ]
        for rows in zip(captions.tokens.tolist(), captions.scores.tolist(), strict=True)
    ]


@torch.no_grad()
def generate_tokens(
    captioner: Captioner | Ensemble,
    images: torch.Tensor,
    ids: Sequence[object],
    constraints: Constraints,
    config: GenerationConfig,
    *,
    with_attention: bool = False,
) -> Captions:
    """The captions of a batch of images as tokens, the best first.

    Args:
        captioner: in eval mode.
        images: as `generate`.
        ids: as `generate`.
        with_attention: whether to return where the decoder looked, if it looks anywhere.
    """
    size = DECODER_BLOCK[images.device.type]
    parts = []
    with torch.autocast(images.device.type, enabled=False):
        encoded = encode_blocks(captioner, images)
        for start in range(0, len(images), size):
            rows = _block_rows(start, size, len(images))
            block = take_rows(encoded, rows)
            found = search(captioner.decoder, block, [ids[r] for r in rows], constraints, config)
            if with_attention:
                maps = attention_maps(captioner.decoder, block, found.tokens)
                found = found._replace(attention=maps)
            num_real = min(size, len(images) - start)
            maps = found.attention
            parts.append(
                Captions(
                    found.tokens[:num_real],
                    found.log_probs[:num_real],
                    found.scores[:num_real],
                    None if maps is None else maps[:num_real],
                )
            )
    return _join(parts)


def search(
    decoder: Decoder | Any,
    encoded: Any,
    ids: Sequence[object],
    constraints: Constraints,
    config: GenerationConfig,
) -> Captions:
    """Generate captions of encoded images by the method of the configuration.

    Args:
        encoded: B images.
        ids: of the images.
    """
    if config.method == "greedy":
        return greedy(decoder, encoded, constraints)
    if config.method == "sample":
        noise = keyed_noise(config.seed, ids, config.num_captions, constraints.max_tokens)
        drawn = sample(decoder, encoded, constraints, config, noise.to(encoded.pooled.device))
        scores, order = drawn.scores.sort(dim=1, descending=True, stable=True)
        rows = order[..., None].expand_as(drawn.tokens)
        return Captions(drawn.tokens.gather(1, rows), drawn.log_probs.gather(1, rows), scores)
    return beam_search(decoder, encoded, constraints, config)


def encode_blocks(captioner: Captioner | Ensemble, images: torch.Tensor) -> Any:
    """Encode a batch of images block by block."""
    size = ENCODER_BLOCK[images.device.type]
    parts = []
    for start in range(0, len(images), size):
        encoded = captioner.encoder(images[_block_rows(start, size, len(images))])
        parts.append(take_rows(encoded, list(range(min(size, len(images) - start)))))
    return _concatenate(parts)


def whole_blocks(num_images: int, device: torch.device) -> int:
    """A number of images from `num_images` on that fills blocks, and so wastes no computation."""
    size = DECODER_BLOCK[device.type]
    return max(-(-num_images // size), 1) * size


def _block_rows(start: int, size: int, num_images: int) -> list[int]:
    """The images of a block; the last one fills it up."""
    return [min(row, num_images - 1) for row in range(start, start + size)]


def take_rows(encoded: Any, rows: list[int]) -> Any:
    """Some images of an encoded batch."""
    if isinstance(encoded, EncodedByAll):
        return EncodedByAll(take_rows(part, rows) for part in encoded)
    return Encoded(encoded.pooled[rows], None if encoded.grid is None else encoded.grid[rows])


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], EncodedByAll):
        return EncodedByAll(_concatenate(list(members)) for members in zip(*parts, strict=True))
    grids = [part.grid for part in parts]
    return Encoded(
        torch.cat([part.pooled for part in parts]), None if grids[0] is None else torch.cat(grids)
    )


def _join(parts: list[Captions]) -> Captions:
    """The captions of several blocks, padded to the longest."""
    length = max(part.tokens.shape[2] for part in parts)
    tokens = [pad(p.tokens, (0, length - p.tokens.shape[2]), value=PAD) for p in parts]
    log_probs = [pad(p.log_probs, (0, length - p.log_probs.shape[2])) for p in parts]
    maps = [
        pad(p.attention, (0, 0, 0, length - p.tokens.shape[2]))
        for p in parts
        if p.attention is not None
    ]
    return Captions(
        torch.cat(tokens),
        torch.cat(log_probs),
        torch.cat([part.scores for part in parts]),
        torch.cat(maps) if maps else None,
    )
