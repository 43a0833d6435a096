"""Whether stored features are those that an encoder would compute."""

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import nn

from pipeline.config.run import Config
from pipeline.data.reader import ShardFolder
from pipeline.generation.ensemble import Ensemble
from pipeline.model.captioner import Captioner
from pipeline.model.encoders.image_encoder import ImageEncoder, encode_black
from shards.format.features import FeaturePolicy


def weights_sha256(backbone: nn.Module) -> str:
    """The sha256 of a network's weights and buffers, with their names and types."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@torch.no_grad()
def feature_shape(encoder: ImageEncoder, image_size: int) -> tuple[int, ...]:
    """Shape of the features of an image: (P, F) or (F,).

    Raises:
        ValueError: the backbone does not accept images of this size, or has no grid.
    """
    return tuple(encode_black(encoder, image_size).shape[1:])


def check_features(
    shards: ShardFolder, captioner: Captioner | Ensemble, image_size: int, whose: str
) -> None:
    """Refuse features that the captioner's own backbone would not give for the images.

    Of an ensemble, every member must have this backbone.

    Args:
        shards: a data set; one of images always fits.
        captioner: with the backbone's weights.
        image_size: S, of its configuration.
        whose: names the captioner in errors, such as the checkpoint's folder, or `this run`.
    Raises:
        ValueError: says what differs.
    """
    policy = shards.features
    if policy is None:
        return
    for member in captioner.captioners if isinstance(captioner, Ensemble) else (captioner,):
        _check_member(shards, policy, member, image_size, whose)


def check_frozen(shards: ShardFolder, encoder: ImageEncoder) -> None:
    """Refuse to train a backbone on features, through which no gradient reaches it.

    Raises:
        ValueError: the data set holds features, and a part of the backbone is trained.
    """
    if shards.features and encoder.is_tuned():
        raise ValueError(
            f"{shards.location}: holds features of a frozen backbone, but this run trains the "
            "backbone; set model.encoder.tune to `none`, or use the shards of images"
        )


def _check_member(
    shards: ShardFolder, policy: FeaturePolicy, captioner: Captioner, image_size: int, whose: str
) -> None:
    encoder = captioner.encoder
    mean, std = _normalisation(encoder)
    wanted = {
        "encoder": ("model.encoder.name", encoder.name),
        "output": ("model.decoder.kind", encoder.backbone.output),
        "image_size": ("data.image_size", image_size),
        "mean": ("the version of the backbone's library", mean),
        "std": ("the version of the backbone's library", std),
    }
    for part, (setting, value) in wanted.items():
        _compare(shards, part, value, setting, whose)
    _compare(shards, "shape", feature_shape(encoder, image_size), "model.encoder.grid", whose)
    if policy.weights_sha256 != weights_sha256(encoder.backbone):
        raise ValueError(
            f"{shards.location}: its features were made with other weights of "
            f"{policy.encoder} than those of {whose}; change model.encoder.weights, or make the "
            "features again with `python -m pipeline.features`"
        )


def _compare(shards: ShardFolder, part: str, wanted: object, setting: str, whose: str) -> None:
    found = getattr(shards.features, part)
    if found not in (wanted, None):
        raise ValueError(
            f"{shards.location}: its features were made with {part} {found}, but {whose} has "
            f"{wanted}; change {setting}, or make the features again with "
            "`python -m pipeline.features`"
        )


def _normalisation(encoder: ImageEncoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std of the encoder's weights or checkpoint, without float32's last digits."""
    mean, std = (
        tuple(round(value, 6) for value in part.flatten().tolist())
        for part in (encoder.mean, encoder.std)
    )
    return mean, std


def policy_of(
    encoder: ImageEncoder,
    config: Config,
    source: ShardFolder,
    dtype: Literal["float16", "float32"],
    views: int,
    flip: bool,
) -> FeaturePolicy:
    """How the features of a data set will be made."""
    mean, std = _normalisation(encoder)
    return FeaturePolicy(
        encoder=encoder.name,
        weights_sha256=weights_sha256(encoder.backbone),
        output=encoder.backbone.output,
        shape=feature_shape(encoder, config.data.image_size),
        dtype=dtype,
        image_size=config.data.image_size,
        views=views,
        min_crop=config.data.min_crop,
        flip=flip,
        seed=config.seed,
        order_digest=source.manifest.order_digest,
        mean=mean,
        std=std,
    )
