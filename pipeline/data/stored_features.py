"""Stored features: what a frozen backbone gives for each image, in place of the image.

A folder of features has the format of a shard folder. A sample is `KEY.npy` and `KEY.json`. Its
samples, their order and their captions are those of the data set that was encoded.

V views an image, P grid positions, F features of the backbone, S image side in pixels
"""

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from shards.format.manifest import Manifest

MADE_BY = "features"


@dataclass(frozen=True)
class FeaturePolicy:
    """How features were made. It takes the place of the image policy in the manifest.

    Args:
        encoder: name of the backbone, as `model.encoder.name`.
        weights_sha256: of the backbone's weights and buffers.
        output: `pooled` (F,) or `grid` (P, F).
        shape: of one view.
        dtype: of the numbers.
        image_size: S.
        views: V; the first is the center crop, the others are random crops.
        min_crop: smallest side of a random crop, as a share of the image's short side.
        flip: whether every second view is mirrored.
        seed: of the random crops.
        order_digest: the digest that determines the sample order of the data set that was encoded.
        made_by: tells features from images.
    """

    encoder: str
    weights_sha256: str
    output: Literal["pooled", "grid"]
    shape: tuple[int, ...]
    dtype: Literal["float16", "float32"]
    image_size: int
    views: int
    min_crop: float
    flip: bool
    seed: int
    order_digest: str
    made_by: str = MADE_BY

    def as_image_policy(self) -> dict[str, Any]:
        """As the manifest and the sidecars hold it."""
        return {**asdict(self), "shape": list(self.shape)}


def feature_policy(manifest: Manifest) -> FeaturePolicy | None:
    """How the features of a data set were made; None of a data set of images.

    Raises:
        ValueError: the manifest is damaged.
    """
    policy = manifest.image_policy
    if policy.get("made_by") != MADE_BY:
        return None
    try:
        return FeaturePolicy(**{**policy, "shape": tuple(policy["shape"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"damaged manifest: how the features were made ({error})") from None


def pack_features(views: np.ndarray) -> bytes:
    """(V, P, F) or (V, F) -> the bytes of an npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(views), allow_pickle=False)
    return file.getvalue()


def read_view(data: bytes, view: int, out: np.ndarray) -> None:
    """Copy one view out of an npy file.

    Args:
        data: from `pack_features`.
        view: from 0.
        out: (P, F) or (F,) of the features' own type.
    Raises:
        ValueError: it is no such file.
    """
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an npy file of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or shape[1:] != out.shape or dtype != out.dtype or view >= shape[0]:
        raise ValueError(f"an array of shape {shape} and type {dtype} is not what was stored")
    first = file.tell() + view * out.nbytes
    out[...] = np.frombuffer(data, dtype, out.size, first).reshape(out.shape)
