"""The npy file of stored features: what is packed comes back, and anything else is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.features import (
    FeaturePolicy,
    feature_policy,
    pack_features,
    read_view,
    unpack_features,
)

POLICY = FeaturePolicy(
    encoder="resnet18", weights_sha256="w", output="grid", shape=(4, 3), dtype="float16",
    image_size=32, views=2, min_crop=0.5, flip=True, seed=0, order_digest="d",
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
)  # fmt: skip


def drawn(policy: FeaturePolicy, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).normal(size=(policy.views, *policy.shape))
    return numbers.astype(policy.dtype)


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 9), min_size=1, max_size=2),
    st.sampled_from(["float16", "float32"]),
    st.integers(0, 2**32 - 1),
)
def test_every_view_comes_back(views: int, shape: list[int], dtype: str, seed: int) -> None:
    policy = replace(POLICY, views=views, shape=tuple(shape), dtype=dtype)
    stored = drawn(policy, seed)
    data = pack_features(stored)
    assert np.array_equal(unpack_features(data, policy), stored)
    assert np.array_equal(np.load(io.BytesIO(data)), stored)
    for view in range(views):
        out = np.empty(policy.shape, dtype)
        read_view(data, view, out)
        assert np.array_equal(out, stored[view])


def test_the_policy_survives_the_manifest() -> None:
    assert feature_policy(POLICY.as_image_policy()) == POLICY
    unrecorded = replace(POLICY, mean=None, std=None)
    assert "mean" not in unrecorded.as_image_policy()
    assert feature_policy(unrecorded.as_image_policy()) == unrecorded
    assert feature_policy({"resize_short": 256, "quality": 90}) is None
    for damaged in ({"unknown": 1}, {"seed": ...}):
        parts = {**POLICY.as_image_policy(), **damaged}
        given = {name: value for name, value in parts.items() if value is not ...}
        with pytest.raises(ValueError, match="damaged manifest"):
            feature_policy(given)


def test_anything_else_is_refused() -> None:
    data = pack_features(drawn(POLICY))
    infinite = drawn(POLICY)
    infinite[0, 1, 2] = np.inf
    for spoiled, message in (
        (b"\xff\xd8 a JPEG", "magic"),
        (data[:-1], "not the size of such an array"),
        (data + b"\0", "not the size of such an array"),
        (pack_features(drawn(replace(POLICY, views=1))), r"\(1, 4, 3\) float16, not \(2, 4, 3\)"),
        (pack_features(drawn(replace(POLICY, dtype="float32"))), "float32, not"),
        (pack_features(infinite), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            unpack_features(spoiled, POLICY)
    file = io.BytesIO()
    np.save(file, np.asfortranarray(drawn(POLICY)))
    with pytest.raises(ValueError, match="another order"):
        unpack_features(file.getvalue(), POLICY)
    for view, out in ((2, np.empty((4, 3), np.float16)), (0, np.empty((3, 4), np.float16))):
        with pytest.raises(ValueError, match="not what was stored"):
            read_view(data, view, out)
