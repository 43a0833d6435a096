"""Images to vectors: backbones of both libraries, and the heads on them."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.repository import ROOT
from torch import nn
from torchvision.models import get_model, resnet18

from pipeline.config.model import EncoderConfig
from pipeline.model.encoders.backbone import Backbone, Output
from pipeline.model.encoders.image_encoder import ImageEncoder, load_backbone

LITE2 = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite2.safetensors"

# Backbones whose vector is the mean of their feature map, and their F.
AVERAGED = {
    "resnet18": 512, "densenet121": 1024, "shufflenet_v2_x0_5": 1024, "efficientnet_b0": 1280,
    "mnasnet0_5": 1280, "mobilenet_v2": 1280, "mobilenet_v3_small": 576, "regnet_y_400mf": 440,
    "swin_t": 768, "timm/resnet10t": 512, "timm/test_efficientnet": 256,
    "timm/swin_tiny_patch4_window7_224": 768,
}  # fmt: skip


def images(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


def backbone_of(name: str, output: Output, grid: int | None = None) -> Backbone:
    """A backbone in eval mode; of the same name always with the same random weights."""
    torch.manual_seed(0)
    return load_backbone(EncoderConfig(name=name, grid=grid), output).eval()


# --------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("name", AVERAGED)
@torch.no_grad()
def test_the_vector_is_the_mean_of_the_grid_where_the_network_averages(name: str) -> None:
    pooled, grid = backbone_of(name, "pooled"), backbone_of(name, "grid")
    pixels = torch.randn(2, 3, 96, 96)
    vectors, positions = pooled(pixels), grid(pixels)
    assert vectors.shape == (2, pooled.num_features) == (2, AVERAGED[name])
    assert positions.shape == (2, 9, grid.num_features)
    assert positions.std() > 0
    torch.testing.assert_close(positions.mean(dim=1), vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "num_positions"),
    [
        ("alexnet", 64, 1), ("vgg11", 64, 4), ("convnext_tiny", 64, 4), ("vit_b_32", 224, 49),
        ("maxvit_t", 224, 49), ("timm/test_convnext", 64, 4), ("timm/test_vit", 96, 36),
        ("timm/test_vit2", 96, 36), ("timm/test_vit3", 64, 16),
        ("timm/vit_tiny_patch16_224", 64, 16), ("timm/mobilenetv3_small_050", 64, 4),
    ],
)  # fmt: skip
@torch.no_grad()
def test_other_backbones_have_both_outputs_too(name: str, size: int, num_positions: int) -> None:
    pixels = torch.randn(2, 3, size, size)
    pooled, grid = backbone_of(name, "pooled"), backbone_of(name, "grid")
    assert pooled(pixels).shape == (2, pooled.num_features)
    assert grid(pixels).shape == (2, num_positions, grid.num_features)


@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit"])
@torch.no_grad()
def test_positions_are_row_by_row(name: str) -> None:
    """An image whose first row differs changes the first positions most."""
    grid = backbone_of(name, "grid")
    pixels = torch.zeros(1, 3, 160, 160)
    changed = pixels.clone()
    changed[..., :32, 128:] = 3.0  # the upper right corner
    side = round(grid(pixels).shape[1] ** 0.5)
    difference = (grid(changed) - grid(pixels)).abs().sum(dim=-1).view(side, side)
    row, column = divmod(int(difference.argmax()), side)
    assert row < side / 3
    assert column >= side - side / 3


@torch.no_grad()
def test_the_map_is_pooled_to_the_grid_that_is_asked_for() -> None:
    whole, pooled = backbone_of("resnet18", "grid"), backbone_of("resnet18", "grid", grid=2)
    pixels = torch.randn(1, 3, 128, 128)
    quarters = whole(pixels).view(4, 4, -1).unflatten(0, (2, 2)).unflatten(2, (2, 2))
    torch.testing.assert_close(pooled(pixels)[0], quarters.mean(dim=(1, 3)).flatten(0, 1))
    with pytest.raises(ValueError, match="grid: 2 is larger than the feature map, whose side is 1"):
        pooled(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["densenet121", "shufflenet_v2_x0_5", "convnext_tiny"])
def test_encoding_and_random_numbers_are_those_of_a_head_in_place_of_the_classifier(
    name: str,
) -> None:
    """As checkpoints and recipes of earlier versions were trained, bit for bit."""
    torch.manual_seed(0)
    network = get_model(name)
    part = "fc" if name.startswith("shuffle") else "classifier"
    replaced = getattr(network, part)
    layers = [replaced] if isinstance(replaced, nn.Linear) else list(replaced)
    first, last = nn.Linear(layers[-1].in_features, 16), nn.Linear(16, 10)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    head = (first, nn.PReLU(), nn.Dropout(0.5), last, nn.BatchNorm1d(10))
    setattr(network, part, nn.Sequential(*layers[:-1], *head))
    expected_next = torch.rand(3)

    torch.manual_seed(0)
    encoder = ImageEncoder(EncoderConfig(name=name, hidden_dim=16), dim=10)
    assert torch.equal(torch.rand(3), expected_next)
    batch = images(4, 64)
    pixels = (batch.permute(0, 3, 1, 2) / 255.0 - encoder.mean) / encoder.std
    torch.manual_seed(1)
    expected = network(pixels)
    expected.square().sum().backward()
    torch.manual_seed(1)
    encoded = encoder(batch)
    assert encoded.grid is None
    assert torch.equal(encoded.pooled, expected)
    encoded.pooled.square().sum().backward()
    for parameter, other in zip(encoder.parameters(), network.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)


# ------------------------------------------------------------------------------------------ heads


@torch.no_grad()
def test_a_grid_has_a_vector_a_position_and_their_mean() -> None:
    config = EncoderConfig(name="resnet18", dropout=0.25)
    encoder = ImageEncoder(config, dim=10, output="grid").eval()
    batch = images(2, 96)
    encoded = encoder(batch)
    assert encoded.grid.shape == (2, 9, 10)
    torch.testing.assert_close(encoded.pooled, encoded.grid.mean(dim=1))
    assert encoded.grid.min() == 0  # a ReLU
    features = torch.randn(200, 9, 512)
    whole, dropped = encoder(features).grid, encoder.train()(features).grid
    assert (dropped[whole > 0] == 0).float().mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("output", ["pooled", "grid"])
@torch.no_grad()
def test_stored_features_go_through_the_head_alone(output: Output) -> None:
    encoder = ImageEncoder(EncoderConfig(name="resnet18", hidden_dim=8), 10, output).eval()
    batch = images(3, 64)
    expected = encoder(batch)
    kept = []
    encoder.backbone.register_forward_hook(lambda module, inputs, features: kept.append(features))
    encoder(batch)
    (features,) = kept
    for part, other in zip(encoder(features), expected, strict=True):
        assert other is part is None or torch.equal(part, other)
    assert len(kept) == 1
    rounded = encoder(features.half()).pooled  # as they are stored
    torch.testing.assert_close(rounded, expected.pooled, rtol=1e-2, atol=1e-2)


def test_images_are_normalised_as_the_backbone_expects() -> None:
    """In buffers, which travel in a checkpoint. efficientnet_v2_l has not ImageNet's statistics."""
    usual = ImageEncoder(EncoderConfig(name="resnet18", hidden_dim=8), dim=4).eval()
    other = ImageEncoder(EncoderConfig(name="timm/tf_efficientnet_lite2", hidden_dim=8), dim=4)
    assert usual.state_dict()["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert usual.state_dict()["std"].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert other.state_dict()["mean"].flatten().tolist() == [0.5, 0.5, 0.5]
    assert other.preprocessing.std == (0.5, 0.5, 0.5)
    assert (other.preprocessing.image_size, other.preprocessing.interpolation) == (260, "bicubic")
    assert usual.preprocessing.image_size == 224
    seen = []
    usual.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = images(1, 32)
    usual(batch)
    by_hand = (batch[0, 3, 5] / 255 - usual.mean.flatten()) / usual.std.flatten()
    torch.testing.assert_close(seen[0][0, :, 3, 5], by_hand)


@pytest.mark.parametrize("output", ["pooled", "grid"])
@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5", "timm/test_vit"])
def test_the_state_is_complete(name: str, output: Output, tmp_path: Path) -> None:
    config = EncoderConfig(name=name, hidden_dim=8)
    encoder = ImageEncoder(config, 10, output).eval()
    save_file(encoder.state_dict(), tmp_path / "state.safetensors")
    again = ImageEncoder(config, 10, output).eval()
    batch = images(2, 64)
    assert not torch.equal(again(batch).pooled, encoder(batch).pooled)
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(again(batch).pooled, encoder(batch).pooled)


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("output", ["pooled", "grid"])
def test_weights_from_a_file_are_loaded(tmp_path: Path, output: Output) -> None:
    source = resnet18()
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    encoder = ImageEncoder(EncoderConfig(name="resnet18", weights=str(path)), 10, output)
    assert torch.equal(encoder.backbone.network.conv1.weight, source.conv1.weight)
    assert torch.equal(
        encoder.backbone.network.layer4[1].conv2.weight, source.layer4[1].conv2.weight
    )
    fresh = ImageEncoder(
        EncoderConfig(name="resnet18", weights="nowhere.pth"), 10, output, pretrained=False
    )
    assert not torch.equal(fresh.backbone.network.conv1.weight, source.conv1.weight)


def test_weights_of_timm_load_whatever_classifier_they_have(tmp_path: Path) -> None:
    import timm

    source = timm.create_model("resnet10t", num_classes=7)
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    encoder = ImageEncoder(EncoderConfig(name="timm/resnet10t", weights=str(path)), 10).eval()
    assert torch.equal(
        encoder.backbone.network.layer4[0].conv1.weight, source.layer4[0].conv1.weight
    )
    with pytest.raises(ValueError, match=r"does not fit timm/resnet14t: .* Missing key"):
        ImageEncoder(EncoderConfig(name="timm/resnet14t", weights=str(path)), 10)


def test_weights_that_do_not_fit_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit resnet34: .* Missing key.*layer1"):
        ImageEncoder(EncoderConfig(name="resnet34", weights=str(path)), dim=10)
    with pytest.raises(ValueError, match="no such file"):
        ImageEncoder(EncoderConfig(name="resnet18", weights="nowhere.pth"), dim=10)


@pytest.mark.skipif(not LITE2.is_file(), reason="no real weights beside the checkout")
@pytest.mark.parametrize(("size", "num_positions"), [(224, 49), (260, 81)])
@torch.no_grad()
def test_real_weights_of_timm_give_the_features_of_the_library(
    size: int, num_positions: int
) -> None:
    import timm

    network = timm.create_model("tf_efficientnet_lite2").eval()
    network.load_state_dict(load_file(LITE2))
    config = EncoderConfig(name="timm/tf_efficientnet_lite2", weights=str(LITE2))
    pixels = torch.rand(1, 3, size, size) * 2 - 1
    features = load_backbone(config, "grid").eval()(pixels)
    assert features.shape == (1, num_positions, 1280)
    side = round(num_positions**0.5)
    expected = network.forward_features(pixels)
    assert torch.equal(features.transpose(1, 2).unflatten(2, (side, side)), expected)
    pooled = load_backbone(config, "pooled").eval()(pixels)
    assert torch.equal(network.classifier(pooled), network(pixels))


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "name",
    ["densenet12", "squeezenet1_1", "googlenet", "nowhere/resnet18", "timm/resnet10"],
)
def test_an_encoder_that_cannot_be_used_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name.removeprefix("timm/")):
        ImageEncoder(EncoderConfig(name=name), dim=10)


def test_a_backbone_without_a_grid_is_refused() -> None:
    """crossvit gives two kinds of tokens, of two sizes of patches."""
    backbone = backbone_of("timm/crossvit_9_240", "grid")
    with pytest.raises(ValueError, match=r"model\.encoder\.name: this backbone has no grid"):
        backbone(torch.zeros(1, 3, 240, 240))
    with pytest.raises(ValueError, match=r"model\.encoder\.grid: must be null"):
        ImageEncoder(EncoderConfig(name="resnet18", grid=4), dim=10)


def test_a_transformer_of_a_checkpoint_has_the_positions_of_its_weights() -> None:
    """The weights of vit_h_14 are for 518 pixels; torchvision's network without weights for 224."""
    with torch.device("meta"):  # 2.5 GB otherwise
        backbone = backbone_of("vit_h_14", "grid")
    assert backbone.network.get_parameter("encoder.pos_embedding").shape[1] == 1 + 37**2


def test_timm_is_needed_only_for_its_own_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    ImageEncoder(EncoderConfig(name="resnet18"), dim=10)
    with pytest.raises(ValueError, match=r"pip install '.\[timm\]'"):
        ImageEncoder(EncoderConfig(name="timm/resnet10t"), dim=10)
