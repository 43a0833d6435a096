"""A backbone: a network without its classifier, what its library says about it, its weights.

B images, S image side in pixels, F features of the backbone, P grid positions
"""

import fcntl
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

Output = Literal["pooled", "grid"]


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a backbone, as its pretrained weights expect it."""

    mean: tuple[float, ...]  # of each colour channel, of pixels from 0 to 1
    std: tuple[float, ...]
    interpolation: str  # such as "bilinear"
    image_size: int  # side in pixels


class Backbone(nn.Module):
    """A network without its classifier.

    Args:
        network: from normalised pixels to vectors or to a feature map, as `output` says. The names
            of its modules are those of its library.
        output: `pooled`, the vector that would enter the classifier, or `grid`, the feature map.
        num_features: F.
        preprocessing: of the pretrained weights.
        grid: side to which the feature map is average-pooled; None keeps it.
    """

    def __init__(
        self,
        network: nn.Module,
        output: Output,
        num_features: int,
        preprocessing: Preprocessing,
        grid: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.output = output
        self.num_features = num_features
        self.preprocessing = preprocessing
        self.grid = grid

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The features of images.

        Args:
            pixels: (B, 3, S, S) float, normalised.
        Returns:
            (B, F) float, or with grid output (B, P, F), the positions row by row.
        Raises:
            ValueError: the network gives no feature map, or one smaller than `grid`.
        """
        features = self.extract(pixels)
        return features.flatten(1) if self.output == "pooled" else self._positions(features)

    def extract(self, pixels: torch.Tensor) -> torch.Tensor:
        """The network's vectors, or its feature map, (B, F, side, side)."""
        features: torch.Tensor = self.network(pixels)
        return features

    def synchronise_batch_norm(self) -> None:
        """Let BatchNorm layers compute their statistics over the micro-batches of all processes."""
        self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)

    def _positions(self, feature_map: torch.Tensor) -> torch.Tensor:
        if self.grid is not None:
            side = min(feature_map.shape[2:])
            if self.grid > side:
                raise ValueError(
                    f"model.encoder.grid: {self.grid} is larger than the feature map, whose side "
                    f"is {side} for these images"
                )
            feature_map = adaptive_avg_pool2d(feature_map, self.grid)
        return feature_map.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: torch.Tensor, num_prefix: int) -> torch.Tensor:
    """The feature map of a transformer that gives one token a patch of a square image.

    Args:
        tokens: (B, num_prefix + P, F) float.
        num_prefix: tokens before those of the patches, such as the class token.
    Returns:
        (B, F, side, side) float.
    Raises:
        ValueError: the tokens do not form a square, or are a class token alone.
    """
    patches = tokens[:, num_prefix:]
    side = math.isqrt(patches.shape[1])
    if side < 2 or side**2 != patches.shape[1]:
        raise ValueError(
            "model.encoder.name: this backbone has no grid, which the decoder needs: its "
            f"{patches.shape[1]} tokens do not form a square"
        )
    feature_map: torch.Tensor = patches.transpose(1, 2).unflatten(2, (side, side))
    return feature_map


def load_weights(network: nn.Module, path: Path, name: str, left_out: tuple[str, ...] = ()) -> None:
    """Read the weights of a backbone from a .safetensors or .pth file.

    Args:
        name: what the network is called in messages.
        left_out: modules of the file that the network lacks, such as the classifier.
    Raises:
        ValueError: there is no such file, or it holds another network's weights.
    """
    if not path.is_file():
        raise ValueError(f"model.encoder.weights: {path}: no such file (or use `imagenet`)")
    try:
        state: dict[str, torch.Tensor] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        for key in [key for key in state if key.startswith(tuple(f"{part}." for part in left_out))]:
            del state[key]
        network.load_state_dict(state)
    except Exception as error:  # the readers raise many kinds
        # load_state_dict's first line ends in a colon; what differs stands in the lines below it.
        first, *rest = str(error).splitlines()
        detail = f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first
        raise ValueError(f"model.encoder.weights: {path} does not fit {name}: {detail}") from None


@contextmanager
def one_download_at_a_time() -> Iterator[None]:
    """The first process of a machine downloads weights; the others wait, and then find the file."""
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that is read-only or has no locks: each for itself
            folder = Path(torch.hub.get_dir())
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / ".capstream-lock", "a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
