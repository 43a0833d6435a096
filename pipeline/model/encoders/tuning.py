"""Which part of a backbone is trained."""

from collections.abc import Iterator
from difflib import get_close_matches

import torch
from torch import nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def freeze_part(network: nn.Module, tune: str) -> list[nn.Module]:
    """Exclude the part of a network that `tune` leaves out from the training.

    Args:
        tune: `all`, `none`, or the name of the first module that is trained, in the order in which
            the network registers its modules.
    Returns:
        The modules of the frozen part; a module that holds trained ones may be among them.
    Raises:
        ValueError: the network has no module of this name.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    if tune == "all":
        return []
    frozen = [network, *modules.values()]
    if tune != "none":
        if tune not in modules:
            near = get_close_matches(tune, modules) or [name for name in modules if "." not in name]
            raise ValueError(
                f"model.encoder.tune: the backbone has no module {tune!r}; choose `all`, `none`, "
                f"or a module such as {', '.join(near)}"
            )
        frozen = frozen[: 1 + list(modules).index(tune)]
    for module in frozen:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return frozen


def freeze_unused(network: nn.Module, output: torch.Tensor) -> None:
    """Exclude parameters on which an output does not depend: DDP would wait for their gradients.

    A backbone of timm whose feature map is used keeps the layers between map and classifier.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if trained:
        gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)


def batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    """All BatchNorm layers of a module."""
    return (part for part in module.modules() if isinstance(part, BatchNorm))
