"""Backbones from timm, by their names there after `timm/`, such as timm/tf_efficientnet_lite2.

timm is imported only when a backbone is asked for: it is an extra that need not be installed.
"""

from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pipeline.model.encoders.backbone import (
    Backbone,
    Output,
    Preprocessing,
    load_weights,
    one_download_at_a_time,
    tokens_to_map,
)

# Arguments by which transformers accept images of any size; convolutional networks know none.
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class TimmBackbone(Backbone):
    """A network of timm, by the two halves that all of them have."""

    def extract(self, pixels: torch.Tensor) -> torch.Tensor:
        """Vectors, or a feature map from any of the layouts that timm's networks use."""
        network: Any = self.network
        features = network.forward_features(pixels)
        if self.output == "pooled":
            pooled: torch.Tensor = network.forward_head(features, pre_logits=True)
            return pooled
        if isinstance(features, torch.Tensor) and features.ndim == 3:
            return tokens_to_map(features, getattr(network, "num_prefix_tokens", 0))
        if not isinstance(features, torch.Tensor) or features.ndim != 4:
            raise ValueError(
                "model.encoder.name: this backbone has no grid, which the decoder needs: its "
                "features are no map"
            )
        nhwc = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if nhwc else features

    def synchronise_batch_norm(self) -> None:
        """As Backbone's. timm has BatchNorm layers with an activation, which torch would drop."""
        from timm.layers.norm_act import convert_sync_batchnorm

        self.network = convert_sync_batchnorm(self.network)


def load_backbone(name: str, weights: str | None, output: Output, grid: int | None) -> Backbone:
    """A classification model of timm, without its classifier.

    Args:
        weights: None for random weights, `imagenet` for those that timm downloads, or a file.
        output: `pooled` or `grid`.
        grid: side to which the feature map is pooled; None keeps it.
    Raises:
        ValueError: timm is not installed, it has no such model, or the weights do not fit it.
    """
    timm = _import_timm(name)
    if not timm.is_model(name):
        names = timm.list_models()
        near = ", ".join(get_close_matches(name, names)) or "such as resnet50, vit_tiny_patch16_224"
        raise ValueError(f"model.encoder.name: timm has no {name!r}; it has {near}")
    network: Any = _create(timm, name, weights == "imagenet")
    if weights is not None and weights != "imagenet":
        classifier = network.pretrained_cfg.get("classifier") or ()
        left_out = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        load_weights(network, Path(weights), f"timm/{name}", left_out)
    described = timm.data.resolve_model_data_config(network)
    preprocessing = Preprocessing(
        tuple(described["mean"]),
        tuple(described["std"]),
        described["interpolation"],
        described["input_size"][1],
    )
    num_features = network.head_hidden_size if output == "pooled" else network.num_features
    return TimmBackbone(network, output, num_features, preprocessing, grid)


def _import_timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"model.encoder.name: timm/{name} needs timm, which cannot be imported ({error}): "
            "pip install '.[timm]'"
        ) from None
    return timm


def _create(timm: ModuleType, name: str, pretrained: bool) -> nn.Module:
    with one_download_at_a_time():
        for arguments in ANY_SIZE:
            try:
                network: nn.Module = timm.create_model(name, pretrained, num_classes=0, **arguments)
            except TypeError as error:
                if not any(argument in str(error) for argument in arguments):
                    raise
            except (RuntimeError, OSError) as error:  # no such weights, or no network
                first = str(error).partition("\n")[0]
                raise ValueError(f"model.encoder: timm/{name}: {first}") from None
            else:
                return network
    raise AssertionError("the last of ANY_SIZE is accepted or raises")
