"""Pictures -> vectors: a torchvision backbone whose classifier is replaced by a perceptron.

B images, S side in pixels, D model width
"""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from pipeline.config.model import EncoderConfig

# The statistics of ImageNet's training pictures, which torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CLASSIFIERS = ("classifier", "fc", "heads", "head")  # what torchvision's models call theirs
AUXILIARY_HEADS = ("googlenet", "inception_v3")  # give several outputs while training

BatchNorm = nn.modules.batchnorm._BatchNorm


class Encoder(nn.Module):
    """Backbone and perceptron.

    Source: the perceptron, two layers with PReLU and dropout between, is the one of the article
    "Captioning Images with CNN and RNN, using PyTorch".
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: EncoderConfig, dim: int, pretrained: bool = True) -> None:
        """
        Args:
            dim: D.
            pretrained: whether to load `config.weights`; a checkpoint brings its own.
        Raises:
            ValueError: torchvision has no such model, or the weights do not fit it.
        """
        super().__init__()
        self.backbone = load_backbone(config.name, config.weights if pretrained else None)
        name, before, features = _find_classifier(self.backbone, config.name)
        perceptron = make_perceptron(features, dim, config)
        if config.freeze:
            self.backbone.requires_grad_(False)
        setattr(self.backbone, name, nn.Sequential(*before, *perceptron))
        if config.batch_norm == "sync":
            self.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(self.backbone)
        every = list(batch_norms(self.backbone))
        perceptrons = set(batch_norms(perceptron))
        self._frozen: list[nn.Module] = []
        if config.batch_norm == "frozen":
            self._frozen = every
        elif config.batch_norm == "auto" and config.weights is not None:
            self._frozen = [layer for layer in every if layer not in perceptrons]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 -> (B, D) float.

        Pictures cross to the device as uint8, a quarter of the bytes, and become numbers here.
        Permuted from their rows of pixels they are in channels-last layout without a copy.
        """
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        vectors: torch.Tensor = self.backbone((pixels - self.mean) / self.std)
        return vectors

    def train(self, mode: bool = True) -> "Encoder":
        """Like nn.Module's, but frozen statistics stay frozen."""
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self


def make_perceptron(features: int, dim: int, config: EncoderConfig) -> nn.Sequential:
    """Two linear layers with PReLU and dropout between, then normalised: (B, features) -> (B, D).

    He's weights keep the size of what passes through, and the normalisation keeps the vector as
    loud as the words' embeddings however training goes. Without them the decoder, which hears the
    picture once and the words at every step, learns to do without the picture (docs/log.md).
    Source: He et al., Delving Deep into Rectifiers, arXiv:1502.01852, eq. 10.
    """
    first, last = nn.Linear(features, config.hidden_dim), nn.Linear(config.hidden_dim, dim)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.PReLU(), nn.Dropout(config.dropout), last, nn.BatchNorm1d(dim))


def batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    """All batch normalisation layers inside."""
    return (part for part in module.modules() if isinstance(part, BatchNorm))


def check_backbone(name: str) -> None:
    """Raises ValueError, with the nearest names, if torchvision has no such classifier."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name in AUXILIARY_HEADS:
        raise ValueError(f"model.encoder.name: {name} has auxiliary heads, which are not supported")
    if name not in names:
        near = ", ".join(get_close_matches(name, names)) or "such as densenet121, resnet50"
        raise ValueError(f"model.encoder.name: torchvision has no {name!r}; it has {near}")


def load_backbone(name: str, weights: str | None) -> nn.Module:
    """A torchvision classifier, its weights random, torchvision's own, or from a file.

    Raises:
        ValueError: no such model or file, or the file is of another model.
    """
    check_backbone(name)
    if weights is None or weights == "imagenet":
        backbone: nn.Module = torchvision.models.get_model(
            name, weights="DEFAULT" if weights else None
        )
        return backbone
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"model.encoder.weights: {path}: no such file (or say `imagenet`)")
    backbone = torchvision.models.get_model(name, weights=None)
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        backbone.load_state_dict(state)
    except Exception as error:  # each reader raises its own kinds
        first = str(error).splitlines()[0]
        raise ValueError(f"model.encoder.weights: {path} does not fit {name}: {first}") from None
    return backbone


def _find_classifier(backbone: nn.Module, name: str) -> tuple[str, list[nn.Module], int]:
    """Name of the classifier, what it does before its first linear layer (flattening, norms), and
    the number of features that enter that layer."""
    for part in CLASSIFIERS:
        classifier = getattr(backbone, part, None)
        if classifier is None:
            continue
        before: list[nn.Module] = []
        for layer in list(classifier.children()) or [classifier]:
            if isinstance(layer, nn.Linear):
                return part, before, layer.in_features
            if not isinstance(layer, nn.Dropout):  # the perceptron has its own
                before.append(layer)
    raise ValueError(f"model.encoder.name: {name} ends in no linear classifier to replace")
