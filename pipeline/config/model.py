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
    """The decoder.

    Args:
        kind: `lstm` and `gru` see the image once, as one vector, before the first word (Show and
            Tell, the article's). The others look at the grid of the image at every word:
            `soft_attention` (Show, Attend and Tell), `adaptive` (which can look away), `att2in`
            (from self-critical training), `updown` (two LSTMs), `transformer`.
        hidden_dim: width of its recurrent state, or of the transformer. For `adaptive` it must
            equal model.dim.
        dropout: dropout on the word embeddings and on the states before the output layer; in a
            transformer on every layer's output.
        attention_dim: width of the attention of `soft_attention`, `adaptive`, `att2in`, `updown`.
        attention_penalty: weight of the doubly stochastic penalty of `soft_attention`, which asks
            that the weights of each position add up to 1 over the words of a caption.
        layers: layers of the transformer.
        heads: attention heads of each of them.
    """

    kind: Literal[
        "lstm", "gru", "soft_attention", "adaptive", "att2in", "updown", "transformer"
    ] = "lstm"
    hidden_dim: int = 1024
    dropout: float = 0.5
    attention_dim: int = 512
    attention_penalty: float = 1.0
    layers: int = 3
    heads: int = 8


@dataclass(frozen=True)
class ModelConfig:
    """The captioner.

    Args:
        dim: width of the image vector and of the word embeddings.
        max_tokens: length of the longest caption that is generated, in tokens.
    """

    dim: int = 1024
    max_tokens: int = 30
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
