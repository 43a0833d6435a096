"""The whole configuration of a run: defaults here, YAML over them, dotted flags over both.

    --config configs/coco_densenet_lstm.yaml --optim.lr 1e-3

The docstrings are the help text. An unknown key, a wrong type or an impossible combination is an
error that names the key, before any process group or GPU starts.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser

from pipeline.order import MAX_STREAMS


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is batched.

    Args:
        train: folder of the training shards, a path or a URL such as s3://bucket/folder.
        val: folder of the validation shards, likewise; without one nothing is evaluated.
        global_batch_size: images a step, over all processes and accumulation steps.
        captions_per_image: captions an image, drawn anew each epoch where it has more.
        workers: loader processes of each training process; 0 loads in the process itself.
        image_size: side in pixels of the square that the encoder sees.
        min_crop: smallest side of a training crop, as a share of the picture's short side.
        shuffle_block: shards whose samples are mixed with each other.
        streams: canonical streams that the order deals the samples to, for shards on an object
            store: as many as machines the run will ever have, or a multiple of it, so that each
            fetches its own streams' shards alone; part of the order, so fixed for a run.
        max_bad: share of the samples, 0 to 1, that may prove damaged when they are read; each is
            named and left out, and more stop the run.
        cache_dir: where shards behind a URL lie while they are needed: a disk of this machine, not
            shared storage; none means a folder of yours in $TMPDIR, or in /var/tmp.
        cache_gb: the most that they may take there, in 10**9 bytes.
    """

    train: str = ""
    val: str | None = None
    global_batch_size: int = 48
    captions_per_image: int = 5
    workers: int = 2
    image_size: int = 224
    min_crop: float = 0.875
    shuffle_block: int = 16
    streams: int = 1
    max_bad: float = 0.001
    cache_dir: str | None = None
    cache_gb: float = 50.0


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


@dataclass(frozen=True)
class OptimConfig:
    """AdamW; the learning rate rises linearly, then falls to 0 along half a cosine.

    Args:
        lr: highest learning rate.
        warmup_steps: steps until it is reached.
        weight_decay: on matrices and convolutions, not on biases, norms and embeddings.
        clip: largest norm of the whole gradient; 0 does not clip.
    """

    lr: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip: float = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """How long, how exact, and how safe.

    Args:
        steps: end after so many steps, if the epochs have not ended before.
        epochs: end after so many passes over the data; none leaves it to `steps`.
        precision: `bf16` and `fp16` are mixed precision on GPUs; a CPU keeps to float32.
        accumulation_steps: parts that each process cuts its share of a batch into, to save memory.
        checkpoint_every: steps from commit to commit, at the most.
        checkpoint_minutes: minutes from commit to commit, at the most: what a crash may cost, where
            steps are slow. 0 leaves it to the steps.
        eval_every: steps from evaluation to evaluation; 0 evaluates at the end only.
        keep: commits kept, the newest; the best one is kept besides.
        resume: `auto` goes on from the newest commit of the run folder, and ends if that is
            damaged; `previous` then goes on from the newest that is not, and renames the damaged
            ones; `never` refuses a folder that has any.

    Whichever of `steps` and `epochs` is reached first ends the run.
    """

    steps: int | None = None
    epochs: int | None = 3
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulation_steps: int = 1
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 15.0
    eval_every: int = 1000
    keep: int = 2
    resume: Literal["auto", "previous", "never"] = "auto"


@dataclass(frozen=True)
class MonitorConfig:
    """What is shown and logged.

    Args:
        log_every: steps from one TensorBoard point to the next.
        num_pictures: pictures with captions shown at each evaluation.
        sample_log: path prefix; process R appends {"step":..,"ids":[..]} to PREFIX.rankR.jsonl.
    """

    log_every: int = 10
    num_pictures: int = 8
    sample_log: str | None = None


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        run_dir: folder of the run: its configuration, TensorBoard logs and checkpoints.
        seed: of the weights, the sample order, the crops and the dropout.
    """

    run_dir: str = "runs/capstream"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


class _Parser(ArgumentParser):
    """Raises ValueError where argparse would print a usage text and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(" ".join(message.split()))


def _parser() -> _Parser:
    parser = _Parser(prog="train.py", description="Train an image captioner.")
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(Config)
    return parser


def parse_config(arguments: list[str]) -> Config:
    """Read settings from command line arguments, `--config FILE` among them.

    Raises:
        ValueError: an unknown key, a wrong type, a missing file, or values that cannot go together;
            the message names the key.
        SystemExit: after `--help`.
    """
    parser = _parser()
    settings = parser.instantiate(parser.parse_args(arguments)).as_dict()
    settings.pop("config")
    config = Config(**settings)
    check_config(config)
    return config


def load_config(path: Path) -> Config:
    """Read the config.yaml that lies beside a run or in a checkpoint. Raises as `parse_config`."""
    return parse_config(["--config", str(path)])


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, defaults included; `load_config` reads it back."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False))


def check_config(config: Config) -> None:
    """Refuse values that cannot work.

    Raises:
        ValueError: names the key and says what it must be.
    """
    data, optim, train = config.data, config.optim, config.train
    encoder, decoder = config.model.encoder, config.model.decoder
    rules = [
        ("data.train", data.train != "", "must name a folder of shards"),
        ("data.global_batch_size", data.global_batch_size >= 1, "must be 1 or more"),
        ("data.captions_per_image", data.captions_per_image >= 1, "must be 1 or more"),
        ("data.workers", data.workers >= 0, "must be 0 or more"),
        ("data.image_size", data.image_size >= 32, "must be 32 or more"),
        ("data.min_crop", 0 < data.min_crop <= 1, "must be above 0, and 1 at the most"),
        ("data.shuffle_block", data.shuffle_block >= 1, "must be 1 or more"),
        ("data.streams", 1 <= data.streams <= MAX_STREAMS, f"must be 1 to {MAX_STREAMS}"),
        (
            "data.streams",
            data.global_batch_size % max(data.streams, 1) == 0,
            f"must divide data.global_batch_size, which is {data.global_batch_size}",
        ),
        ("data.max_bad", 0 <= data.max_bad <= 1, "must be a share from 0 to 1"),
        ("data.cache_dir", data.cache_dir != "", "must name a folder, or be null"),
        *(
            (key, "://" not in (path or ""), "must be on a file system: it is written in place")
            for key, path in (
                ("run_dir", config.run_dir),
                ("data.cache_dir", data.cache_dir),
                ("monitor.sample_log", config.monitor.sample_log),
            )
        ),
        ("data.cache_gb", 0 < data.cache_gb < math.inf, "must be above 0, and finite"),
        ("model.dim", config.model.dim >= 1, "must be 1 or more"),
        ("model.max_tokens", config.model.max_tokens >= 1, "must be 1 or more"),
        ("model.encoder.hidden_dim", encoder.hidden_dim >= 1, "must be 1 or more"),
        ("model.encoder.dropout", 0 <= encoder.dropout < 1, "must be 0 or more, and below 1"),
        ("model.decoder.hidden_dim", decoder.hidden_dim >= 1, "must be 1 or more"),
        ("model.decoder.dropout", 0 <= decoder.dropout < 1, "must be 0 or more, and below 1"),
        ("optim.lr", optim.lr > 0, "must be above 0"),
        ("optim.warmup_steps", optim.warmup_steps >= 0, "must be 0 or more"),
        ("optim.weight_decay", optim.weight_decay >= 0, "must be 0 or more"),
        ("optim.clip", optim.clip >= 0, "must be 0 or more"),
        ("train.steps", train.steps is None or train.steps >= 1, "must be 1 or more, or null"),
        ("train.epochs", train.epochs is None or train.epochs >= 1, "must be 1 or more, or null"),
        ("train.epochs", bool(train.epochs or train.steps), "and train.steps cannot both be null"),
        ("train.accumulation_steps", train.accumulation_steps >= 1, "must be 1 or more"),
        ("train.checkpoint_every", train.checkpoint_every >= 1, "must be 1 or more"),
        ("train.checkpoint_minutes", train.checkpoint_minutes >= 0, "must be 0 or more"),
        ("train.eval_every", train.eval_every >= 0, "must be 0 or more"),
        ("train.keep", train.keep >= 1, "must be 1 or more"),
        ("monitor.log_every", config.monitor.log_every >= 1, "must be 1 or more"),
        ("monitor.num_pictures", config.monitor.num_pictures >= 0, "must be 0 or more"),
        (
            "model.encoder.freeze",
            not encoder.freeze or encoder.weights is not None,
            "keeps random convolutions as they are: name model.encoder.weights, or do not freeze",
        ),
        (
            "model.encoder.freeze",
            not encoder.freeze or encoder.batch_norm in ("auto", "frozen"),
            "needs model.encoder.batch_norm `auto` or `frozen`",
        ),
    ]
    for key, holds, rule in rules:
        if not holds:
            raise ValueError(f"{key} {rule}")
