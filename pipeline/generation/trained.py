"""Checkpoints as captioners."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from pipeline.checkpoint.commit import CONFIG, TOKENIZER, check_checkpoint, load_model_state
from pipeline.config.parser import load_config
from pipeline.config.run import Config
from pipeline.generation.ensemble import Ensemble
from pipeline.model.captioner import Captioner
from shards.tokenizer import load_tokenizer, tokenizer_sha256


@dataclass(frozen=True)
class Trained:
    """A trained captioner, on the CPU and in eval mode, with what belongs to it.

    Args:
        config: of the run; of an ensemble's first checkpoint.
    """

    captioner: Captioner | Ensemble
    config: Config
    tokenizer: Tokenizer
    tokenizer_path: Path


def load_trained(checkpoint: Path, *others: Path) -> Trained:
    """Read a checkpoint folder, or several as an ensemble.

    Raises:
        ValueError: there is no checkpoint, or it is damaged; or the checkpoints of an ensemble have
            different vocabularies or image sizes.
    """
    first = _load_one(checkpoint)
    if not others:
        return first
    captioners = [first.captioner]
    for path in others:
        trained = _load_one(path)
        if tokenizer_sha256(trained.tokenizer_path) != tokenizer_sha256(first.tokenizer_path):
            raise ValueError(
                f"--checkpoint: {path}: was trained with another tokenizer than {checkpoint}; the "
                "checkpoints of an ensemble need the same one"
            )
        sizes = trained.config.data.image_size, first.config.data.image_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"--checkpoint: {path}: sees images of {sizes[0]} pixels, but {checkpoint} of "
                f"{sizes[1]}; the checkpoints of an ensemble need the same data.image_size"
            )
        captioners.append(trained.captioner)
    ensemble = Ensemble([member for member in captioners if isinstance(member, Captioner)])
    return Trained(ensemble.eval(), first.config, first.tokenizer, first.tokenizer_path)


def _load_one(checkpoint: Path) -> Trained:
    check_checkpoint(checkpoint)
    config = load_config(checkpoint / CONFIG)
    tokenizer = load_tokenizer(checkpoint / TOKENIZER)
    captioner = Captioner(config.model, tokenizer.get_vocab_size(), pretrained=False)
    captioner.load_state_dict(load_model_state(checkpoint))
    # The layout that training computes in, which rounds alike.
    captioner.to(memory_format=torch.channels_last)
    return Trained(captioner.eval(), config, tokenizer, checkpoint / TOKENIZER)
