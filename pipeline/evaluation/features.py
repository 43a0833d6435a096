"""Whether stored features are those that an encoder would compute."""

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import nn

from pipeline.config.run import Config
from pipeline.data.reader import ShardFolder
from pipeline.data.stored_features import FeaturePolicy
from pipeline.generation.ensemble import Ensemble
from pipeline.model.captioner import Captioner
from pipeline.model.encoders.image_encoder import ImageEncoder


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
    """Shape of the features of an image: (P, F) or (F,)."""
    black = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    return tuple(encoder.features(black.to(encoder.mean.device)).shape[1:])


def check_features(
    shards: ShardFolder, captioner: Captioner | Ensemble, image_size: int, whose: str
) -> None:
    """Refuse features that the captioner's own backbone would not give for the images.

    Of an ensemble, every member must have this backbone.

    Args:
        shards: a data set; one of images always fits.
        captioner: with the backbone's weights.
        image_size: S, of its configuration.
        whose: names the captioner in errors, such as the checkpoint's folder.
    Raises:
        ValueError: says what differs.
    """
    policy = shards.features
    if policy is None:
        return
    for member in captioner.captioners if isinstance(captioner, Ensemble) else (captioner,):
        _check_member(shards, policy, member, image_size, whose)


def _check_member(
    shards: ShardFolder, policy: FeaturePolicy, captioner: Captioner, image_size: int, whose: str
) -> None:
    encoder = captioner.encoder
    if encoder.is_tuned():
        raise ValueError(
            f"{shards.location}: holds features of a frozen backbone, but {whose} trains it; set "
            "model.encoder.tune to `none`, or use the shards of images"
        )
    expected: dict[str, object] = {
        "encoder": encoder.name,
        "output": encoder.backbone.output,
        "image_size": image_size,
    }
    for name, value in expected.items():
        if getattr(policy, name) != value:
            raise ValueError(_differs(shards, name, getattr(policy, name), value, whose))
    shape = feature_shape(encoder, image_size)
    if policy.shape != shape:
        raise ValueError(_differs(shards, "shape", policy.shape, shape, whose))
    if policy.weights_sha256 != weights_sha256(encoder.backbone):
        raise ValueError(
            f"{shards.location}: its features were made with other weights of "
            f"{policy.encoder} than those of {whose}; make them again with `python -m "
            "pipeline.features`"
        )


def _differs(shards: ShardFolder, name: str, found: object, wanted: object, whose: str) -> str:
    return (
        f"{shards.location}: its features were made with {name} {found}, but {whose} has {wanted}; "
        "make them again with `python -m pipeline.features`, or change the setting"
    )


def policy_of(
    encoder: ImageEncoder,
    config: Config,
    source: ShardFolder,
    dtype: Literal["float16", "float32"],
    views: int,
    flip: bool,
) -> FeaturePolicy:
    """How the features of a data set will be made."""
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
    )
