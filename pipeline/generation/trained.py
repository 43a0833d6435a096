"""A checkpoint, and captions of images by what it holds.

B images, S image side in pixels
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from pipeline.checkpoint.commit import CONFIG, TOKENIZER, check_checkpoint, load_model_state
from pipeline.config.parser import load_config
from pipeline.config.run import Config
from pipeline.generation.greedy import greedy
from pipeline.model.captioner import Captioner
from shards.tokenizer import decode, load_tokenizer


@dataclass(frozen=True)
class Trained:
    """A trained captioner, on the CPU and in eval mode, with what belongs to it."""

    captioner: Captioner
    config: Config
    tokenizer: Tokenizer
    tokenizer_path: Path


def load_trained(checkpoint: Path) -> Trained:
    """Read a checkpoint folder.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    check_checkpoint(checkpoint)
    config = load_config(checkpoint / CONFIG)
    tokenizer = load_tokenizer(checkpoint / TOKENIZER)
    captioner = Captioner(config.model, tokenizer.get_vocab_size(), pretrained=False)
    captioner.load_state_dict(load_model_state(checkpoint))
    return Trained(captioner.eval(), config, tokenizer, checkpoint / TOKENIZER)


@torch.no_grad()
def generate(
    captioner: Captioner, images: torch.Tensor, tokenizer: Tokenizer, max_tokens: int
) -> list[str]:
    """Caption a batch of images, greedily.

    Args:
        captioner: in eval mode.
        images: (B, S, S, 3) uint8, on the captioner's device.
    Returns:
        B captions.
    """
    tokens = greedy(captioner.decoder, captioner.encoder(images), max_tokens)
    return [decode(tokenizer, ids) for ids in tokens.tolist()]
