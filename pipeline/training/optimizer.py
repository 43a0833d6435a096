"""The optimiser's parameter groups, and the learning rate as a pure function of the step."""

import math

from torch import nn, optim

from pipeline.config.training import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> optim.AdamW:
    """AdamW over the parameters that train: in one kernel, on GPUs and CPUs."""
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


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up to `config.lr`, then half a cosine down to 0.

    Args:
        step: optimiser steps taken so far, from 0.
        num_steps: of the whole run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
