"""Stored features: what a frozen backbone gives for each image, in place of the image.

A folder of features has the format of a shard folder. A sample is `KEY.npy` and `KEY.json`. Its
samples, their order and their captions are those of the data set that was encoded.

V views an image, P grid positions, F features of the backbone, S image side in pixels
"""

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

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
        mean: of each colour channel, which was subtracted from pixels from 0 to 1; None where it
            was not recorded.
        std: of each colour channel, by which the difference was divided; None as `mean`.
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
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    made_by: str = MADE_BY

    def as_image_policy(self) -> dict[str, Any]:
        """As the manifest and the sidecars hold it, with lists in place of tuples."""
        parts = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in parts.items()}

    @property
    def description(self) -> str:
        """Encoder, views, shape and type in words."""
        views = "1 view" if self.views == 1 else f"{self.views} views"
        mirrored = " (every second one mirrored)" if self.flip else ""
        shape = " x ".join(map(str, self.shape))
        return (
            f"{self.output} features of {self.encoder} at {self.image_size} pixels; "
            f"{views}{mirrored} an image, each {shape} {self.dtype}"
        )


def feature_policy(image_policy: dict[str, Any]) -> FeaturePolicy | None:
    """How the features of a data set were made; None of a data set of images.

    Args:
        image_policy: of a manifest, or of a sidecar's `build`.
    Raises:
        ValueError: it is damaged.
    """
    if image_policy.get("made_by") != MADE_BY:
        return None
    parts: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in image_policy.items()
    }
    try:
        return FeaturePolicy(**parts)
    except TypeError as error:
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
    shape, dtype, first = _read_header(data)
    if shape[1:] != out.shape or dtype != out.dtype or view >= shape[0]:
        raise ValueError(f"an array of shape {shape} and type {dtype} is not what was stored")
    numbers = np.frombuffer(data, dtype, out.size, first + view * out.nbytes)
    out[...] = numbers.reshape(out.shape)


def unpack_features(data: bytes, policy: FeaturePolicy) -> np.ndarray:
    """All views of an image: the inverse of `pack_features`.

    Returns:
        (V, P, F) or (V, F).
    Raises:
        ValueError: they are not what the policy says, or not finite.
    """
    shape, dtype, first = _read_header(data)
    wanted = (policy.views, *policy.shape)
    if shape != wanted or dtype != np.dtype(policy.dtype):
        raise ValueError(f"features {shape} {dtype}, not {wanted} {policy.dtype}")
    if len(data) != first + dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"{len(data):,} bytes, which is not the size of such an array")
    views = np.frombuffer(data, dtype, offset=first).reshape(shape)
    if not np.isfinite(views).all():
        raise ValueError("the features are not finite")
    return views


def _read_header(data: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type of an npy file, and where its numbers begin."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an npy file of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran:
        raise ValueError("an npy file in another order than it was stored")
    return shape, dtype, file.tell()
