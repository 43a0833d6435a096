"""Backbones from torchvision, by their names there, such as densenet121."""

import math
from collections import OrderedDict
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models

from pipeline.model.encoders.backbone import (
    Backbone,
    Output,
    Preprocessing,
    load_weights,
    one_download_at_a_time,
    tokens_to_map,
)

CLASSIFIERS = ("classifier", "fc", "heads", "head")  # names that torchvision's models use
AUXILIARY_HEADS = ("googlenet", "inception_v3")  # give several outputs in training mode

# The module that ends the convolutional part. It and the ones before it run one after the other.
LAST_OF_GRID: dict[type[nn.Module], str] = {
    models.AlexNet: "features",
    models.ConvNeXt: "features",
    models.DenseNet: "features",  # and a ReLU, which is no module
    models.EfficientNet: "features",
    models.MNASNet: "layers",
    models.MaxVit: "blocks",
    models.MobileNetV2: "features",
    models.MobileNetV3: "features",
    models.RegNet: "trunk_output",
    models.ResNet: "layer4",
    models.ShuffleNetV2: "conv5",
    models.SwinTransformer: "permute",
    models.VGG: "features",
}


class VisionTransformerGrid(Backbone):
    """The tokens of the patches, as a feature map."""

    def extract(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the network's own forward computes before it selects the class token."""
        network: Any = self.network
        patches = network._process_input(pixels)
        class_token = network.class_token.expand(len(patches), -1, -1)
        return tokens_to_map(network.encoder(torch.cat([class_token, patches], dim=1)), 1)


def load_backbone(name: str, weights: str | None, output: Output, grid: int | None) -> Backbone:
    """A classification model of torchvision, without its classifier.

    Args:
        weights: None for random weights, `imagenet` for torchvision's own, or a file.
        output: `pooled` or `grid`.
        grid: side to which the feature map is pooled; None keeps it.
    Raises:
        ValueError: torchvision has no such model, it has no grid, or the weights do not fit it.
    """
    _check_name(name)
    if weights == "imagenet":
        with one_download_at_a_time():
            network: nn.Module = models.get_model(name, weights="DEFAULT")
    else:
        network = models.get_model(name, **_image_size(name))
        if weights is not None:
            load_weights(network, Path(weights), name)
    classifier, kept, num_features = _find_classifier(network, name)
    preprocessing = _preprocessing(name)
    if output == "pooled":
        setattr(network, classifier, nn.Sequential(*kept))
        if isinstance(network, models.MNASNet):  # its own way wants a version, as only .pth has it
            network.__dict__["_load_from_state_dict"] = partial(
                nn.Module._load_from_state_dict, network
            )
        return Backbone(network, output, num_features, preprocessing)
    if isinstance(network, models.VisionTransformer):
        setattr(network, classifier, nn.Sequential())
        return VisionTransformerGrid(network, output, num_features, preprocessing, grid)
    if type(network) not in LAST_OF_GRID:
        raise ValueError(f"model.encoder.name: {name} has no grid, which this decoder needs")
    if isinstance(network, models.AlexNet | models.VGG):  # their classifier sees several positions
        num_features //= math.prod(network.avgpool.output_size)
    return Backbone(_convolutional_part(network), output, num_features, preprocessing, grid)


def _convolutional_part(network: nn.Module) -> nn.Sequential:
    """The modules up to the feature map, under the names that they have in the network."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, part in network.named_children():
        parts[name] = nn.Sequential(*part) if isinstance(part, nn.ModuleList) else part
        if name == LAST_OF_GRID[type(network)]:
            break
    if isinstance(network, models.DenseNet):
        parts["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def _check_name(name: str) -> None:
    names = models.list_models(module=torchvision.models)
    if name in AUXILIARY_HEADS:
        raise ValueError(f"model.encoder.name: {name} has auxiliary heads, which are not supported")
    if name not in names:
        near = ", ".join(get_close_matches(name, names)) or "such as densenet121, resnet50"
        raise ValueError(f"model.encoder.name: torchvision has no {name!r}; it has {near}")


def _image_size(name: str) -> dict[str, int]:
    """The argument that gives a vision transformer as many positions as its weights have.

    torchvision sets it itself when it loads the weights, which a checkpoint does not need.
    """
    return {"image_size": _preprocessing(name).image_size} if name.startswith("vit_") else {}


def _preprocessing(name: str) -> Preprocessing:
    """The preprocessing of the pretrained weights. Nothing is downloaded."""
    transform = models.get_model_weights(name).DEFAULT.transforms()
    return Preprocessing(
        tuple(transform.mean),
        tuple(transform.std),
        transform.interpolation.value,
        transform.crop_size[0],
    )


def _find_classifier(network: nn.Module, name: str) -> tuple[str, tuple[nn.Module, ...], int]:
    """The classifier's name, its layers before the first linear one, and that one's features."""
    for part in CLASSIFIERS:
        classifier = getattr(network, part, None)
        if classifier is None:
            continue
        kept: list[nn.Module] = []
        for layer in list(classifier.children()) or [classifier]:
            if isinstance(layer, nn.Linear):
                return part, tuple(kept), layer.in_features
            if not isinstance(layer, nn.Dropout):  # the head has its own
                kept.append(layer)
    raise ValueError(f"model.encoder.name: {name} ends in no linear classifier to replace")
