"""What must stay the same when a run resumes: written, read, compared."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import make_identity

from pipeline.checkpoint.identity import RunIdentity
from pipeline.config.data import DataConfig
from pipeline.config.model import EncoderConfig, ModelConfig
from pipeline.config.run import Config

VALUES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5)


@given(st.integers(0, 9), st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_an_identity_survives_json(seed: int, model: dict) -> None:
    identity = make_identity(seed=seed, model=model)
    again = RunIdentity.from_json(json.loads(json.dumps(identity.to_json())))
    assert again == identity
    assert not list(identity.differences(again))


SHOWN = {
    "data_digest": "data.train (the digest of the data set)",
    "tokenizer_sha256": "data.train (the digest of its tokenizer)",
    "sample_order": "the version of the sample order",
    "seed": "seed",
    "global_batch_size": "data.global_batch_size",
    "shuffle_block": "data.shuffle_block",
    "streams": "data.streams",
    "model": "model.dim",
}


@pytest.mark.parametrize("field", [field.name for field in fields(RunIdentity)])
def test_every_field_is_compared(field: str) -> None:
    one = make_identity()
    changed = {"model.dim": 9} if field == "model" else "other"
    other = replace(one, **{field: changed})
    ((name, then, now),) = one.differences(other)
    assert (then, now) == ((8, 9) if field == "model" else (getattr(one, field), "other"))
    assert name == SHOWN[field]


def test_settings_that_are_added_or_gone_differ() -> None:
    one, other = make_identity(model={"model.dim": 8}), make_identity(model={"model.width": 8})
    assert [name for name, *_ in one.differences(other)] == ["model.dim", "model.width"]


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default() -> None:
    then = make_identity(model={})
    default = EncoderConfig().dropout
    assert not list(then.differences(make_identity(model={"model.encoder.dropout": default})))
    ((name, was, now),) = then.differences(make_identity(model={"model.encoder.dropout": 0.125}))
    assert (name, was, now) == ("model.encoder.dropout", default, 0.125)


def identity_of(config: Config) -> RunIdentity:
    return RunIdentity.of(config, "digest", "tokenizer", 1)


def test_the_identity_of_a_configuration_names_its_settings() -> None:
    config = Config(data=DataConfig(train="x"))
    changed = replace(config, seed=1, model=ModelConfig(encoder=EncoderConfig(hidden_dim=5)))
    names = [name for name, *_ in identity_of(config).differences(identity_of(changed))]
    assert names == ["seed", "model.encoder.hidden_dim"]


def test_it_does_not_matter_which_file_the_first_weights_came_from() -> None:
    def with_weights(weights: str | None) -> RunIdentity:
        return identity_of(Config(model=ModelConfig(encoder=EncoderConfig(weights=weights))))

    assert with_weights("a.pth") == with_weights("b.pth")
    assert with_weights("a.pth") != with_weights(None)
