"""Images to vectors: a backbone, frozen or tuned, and a head, which is always trained.

B images, S image side in pixels, F features of the backbone, P grid positions, D model width
"""

import torch
from torch import nn

from pipeline.config.model import EncoderConfig
from pipeline.model.encoders import timm, torchvision
from pipeline.model.encoders.backbone import Backbone, Output
from pipeline.model.encoders.heads import GridHead, PooledHead
from pipeline.model.encoders.tuning import batch_norms, freeze_part
from pipeline.model.protocols import Encoded

# Libraries of backbones, by what stands before the slash in a backbone's name.
LIBRARIES = {"": torchvision.load_backbone, "timm": timm.load_backbone}


class ImageEncoder(nn.Module):
    """Backbone and head. `preprocessing` says how the backbone expects its images."""

    mean: torch.Tensor  # (3, 1, 1)
    std: torch.Tensor  # (3, 1, 1)

    def __init__(
        self, config: EncoderConfig, dim: int, output: Output = "pooled", pretrained: bool = True
    ) -> None:
        """
        Args:
            dim: D.
            output: what the decoder needs: `pooled`, one vector an image, or `grid`, in addition
                one vector a position.
            pretrained: whether to load `config.weights`. A checkpoint brings its own.
        Raises:
            ValueError: there is no such backbone, it has no such output or module, or the weights
                do not fit it.
        """
        super().__init__()
        self.name = config.name
        if output == "pooled" and config.grid is not None:
            raise ValueError("model.encoder.grid: must be null, since this decoder sees no grid")
        self.backbone = load_backbone(config, output, pretrained)
        self.preprocessing = self.backbone.preprocessing
        num_features = self.backbone.num_features
        self.head: PooledHead | GridHead
        if output == "pooled":
            self.head = PooledHead(num_features, config.hidden_dim, dim, config.dropout)
        else:
            self.head = GridHead(num_features, dim, config.dropout)
        if config.batch_norm == "sync":
            self.backbone.synchronise_batch_norm()
            self.head = nn.SyncBatchNorm.convert_sync_batchnorm(self.head)
        # Modules that are in eval mode always: those of the frozen part, and BatchNorm layers that
        # use their stored statistics.
        self._always_eval = freeze_part(self.backbone.network, config.tune)
        if config.batch_norm == "frozen":
            self._always_eval += batch_norms(self)
        elif config.batch_norm == "auto" and config.weights is not None:
            self._always_eval += batch_norms(self.backbone)
        self._backbone_frozen = not self.is_tuned()
        for name in ("mean", "std"):  # buffers, so that they are part of a checkpoint
            values = getattr(self.preprocessing, name)
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        self.train()

    def forward(self, inputs: torch.Tensor) -> Encoded:
        """Encode images, or the features that the backbone gave for them earlier.

        Args:
            inputs: (B, S, S, 3) uint8 images; or float features, (B, F) or (B, P, F).
        """
        stored = inputs.is_floating_point()
        features = inputs.to(self.mean.dtype) if stored else self.features(inputs)
        encoded: Encoded = self.head(features)
        return encoded

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the backbone gives for images; the head makes vectors of width D of it.

        Images travel to the device as uint8, a quarter of the bytes of float32, and are normalised
        there. The permutation gives the channels-last layout without a copy.

        Args:
            images: (B, S, S, 3) uint8.
        Returns:
            (B, F) float, or with grid output (B, P, F).
        """
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._backbone_frozen):
            features: torch.Tensor = self.backbone((pixels - self.mean) / self.std)
        return features

    def freeze_backbone(self, frozen: bool) -> None:
        """Freeze the whole backbone for some steps, or train what `tune` says again.

        A frozen backbone is in eval mode and computes no gradients.
        """
        frozen = frozen or not self.is_tuned()
        if frozen != self._backbone_frozen:
            self._backbone_frozen = frozen
            self.train(self.training)

    def is_tuned(self) -> bool:
        """Whether any part of the backbone is trained, at some time."""
        return any(parameter.requires_grad for parameter in self.backbone.parameters())

    def train(self, mode: bool = True) -> "ImageEncoder":
        """As nn.Module's, except that frozen parts stay in eval mode."""
        super().train(mode)
        if self._backbone_frozen:
            self.backbone.eval()
        for module in self._always_eval:
            module.training = False
        return self


def encode_black(encoder: ImageEncoder, image_size: int) -> torch.Tensor:
    """The features of a black image: some backbones accept one size only, or none this small.

    Returns:
        (1, F) float, or with grid output (1, P, F).
    Raises:
        ValueError: the backbone does not accept the size, or has no such output.
    """
    black = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    try:
        return encoder.features(black.to(encoder.mean.device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"model.encoder.name: {encoder.name} does not accept images of data.image_size "
            f"{image_size}: {str(error).splitlines()[0]}"
        ) from None


def load_backbone(config: EncoderConfig, output: Output, pretrained: bool = True) -> Backbone:
    """A backbone by its name, `LIBRARY/NAME`, or `NAME` for torchvision.

    Raises:
        ValueError: there is no such backbone, it has no such output, or the weights do not fit it.
    """
    library, _, name = config.name.rpartition("/")
    if library not in LIBRARIES:
        library, name = "", config.name
    weights = config.weights if pretrained else None
    return LIBRARIES[library](name, weights, output, config.grid)
