"""The optimiser and its parameter groups."""

from typing import Any

from torch import nn, optim

from pipeline.config.training import OptimConfig
from pipeline.model.captioner import Captioner

LR_FACTOR = "lr_factor"  # of a parameter group; a group without it has 1


def make_optimizer(
    captioner: Captioner, config: OptimConfig, backbone_factor: float = 1.0
) -> optim.AdamW:
    """AdamW over the parameters that require gradients, fused on GPUs and CPUs.

    `set_learning_rate` is called before each step.

    Args:
        backbone_factor: the learning rate of the encoder's backbone is this times that of the
            other layers. Other factors than 1 give the backbone parameter groups of its own.
    """
    if backbone_factor == 1:
        groups = _groups(captioner, list(captioner.parameters()), config)
    else:
        backbone = list(captioner.encoder.backbone.parameters())
        ids = {id(parameter) for parameter in backbone}
        others = [parameter for parameter in captioner.parameters() if id(parameter) not in ids]
        groups = _groups(captioner, others, config)
        for group in _groups(captioner, backbone, config):
            groups.append({**group, LR_FACTOR: backbone_factor})
    return optim.AdamW(groups, lr=config.lr, fused=True)


def set_learning_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the scheduled learning rate, in each group times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(LR_FACTOR, 1.0)


def _groups(
    model: nn.Module, parameters: list[nn.Parameter], config: OptimConfig
) -> list[dict[str, Any]]:
    """The trained ones of the parameters, with and without weight decay."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in parameters:
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and id(parameter) not in embeddings
            (decayed if is_matrix else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
