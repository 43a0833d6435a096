"""Settings of the captioner: its encoder and decoder."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder: a backbone, that is a classification network without its classifier, and a head.

    A decoder that sees one vector an image has a perceptron of two layers as head; a decoder that
    sees a grid of positions has one linear layer at each position.

    Args:
        name: a classification model of torchvision, such as densenet121, or after `timm/` one of
            timm, such as timm/tf_efficientnet_lite2.
        weights: pretrained weights: `imagenet`, which the library downloads, or a .safetensors or
            .pth file of that model. Null trains from scratch.
        grid: side to which the backbone's feature map is average-pooled, for decoders that see a
            grid; null keeps it as it is.
        tune: which part of the backbone is trained: `all`, `none`, or from the module of this name
            on, such as layer4 of resnet50. The head is always trained.
        frozen_epochs: epochs at the beginning in which no part of the backbone is trained.
        lr_factor: the backbone's learning rate is this times that of the other layers.
        batch_norm: statistics of the batch normalisation. `train`: each process uses those of its
            own micro-batch; the stored ones are rank 0's. `sync`: those of the micro-batches of all
            processes together (GPUs only). `frozen`: the stored ones. `auto`: in the backbone
            `frozen` with pretrained weights, otherwise `train`. The part of the backbone that is
            not trained uses the stored ones always.
        hidden_dim: width of the hidden layer of the perceptron; not used with a grid.
        dropout: dropout between the two layers of the perceptron, or on the positions of the grid.
    """

    name: str = "densenet121"
    weights: str | None = None
    grid: int | None = None
    tune: str = "all"
    frozen_epochs: float = 0.0
    lr_factor: float = 1.0
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
    """

    dim: int = 1024
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
