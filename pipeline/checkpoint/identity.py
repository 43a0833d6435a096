"""RunIdentity: what must stay the same when a run resumes.

Written into each checkpoint and compared field by field when a run resumes: both happen here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from pipeline.config.model import ModelConfig
from pipeline.config.run import Config

Setting = bool | int | float | str | None

# What a user calls each field; a field that is not listed is a setting of the same name.
_NAMES = {
    "data_digest": "data.train (the digest of the data set)",
    "tokenizer_sha256": "data.train (the digest of its tokenizer)",
    "sample_order": "the version of the sample order",
    "global_batch_size": "data.global_batch_size",
    "shuffle_block": "data.shuffle_block",
    "streams": "data.streams",
}


@dataclass(frozen=True)
class RunIdentity:
    """What makes a run the same run.

    Args:
        data_digest: digest of the training data set.
        tokenizer_sha256: digest of its tokenizer.
        sample_order: version of the algorithm that orders the samples.
        seed: of weights, order, crops and dropout.
        global_batch_size: images a step.
        shuffle_block: shards whose samples are mixed.
        streams: canonical streams of the sample order.
        model: each model setting by its dotted name.
    """

    data_digest: str
    tokenizer_sha256: str
    sample_order: int
    seed: int
    global_batch_size: int
    shuffle_block: int
    streams: int
    model: Mapping[str, Setting]

    @classmethod
    def of(cls, config: Config, data_digest: str, tokenizer_sha256: str, sample_order: int) -> Self:
        """The identity of a run with this configuration on this data set."""
        return cls(
            data_digest,
            tokenizer_sha256,
            sample_order,
            config.seed,
            config.data.global_batch_size,
            config.data.shuffle_block,
            config.data.streams,
            _model_settings(config.model),
        )

    def to_json(self) -> dict[str, Any]:
        """The identity as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            TypeError: fields are missing or unknown.
        """
        return cls(**value)

    def differences(self, other: Self) -> Iterator[tuple[str, Setting, Setting]]:
        """Name, own value and other value of each field that differs."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "model":
                # A setting that one side lacks is newer than that side, which used its default.
                ours, theirs = _DEFAULTS | ours, _DEFAULTS | theirs
                for name in sorted({*ours, *theirs}):
                    if ours.get(name) != theirs.get(name):
                        yield name, ours.get(name), theirs.get(name)
            elif ours != theirs:
                yield _NAMES.get(field.name, field.name), ours, theirs


def _model_settings(model: ModelConfig) -> dict[str, Setting]:
    """Each model setting by its dotted name."""

    def flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Setting]]:
        for name, value in section.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}", value

    settings = dict(flat(asdict(model), "model"))
    # A checkpoint brings its weights, so it does not matter from which file they first came.
    given = settings["model.encoder.weights"] is not None
    return settings | {"model.encoder.weights": "given" if given else None}


_DEFAULTS = _model_settings(ModelConfig())
