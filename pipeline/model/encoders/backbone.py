"""What a library of backbones says about one of them, and weights from a local file.

F features that enter a backbone's classifier
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a backbone, as its pretrained weights expect it."""

    mean: tuple[float, ...]  # of each colour channel, of pixels from 0 to 1
    std: tuple[float, ...]
    interpolation: str  # such as "bilinear"
    image_size: int  # side in pixels


@dataclass(frozen=True)
class Backbone:
    """An image classifier whose classifying part is to be replaced."""

    network: nn.Module
    classifier: str  # name of the part to replace
    kept: tuple[
        nn.Module, ...
    ]  # the classifier's layers before its first linear one, such as norms
    num_features: int  # F
    preprocessing: Preprocessing

    def with_head(self, head: nn.Sequential) -> nn.Module:
        """The network with `head`, (B, F) -> (B, D), in place of the classifier's layers."""
        setattr(self.network, self.classifier, nn.Sequential(*self.kept, *head))
        return self.network


def load_weights(network: nn.Module, path: Path, name: str) -> None:
    """Read the weights of a whole backbone from a .safetensors or .pth file.

    Args:
        name: what the network is called in messages.
    Raises:
        ValueError: there is no such file, or it holds another network's weights.
    """
    if not path.is_file():
        raise ValueError(f"model.encoder.weights: {path}: no such file (or use `imagenet`)")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        network.load_state_dict(state)
    except Exception as error:  # the readers raise many kinds
        # load_state_dict's first line ends in a colon; what differs stands in the lines below it.
        first, *rest = str(error).splitlines()
        detail = f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first
        raise ValueError(f"model.encoder.weights: {path} does not fit {name}: {detail}") from None
