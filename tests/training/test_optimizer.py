"""Parameter groups and the learning rate."""

import itertools
import math

import pytest

from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.training import OptimConfig
from pipeline.model.captioner import Captioner
from pipeline.training.optimizer import learning_rate, make_optimizer


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=4)
    rates = [learning_rate(config, step, 12) for step in range(13)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert math.isclose(learning_rate(OptimConfig(lr=2.0, warmup_steps=0), 0, 10), 2.0)


def test_only_matrices_decay_and_frozen_parameters_do_not_train() -> None:
    encoder = EncoderConfig(name="shufflenet_v2_x0_5", hidden_dim=8)
    captioner = Captioner(ModelConfig(8, 30, encoder, DecoderConfig(hidden_dim=12)), vocab_size=11)
    captioner.encoder.backbone.conv1.requires_grad_(False)
    decayed, plain = make_optimizer(captioner, OptimConfig()).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (OptimConfig().weight_decay, 0.0)
    ids = {id(p) for p in decayed["params"]} | {id(p) for p in plain["params"]}
    assert ids == {id(p) for p in captioner.parameters() if p.requires_grad}
    assert any(p is captioner.decoder.embed.weight for p in plain["params"])
    assert all(p.ndim > 1 for p in decayed["params"])
