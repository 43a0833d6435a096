"""Which part of the backbone is trained, and what a frozen part does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import densenet121, resnet18

from pipeline.config.model import EncoderConfig
from pipeline.model.encoders.image_encoder import ImageEncoder
from pipeline.model.encoders.tuning import batch_norms, freeze_unused


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return str(path)


def encoder_of(weights: str | None, **settings: object) -> ImageEncoder:
    config = EncoderConfig(name="resnet18", weights=weights, hidden_dim=8, **settings)
    return ImageEncoder(config, dim=10).train()


def images(count: int = 4, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


def changed_by_a_step(encoder: ImageEncoder) -> set[str]:
    """Names of the weights and statistics that one step with weight decay changes."""
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    encoder(images()).pooled.square().sum().backward()
    optimizer.step()
    after = encoder.state_dict()
    return {name for name in after if not torch.equal(after[name], before[name])}


def test_from_a_stage_upward(weights: str) -> None:
    changed = changed_by_a_step(encoder_of(weights, tune="layer3.1", batch_norm="train"))
    parts = {name.removeprefix("backbone.network.") for name in changed}
    layers = {".".join(name.split(".")[:2]) for name in parts if name.startswith("layer")}
    assert layers == {"layer3.1", "layer4.0", "layer4.1"}
    assert not {name for name in parts if name.startswith(("conv1", "bn1"))}
    assert "layer3.1.bn1.running_mean" in parts  # of the trained part; the frozen one's stay
    assert {name for name in parts if name.startswith("head.")}


def test_a_frozen_backbone_does_not_change_and_keeps_no_graph(weights: str) -> None:
    encoder = encoder_of(weights, tune="none", batch_norm="train")
    outputs = []
    encoder.backbone.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    changed = changed_by_a_step(encoder)
    assert changed
    assert all(name.startswith("head.") for name in changed)
    assert not outputs[0].requires_grad
    assert not any(module.training for module in encoder.backbone.modules())
    assert encoder.head.training


def test_everything_is_trained_by_default() -> None:
    encoder = encoder_of(None)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert changed_by_a_step(encoder) >= {name for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_frozen_statistics_do_not_drift(batch_norm: str) -> None:
    encoder = encoder_of(None, batch_norm=batch_norm).eval().train()
    before = [m.running_mean.clone() for m in batch_norms(encoder)]
    encoder(images())
    after = [m.running_mean for m in batch_norms(encoder)]
    drifted = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert drifted == (batch_norm == "train")


def test_pretrained_statistics_are_kept_and_those_of_the_head_trained(weights: str) -> None:
    changed = changed_by_a_step(encoder_of(weights))
    statistics = {name for name in changed if "running" in name}
    assert statistics == {"head.4.running_mean", "head.4.running_var"}


def test_a_backbone_can_be_frozen_for_a_while(weights: str) -> None:
    encoder = encoder_of(weights, batch_norm="train")
    encoder.freeze_backbone(True)
    encoder.eval()  # an evaluation between two steps
    encoder.train()
    assert all(name.startswith("head.") for name in changed_by_a_step(encoder))
    encoder.freeze_backbone(False)
    changed = changed_by_a_step(encoder)
    assert {"backbone.network.conv1.weight", "backbone.network.bn1.running_mean"} <= changed

    fixed = encoder_of(weights, tune="none")
    fixed.freeze_backbone(False)  # as every step after the frozen epochs says
    assert all(name.startswith("head.") for name in changed_by_a_step(fixed))


@pytest.mark.parametrize(("tune", "near"), [("layer5", "layer4"), ("x", "conv1, bn1")])
def test_a_module_that_is_not_there_is_refused_with_near_names(
    weights: str, tune: str, near: str
) -> None:
    with pytest.raises(ValueError, match=rf"model\.encoder\.tune: .*{tune}.*{near}"):
        encoder_of(weights, tune=tune)


def test_layers_that_the_output_does_not_need_are_not_trained() -> None:
    """mobilenetv3 has a convolution between its feature map and its classifier."""
    encoder = ImageEncoder(EncoderConfig(name="timm/mobilenetv3_small_050"), 10, "grid").eval()
    freeze_unused(encoder.backbone, encoder(images(1)).grid)
    frozen = {n for n, p in encoder.backbone.network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_head.weight", "conv_head.bias"}


def test_the_names_of_a_file_of_weights_are_the_names_to_tune_from(tmp_path: Path) -> None:
    path = tmp_path / "densenet121.safetensors"
    save_file(densenet121().state_dict(), path)
    for output in ("pooled", "grid"):
        config = EncoderConfig(name="densenet121", weights=str(path), tune="features.denseblock4")
        encoder = ImageEncoder(config, 10, output)
        trained = {n for n, p in encoder.backbone.network.named_parameters() if p.requires_grad}
        parts = {name.split(".")[1] for name in trained if name.startswith("features")}
        assert parts == {"denseblock4", "norm5"}


@pytest.mark.parametrize("name", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_synchronised_layers_compute_what_the_others_do(name: str) -> None:
    """timm's BatchNorm layers contain their activation."""
    plain, synchronised = (
        ImageEncoder(EncoderConfig(name=name, batch_norm=kind), 10).eval()
        for kind in ("train", "sync")
    )
    synchronised.load_state_dict(plain.state_dict())
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in synchronised.backbone.modules())
    batch = images(2)
    assert torch.equal(synchronised(batch).pooled, plain(batch).pooled)


def test_statistics_of_all_processes_together_are_for_backbone_and_head() -> None:
    encoder = encoder_of(None, batch_norm="sync")
    layers = list(batch_norms(encoder))
    assert {type(layer) for layer in layers} == {torch.nn.SyncBatchNorm}
    assert encoder.head[4] in layers
