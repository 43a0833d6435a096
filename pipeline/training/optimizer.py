"""The optimiser and its parameter groups."""

from torch import nn, optim

from pipeline.config.training import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> optim.AdamW:
    """AdamW over the parameters that require gradients, fused on GPUs and CPUs.

    `Schedule.learning_rate` sets the learning rate before each step.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and id(parameter) not in embeddings
            (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=config.lr, fused=True)
