"""Parameter groups of the optimiser."""

from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.training import OptimConfig
from pipeline.model.captioner import Captioner
from pipeline.training.optimizer import make_optimizer


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
