"""Images to vectors."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from pipeline.config.model import EncoderConfig
from pipeline.model.encoders.image_encoder import ImageEncoder, batch_norms


def images(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_the_classifier_is_replaced_by_a_perceptron(name: str) -> None:
    encoder = ImageEncoder(EncoderConfig(name=name, hidden_dim=16), dim=10).eval()
    encoded = encoder(images(2, 224 if name.startswith("vit") else 64))
    assert encoded.pooled.shape == (2, 10)
    assert encoded.grid is None
    kinds = [type(m) for m in encoder.modules()]
    assert kinds.count(nn.PReLU) == 1


@pytest.mark.parametrize("name", ["densenet12", "squeezenet1_1", "googlenet", "nowhere/resnet18"])
def test_an_encoder_that_cannot_be_used_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ImageEncoder(EncoderConfig(name=name), dim=10)


def test_weights_from_a_file_are_loaded_and_can_be_frozen(tmp_path: Path) -> None:
    source = resnet18()
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    encoder = ImageEncoder(EncoderConfig(name="resnet18", weights=str(path), freeze=True), dim=10)
    assert torch.equal(encoder.backbone.conv1.weight, source.conv1.weight)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("backbone.fc.") for name in trained)


def test_weights_that_do_not_fit_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit resnet34: .* Missing key.*layer1"):
        ImageEncoder(EncoderConfig(name="resnet34", weights=str(path)), dim=10)
    with pytest.raises(ValueError, match="no such file"):
        ImageEncoder(EncoderConfig(name="resnet18", weights="nowhere.pth"), dim=10)


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_frozen_statistics_do_not_drift(batch_norm: str) -> None:
    encoder = ImageEncoder(EncoderConfig(name="resnet18", batch_norm=batch_norm), dim=10)
    encoder.eval()
    encoder.train()
    before = [m.running_mean.clone() for m in batch_norms(encoder)]
    encoder(images(4, 64))
    after = [m.running_mean for m in batch_norms(encoder)]
    drifted = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert drifted == (batch_norm == "train")


def test_images_are_normalised_as_the_backbone_expects() -> None:
    """In buffers, which travel in a checkpoint. efficientnet_v2_l has not ImageNet's statistics."""
    usual = ImageEncoder(EncoderConfig(name="resnet18", hidden_dim=8), dim=4).eval()
    other = ImageEncoder(EncoderConfig(name="efficientnet_v2_l", hidden_dim=8), dim=4)
    assert usual.state_dict()["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert usual.state_dict()["std"].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert other.state_dict()["mean"].flatten().tolist() == [0.5, 0.5, 0.5]
    seen = []
    usual.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = images(1, 32)
    usual(batch)
    by_hand = (batch[0, 3, 5] / 255 - usual.mean.flatten()) / usual.std.flatten()
    torch.testing.assert_close(seen[0][0, :, 3, 5], by_hand)
