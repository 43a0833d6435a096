"""Rules for the values of settings, alone and in combination."""

import math
from operator import attrgetter

from pipeline.config.data import MAX_STREAMS, DataConfig
from pipeline.config.generation import USED_BY, GenerationConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.run import Config
from pipeline.config.settings_file import as_yaml
from pipeline.config.training import OptimConfig, TrainConfig

Rule = tuple[str, bool, str]  # the key, whether the rule holds, and the rule


def check_config(config: Config) -> None:
    """Refuse values that cannot work.

    Raises:
        ValueError: names the key and its value, and says what it must be.
    """
    rules = [*_run_rules(config), *_data_rules(config.data), *_model_rules(config.model)]
    rules += [*_training_rules(config.optim, config.train)]
    rules += _generation_rules(config.generation)
    for key, holds, rule in rules:
        if not holds:
            raise ValueError(f"{key}: {rule} (given: {as_yaml(attrgetter(key)(config))})")


def _run_rules(config: Config) -> list[Rule]:
    paths = {
        "run_dir": config.run_dir,
        "data.cache_dir": config.data.cache_dir,
        "monitor.sample_log": config.monitor.sample_log,
    }
    return [
        *(
            (key, "://" not in (path or ""), "must be a path on a file system, not a URL")
            for key, path in paths.items()
        ),
        ("run_dir", config.run_dir != "", "must name a folder"),
        ("seed", 0 <= config.seed < 1 << 63, "must be 0 or more, and below 2**63"),
        ("monitor.log_every", config.monitor.log_every >= 1, "must be 1 or more"),
        ("monitor.num_images", config.monitor.num_images >= 0, "must be 0 or more"),
    ]


def _data_rules(data: DataConfig) -> list[Rule]:
    return [
        ("data.train", data.train != "", "must name a folder of shards"),
        ("data.val", data.val != "", "must name a folder of shards, or be null"),
        ("data.global_batch_size", data.global_batch_size >= 1, "must be 1 or more"),
        ("data.captions_per_image", data.captions_per_image >= 1, "must be 1 or more"),
        ("data.workers", data.workers >= 0, "must be 0 or more"),
        ("data.image_size", data.image_size >= 32, "must be 32 or more"),
        ("data.min_crop", 0 < data.min_crop <= 1, "must be above 0 and at most 1"),
        ("data.shuffle_block", data.shuffle_block >= 1, "must be 1 or more"),
        ("data.streams", 1 <= data.streams <= MAX_STREAMS, f"must be 1 to {MAX_STREAMS}"),
        (
            "data.streams",
            data.global_batch_size % max(data.streams, 1) == 0,
            f"must divide data.global_batch_size, which is {data.global_batch_size}",
        ),
        ("data.max_bad", 0 <= data.max_bad <= 1, "must be a fraction from 0 to 1"),
        ("data.cache_dir", data.cache_dir != "", "must name a folder, or be null"),
        ("data.cache_gb", 0 < data.cache_gb < math.inf, "must be above 0 and finite"),
    ]


def _model_rules(model: ModelConfig) -> list[Rule]:
    encoder, decoder = model.encoder, model.decoder
    return [
        ("model.dim", model.dim >= 1, "must be 1 or more"),
        ("model.encoder.hidden_dim", encoder.hidden_dim >= 1, "must be 1 or more"),
        ("model.encoder.dropout", 0 <= encoder.dropout < 1, "must be at least 0 and below 1"),
        *_tuning_rules(encoder),
        *_decoder_rules(decoder, model.dim),
    ]


def _decoder_rules(decoder: DecoderConfig, dim: int) -> list[Rule]:
    heads = decoder.heads
    return [
        ("model.decoder.hidden_dim", decoder.hidden_dim >= 1, "must be 1 or more"),
        ("model.decoder.dropout", 0 <= decoder.dropout < 1, "must be at least 0 and below 1"),
        (
            "model.decoder.hidden_dim",
            decoder.kind != "adaptive" or decoder.hidden_dim == dim,
            f"must equal model.dim, which is {dim}, for the decoder `adaptive`",
        ),
        (
            "model.decoder.hidden_dim",
            decoder.kind != "transformer" or decoder.hidden_dim % (2 * max(heads, 1)) == 0,
            f"must be a multiple of 2 * model.decoder.heads, which is {2 * heads}, for the "
            "decoder `transformer`",
        ),
        ("model.decoder.attention_dim", decoder.attention_dim >= 1, "must be 1 or more"),
        (
            "model.decoder.attention_penalty",
            0 <= decoder.attention_penalty < math.inf,
            "must be 0 or more",
        ),
        ("model.decoder.layers", decoder.layers >= 1, "must be 1 or more"),
        ("model.decoder.heads", heads >= 1, "must be 1 or more"),
    ]


def _tuning_rules(encoder: EncoderConfig) -> list[Rule]:
    """A backbone that keeps random weights for a time is a mistake, and so are unused settings."""
    random, fixed = encoder.weights is None, encoder.tune == "none"
    epochs, factor = encoder.frozen_epochs, encoder.lr_factor
    grid = encoder.grid
    return [
        ("model.encoder.grid", grid is None or grid >= 1, "must be 1 or more, or null"),
        (
            "model.encoder.tune",
            encoder.tune == "all" or not random,
            "must be `all` where model.encoder.weights is null: random weights would be kept",
        ),
        ("model.encoder.frozen_epochs", 0 <= epochs < math.inf, "must be 0 or more"),
        (
            "model.encoder.frozen_epochs",
            epochs == 0 or not random,
            "must be 0 where model.encoder.weights is null: random weights would be kept",
        ),
        (
            "model.encoder.frozen_epochs",
            epochs == 0 or not fixed,
            "must be 0 where model.encoder.tune is `none`, which freezes all epochs",
        ),
        ("model.encoder.lr_factor", 0 < factor < math.inf, "must be above 0 and finite"),
        (
            "model.encoder.lr_factor",
            factor == 1 or not fixed,
            "must be 1 where model.encoder.tune is `none`, as nothing of the backbone is trained",
        ),
    ]


def _training_rules(optim: OptimConfig, train: TrainConfig) -> list[Rule]:
    return [
        ("optim.lr", 0 < optim.lr < math.inf, "must be above 0 and finite"),
        ("optim.lr_batch_size", optim.lr_batch_size >= 1, "must be 1 or more"),
        ("optim.warmup_epochs", 0 <= optim.warmup_epochs < math.inf, "must be 0 or more"),
        ("optim.weight_decay", 0 <= optim.weight_decay < math.inf, "must be 0 or more"),
        ("optim.clip", optim.clip >= 0, "must be 0 or more"),
        ("train.steps", train.steps is None or train.steps >= 1, "must be 1 or more, or null"),
        ("train.epochs", train.epochs is None or train.epochs >= 1, "must be 1 or more, or null"),
        (
            "train.epochs",
            train.epochs is not None or train.steps is not None,
            "must be set where train.steps is null: one of them ends the run",
        ),
        ("train.label_smoothing", 0 <= train.label_smoothing < 1, "must be at least 0, below 1"),
        ("train.accumulation_steps", train.accumulation_steps >= 1, "must be 1 or more"),
        (
            "train.checkpoint_every_epochs",
            0 <= train.checkpoint_every_epochs < math.inf,
            "must be 0 or more",
        ),
        ("train.checkpoint_minutes", train.checkpoint_minutes >= 0, "must be 0 or more"),
        ("train.eval_every_epochs", 0 <= train.eval_every_epochs < math.inf, "must be 0 or more"),
        ("train.keep", train.keep >= 1, "must be 1 or more"),
    ]


def _generation_rules(generation: GenerationConfig) -> list[Rule]:
    method, beam, groups = generation.method, generation.beam, generation.groups
    unused: list[Rule] = [
        (
            f"generation.{name}",
            method in methods or getattr(generation, name) == getattr(GenerationConfig, name),
            f"is for generation.method {' or '.join(methods)}, but the method is {method}: leave "
            "it out, or choose another method",
        )
        for name, methods in USED_BY.items()
    ]
    num_groups = beam if groups is None else groups
    best = beam if method in USED_BY["beam"] else math.inf
    return [
        *unused,
        ("generation.max_tokens", generation.max_tokens >= 1, "must be 1 or more"),
        (
            "generation.min_tokens",
            0 <= generation.min_tokens <= generation.max_tokens,
            f"must be from 0 to generation.max_tokens, which is {generation.max_tokens}",
        ),
        ("generation.no_repeat_ngram", generation.no_repeat_ngram >= 0, "must be 0 or more"),
        ("generation.beam", beam >= 1, "must be 1 or more"),
        (
            "generation.length_penalty",
            0 <= generation.length_penalty < math.inf,
            "must be 0 or more, and finite",
        ),
        (
            "generation.groups",
            num_groups >= 1 and beam % num_groups == 0,
            f"must be a number that divides generation.beam, which is {beam}, or null",
        ),
        ("generation.diversity", 0 <= generation.diversity < math.inf, "must be 0 or more"),
        ("generation.temperature", 0 < generation.temperature < math.inf, "must be above 0"),
        ("generation.top_k", generation.top_k >= 0, "must be 0 or more"),
        ("generation.top_p", 0 < generation.top_p <= 1, "must be above 0 and at most 1"),
        (
            "generation.num_captions",
            1 <= generation.num_captions <= best,
            f"must be 1 or more, and at most generation.beam, which is {beam}"
            if best < math.inf
            else "must be 1 or more",
        ),
        ("generation.seed", 0 <= generation.seed < 1 << 63, "must be 0 or more, and below 2**63"),
    ]
