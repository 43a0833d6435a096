"""Model, loss, decoding, learning rate."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.training import OptimConfig
from pipeline.generation.greedy import greedy
from pipeline.model.captioner import Captioner
from pipeline.model.decoders.recurrent import RecurrentDecoder
from pipeline.model.encoders.torchvision import Encoder, batch_norms
from pipeline.objectives.cross_entropy import caption_loss
from pipeline.training.optimizer import make_optimizer
from shards.tokenizer import BOS, EOS, PAD

VOCAB = 11
TINY = ModelConfig(
    dim=8,
    encoder=EncoderConfig(name="shufflenet_v2_x0_5", hidden_dim=8, dropout=0.0),
    decoder=DecoderConfig(hidden_dim=12, dropout=0.0),
)


def pictures(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_any_classifier_becomes_a_perceptron(name: str) -> None:
    encoder = Encoder(EncoderConfig(name=name, hidden_dim=16), dim=10).eval()
    size = 224 if name.startswith("vit") else 64
    assert encoder(pictures(2, size)).shape == (2, 10)
    kinds = [type(m) for m in encoder.modules()]
    assert kinds.count(nn.PReLU) == 1


@pytest.mark.parametrize("name", ["densenet12", "squeezenet1_1", "googlenet"])
def test_an_encoder_that_cannot_be_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Encoder(EncoderConfig(name=name), dim=10)


def test_weights_come_from_a_file_and_freeze_what_they_filled(tmp_path) -> None:
    from torchvision.models import resnet18

    source = resnet18()
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    encoder = Encoder(EncoderConfig(name="resnet18", weights=str(path), freeze=True), dim=10)
    assert torch.equal(encoder.backbone.conv1.weight, source.conv1.weight)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("backbone.fc.") for name in trained)
    with pytest.raises(ValueError, match="does not fit resnet34"):
        Encoder(EncoderConfig(name="resnet34", weights=str(path)), dim=10)
    with pytest.raises(ValueError, match="no such file"):
        Encoder(EncoderConfig(name="resnet18", weights="nowhere.pth"), dim=10)


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_frozen_statistics_do_not_drift(batch_norm: str) -> None:
    encoder = Encoder(EncoderConfig(name="resnet18", batch_norm=batch_norm), dim=10)
    encoder.eval()
    encoder.train()
    before = [m.running_mean.clone() for m in batch_norms(encoder)]
    encoder(pictures(4, 64))
    after = [m.running_mean for m in batch_norms(encoder)]
    drifted = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert drifted == (batch_norm == "train")


def test_an_image_is_encoded_once_for_all_its_captions() -> None:
    captioner = Captioner(TINY, VOCAB)
    calls = []
    captioner.encoder.register_forward_hook(lambda *args: calls.append(args[1][0].shape))
    assert captioner(pictures(3), torch.randint(4, VOCAB, (3, 5, 7))).shape == (15, 7, VOCAB)
    assert calls == [(3, 32, 32, 3)]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_stepping_equals_teacher_forcing(kind: str) -> None:
    decoder = RecurrentDecoder(DecoderConfig(kind=kind, hidden_dim=12), 8, VOCAB).eval()
    images, tokens = torch.randn(3, 8), torch.randint(4, VOCAB, (3, 6))
    at_once = decoder(images, tokens)
    state = decoder.start(images)
    for position in range(6):
        logits, state = decoder.step(tokens[:, position], state)
        torch.testing.assert_close(logits, at_once[:, position])


def test_padding_changes_nothing() -> None:
    decoder = RecurrentDecoder(DecoderConfig(hidden_dim=12), 8, VOCAB).eval()
    images, tokens = torch.randn(3, 8), torch.randint(4, VOCAB, (3, 6))
    padded = functional.pad(tokens, (0, 4), value=PAD)
    torch.testing.assert_close(decoder(images, padded)[:, :6], decoder(images, tokens))


# ------------------------------------------------------------------------------------------ decode


class Parrot:
    """A decoder that says fixed words, then EOS for ever."""

    def __init__(self, captions: list[list[int]]) -> None:
        self.captions = captions
        self.steps = 0

    def start(self, images: torch.Tensor) -> int:
        return 0

    def step(self, tokens: torch.Tensor, state: int) -> tuple[torch.Tensor, int]:
        expected = [BOS if state == 0 else (c + [EOS] * 99)[state - 1] for c in self.captions]
        assert [t for t in tokens.tolist() if t != PAD] == [
            e for t, e in zip(tokens.tolist(), expected, strict=True) if t != PAD
        ]
        self.steps += 1
        said = torch.tensor([(c + [EOS] * 99)[state] for c in self.captions])
        logits = functional.one_hot(said, VOCAB).float()
        logits[:, PAD] = logits[:, BOS] = 9.0  # must never be said
        return logits, state + 1


def test_greedy_decoding_stops_when_all_have_ended() -> None:
    parrot = Parrot([[5, 6, 7], [8]])
    tokens = greedy(parrot, torch.zeros(2, 8), max_tokens=20)
    assert tokens.tolist() == [[5, 6, 7, EOS], [8, EOS, PAD, PAD]]
    assert parrot.steps == 4


def test_greedy_decoding_stops_at_the_longest_allowed() -> None:
    assert greedy(Parrot([[5] * 50]), torch.zeros(1, 8), max_tokens=3).tolist() == [[5, 5, 5]]


# -------------------------------------------------------------------------------------------- loss


def test_the_loss_is_a_sum_over_valid_tokens() -> None:
    logits = torch.randn(3, 4, VOCAB, dtype=torch.float64)
    targets = torch.tensor([[5, 6, EOS, PAD], [7, EOS, PAD, PAD], [5, 5, 5, EOS]])
    loss_sum, num_tokens = caption_loss(logits, targets, torch.tensor([1.0, 1.0, 0.0]))
    logp = logits.log_softmax(-1)
    by_hand = -sum(logp[n, t, targets[n, t]] for n, t in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    assert float(num_tokens) == 5
    torch.testing.assert_close(loss_sum, by_hand)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        caption_loss(torch.zeros(2, 3, VOCAB), torch.zeros(2, 4, dtype=torch.int64), torch.ones(2))


# --------------------------------------------------------------------------------------- optimiser


def test_only_matrices_decay_and_the_frozen_do_not_train() -> None:
    captioner = Captioner(TINY, VOCAB)
    captioner.encoder.backbone.conv1.requires_grad_(False)
    decayed, plain = make_optimizer(captioner, OptimConfig()).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (OptimConfig().weight_decay, 0.0)
    ids = {id(p) for p in decayed["params"]} | {id(p) for p in plain["params"]}
    assert ids == {id(p) for p in captioner.parameters() if p.requires_grad}
    assert any(p is captioner.decoder.embed.weight for p in plain["params"])
    assert all(p.ndim > 1 for p in decayed["params"])
