"""Parameter groups of the optimiser."""

import pytest
import torch

from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.training import OptimConfig
from pipeline.model.captioner import Captioner
from pipeline.training.optimizer import make_optimizer, set_learning_rate


def tiny_captioner() -> Captioner:
    torch.manual_seed(0)
    encoder = EncoderConfig(name="shufflenet_v2_x0_5", hidden_dim=8)
    return Captioner(
        ModelConfig(dim=8, encoder=encoder, decoder=DecoderConfig(hidden_dim=12)), vocab_size=11
    )


def test_only_matrices_decay_and_frozen_parameters_do_not_train() -> None:
    captioner = tiny_captioner()
    captioner.encoder.backbone.network.conv1.requires_grad_(False)
    decayed, plain = make_optimizer(captioner, OptimConfig()).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (OptimConfig().weight_decay, 0.0)
    ids = {id(p) for p in decayed["params"]} | {id(p) for p in plain["params"]}
    assert ids == {id(p) for p in captioner.parameters() if p.requires_grad}
    assert any(p is captioner.decoder.embed.weight for p in plain["params"])
    assert all(p.ndim > 1 for p in decayed["params"])


def updates(factor: float) -> dict[str, torch.Tensor]:
    """How far one step of rate 0.01 moves each weight, all gradients being 1."""
    captioner = tiny_captioner()
    optimizer = make_optimizer(captioner, OptimConfig(weight_decay=0), factor)
    before = {name: p.detach().clone() for name, p in captioner.named_parameters()}
    for parameter in captioner.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in captioner.named_parameters()}


def test_the_backbone_can_have_a_learning_rate_of_its_own() -> None:
    same, quarter = updates(1.0), updates(0.25)
    assert set(same) == set(quarter)
    for name, update in same.items():
        factor = 0.25 if name.startswith("encoder.backbone.") else 1.0
        torch.testing.assert_close(quarter[name], factor * update, rtol=1e-3, atol=1e-6)
        assert update.abs().max() == pytest.approx(0.01, rel=1e-3)
