"""The captioner: encoder, decoder, widths."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class EncoderConfig:
    """The convolutional encoder and the perceptron that replaces its classifier.

    Args:
        name: a torchvision classification model, such as densenet121 or resnet50.
        weights: pretrained weights: `imagenet` (fetched by torchvision), or a .safetensors or .pth
            file of that model; none means training from scratch.
        freeze: keep the convolutions as they are and train the perceptron only.
        batch_norm: `train` normalises by each process's own part of the batch and keeps the
            main one's statistics, `sync` by the whole batch (GPUs only), `frozen` by the
            stored ones; `auto` is train, but frozen in a backbone with
            pretrained weights.
        hidden_dim: width of the perceptron's hidden layer.
        dropout: between the perceptron's two layers.
    """

    name: str = "densenet121"
    weights: str | None = None
    freeze: bool = False
    batch_norm: Literal["auto", "train", "sync", "frozen"] = "auto"
    hidden_dim: int = 1024
    dropout: float = 0.5


@dataclass(frozen=True)
class DecoderConfig:
    """The recurrent decoder.

    Args:
        kind: the recurrent layer.
        hidden_dim: its state's width.
        dropout: on the words going in and on the states before the vocabulary layer.
    """

    kind: Literal["lstm", "gru"] = "lstm"
    hidden_dim: int = 1024
    dropout: float = 0.5


@dataclass(frozen=True)
class ModelConfig:
    """The captioner.

    Args:
        dim: width of the image vector and of the word embeddings, which enter the decoder alike.
        max_tokens: longest caption that is generated, in tokens.
    """

    dim: int = 1024
    max_tokens: int = 30
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
