"""Backbones from torchvision, by their names there, such as densenet121."""

from difflib import get_close_matches
from pathlib import Path

import torchvision
from torch import nn

from pipeline.model.encoders.backbone import Backbone, Preprocessing, load_weights

CLASSIFIERS = ("classifier", "fc", "heads", "head")  # names that torchvision's models use
AUXILIARY_HEADS = ("googlenet", "inception_v3")  # give several outputs in training mode


def load_backbone(name: str, weights: str | None) -> Backbone:
    """A classification model of torchvision.

    Args:
        weights: None for random weights, `imagenet` for torchvision's own, or a file.
    Raises:
        ValueError: torchvision has no such model, or the weights do not fit it.
    """
    _check_name(name)
    own = "DEFAULT" if weights == "imagenet" else None
    network: nn.Module = torchvision.models.get_model(name, weights=own)
    if weights is not None and own is None:
        load_weights(network, Path(weights), name)
    return Backbone(network, *_find_classifier(network, name), _preprocessing(name))


def _check_name(name: str) -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    if name in AUXILIARY_HEADS:
        raise ValueError(f"model.encoder.name: {name} has auxiliary heads, which are not supported")
    if name not in names:
        near = ", ".join(get_close_matches(name, names)) or "such as densenet121, resnet50"
        raise ValueError(f"model.encoder.name: torchvision has no {name!r}; it has {near}")


def _preprocessing(name: str) -> Preprocessing:
    """The preprocessing of the pretrained weights. Nothing is downloaded."""
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
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
