"""The captioner as a whole."""

import torch

from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.model.captioner import Captioner

VOCAB = 11
TINY = ModelConfig(
    dim=8,
    encoder=EncoderConfig(name="shufflenet_v2_x0_5", hidden_dim=8, dropout=0.0),
    decoder=DecoderConfig(hidden_dim=12, dropout=0.0),
)


def test_an_image_is_encoded_once_for_all_its_captions() -> None:
    captioner = Captioner(TINY, VOCAB)
    calls = []
    captioner.encoder.register_forward_hook(lambda *args: calls.append(args[1][0].shape))
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    states = captioner(images, torch.randint(4, VOCAB, (3, 5, 7))).states
    assert states.shape == (15, 7, 12)
    assert captioner.decoder.to_words(states).shape == (15, 7, VOCAB)
    assert calls == [(3, 32, 32, 3)]


def test_the_names_of_the_weights_stay_those_of_checkpoints() -> None:
    names = set(Captioner(TINY, VOCAB).state_dict())
    assert {"encoder.mean", "encoder.std"} <= names
    assert {"encoder.backbone.network.conv1.0.weight", "encoder.head.0.weight"} <= names
    assert {n for n in names if n.startswith("decoder.")} == {
        "decoder.embed.weight", "decoder.to_words.weight", "decoder.to_words.bias",
        "decoder.rnn.weight_ih_l0", "decoder.rnn.weight_hh_l0",
        "decoder.rnn.bias_ih_l0", "decoder.rnn.bias_hh_l0",
    }  # fmt: skip
