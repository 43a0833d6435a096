"""Images to vectors: a backbone whose classifier is replaced by a perceptron.

B images, S image side in pixels, F features of the backbone, D model width
"""

from collections.abc import Iterator

import torch
from torch import nn

from pipeline.config.model import EncoderConfig
from pipeline.model.encoders import torchvision
from pipeline.model.encoders.backbone import Backbone
from pipeline.model.protocols import Encoded

# Libraries of backbones, by what stands before the slash in a backbone's name.
LIBRARIES = {"": torchvision.load_backbone}

BatchNorm = nn.modules.batchnorm._BatchNorm


class ImageEncoder(nn.Module):
    """Backbone and perceptron; gives one vector an image.

    Source: the perceptron, two layers with PReLU and dropout between, is the one of the article
    "Captioning Images with CNN and RNN, using PyTorch".
    """

    mean: torch.Tensor  # (3, 1, 1)
    std: torch.Tensor  # (3, 1, 1)

    def __init__(self, config: EncoderConfig, dim: int, pretrained: bool = True) -> None:
        """
        Args:
            dim: D.
            pretrained: whether to load `config.weights`. A checkpoint brings its own.
        Raises:
            ValueError: there is no such backbone, or the weights do not fit it.
        """
        super().__init__()
        backbone = load_backbone(config.name, config.weights if pretrained else None)
        perceptron = make_perceptron(backbone.num_features, dim, config)
        if config.freeze:
            backbone.network.requires_grad_(False)
        self.backbone = backbone.with_head(perceptron)
        if config.batch_norm == "sync":
            self.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(self.backbone)
        self._frozen: list[nn.Module] = []  # BatchNorm layers that use their stored statistics
        if config.batch_norm == "frozen":
            self._frozen = list(batch_norms(self.backbone))
        elif config.batch_norm == "auto" and config.weights is not None:
            new = set(batch_norms(perceptron))
            self._frozen = [layer for layer in batch_norms(self.backbone) if layer not in new]
        for name in ("mean", "std"):  # buffers, so that they are part of a checkpoint
            values = getattr(backbone.preprocessing, name)
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> Encoded:
        """Encode (B, S, S, 3) uint8 images.

        Images travel to the device as uint8, a quarter of the bytes of float32, and are normalised
        there. The permutation gives the channels-last layout without a copy.
        """
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        return Encoded(self.backbone((pixels - self.mean) / self.std))

    def train(self, mode: bool = True) -> "ImageEncoder":
        """As nn.Module's, except that frozen BatchNorm layers stay in eval mode."""
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self


def load_backbone(name: str, weights: str | None) -> Backbone:
    """A backbone by its name, `LIBRARY/NAME`, or `NAME` for torchvision.

    Raises:
        ValueError: there is no such backbone, or the weights do not fit it.
    """
    library, _, rest = name.rpartition("/")
    return (
        LIBRARIES[library](rest, weights) if library in LIBRARIES else LIBRARIES[""](name, weights)
    )


def make_perceptron(num_features: int, dim: int, config: EncoderConfig) -> nn.Sequential:
    """Two linear layers with PReLU and dropout between, then BatchNorm: (B, F) -> (B, D).

    He initialisation keeps the scale of the features, and BatchNorm keeps the image vector at the
    scale of the token embeddings throughout training. Without both, the decoder, which sees the
    image once and a token at every step, learns to ignore the image (docs/log.md).
    Source: He et al., Delving Deep into Rectifiers, arXiv:1502.01852, eq. 10.
    """
    first, last = nn.Linear(num_features, config.hidden_dim), nn.Linear(config.hidden_dim, dim)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.PReLU(), nn.Dropout(config.dropout), last, nn.BatchNorm1d(dim))


def batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    """All BatchNorm layers of a module."""
    return (part for part in module.modules() if isinstance(part, BatchNorm))
