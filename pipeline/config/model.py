"""Settings of the captioner: its encoder and decoder."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder: a convolutional network with a perceptron in place of its classifier.

    Args:
        name: a torchvision classification model, such as densenet121 or resnet50.
        weights: pretrained weights: `imagenet`, which torchvision downloads, or a .safetensors or
            .pth file of that model. Null trains from scratch.
        freeze: keep the convolutions as they are and train the perceptron only.
        batch_norm: statistics of the batch normalisation. `train`: each process uses those of its
            own micro-batch; the stored ones are rank 0's. `sync`: those of the micro-batches of all
            processes together (GPUs only). `frozen`: the stored ones. `auto`: `frozen` with
            pretrained weights, otherwise `train`.
        hidden_dim: width of the hidden layer of the perceptron.
        dropout: dropout between the two layers of the perceptron.
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
        kind: recurrent layer.
        hidden_dim: width of its state.
        dropout: dropout on the word embeddings and on the states before the output layer.
    """

    kind: Literal["lstm", "gru"] = "lstm"
    hidden_dim: int = 1024
    dropout: float = 0.5


@dataclass(frozen=True)
class ModelConfig:
    """The captioner.

    Args:
        dim: width of the image vector and of the word embeddings.
    """

    dim: int = 1024
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
