"""Optimizers by recipe, and the one place that writes a LR."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from knee_tune.config.recipe import Optimizer

_ADAM_FAMILY: dict[str, type[optim.Adam | optim.AdamW | optim.RAdam]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "radam": optim.RAdam,
}


def build_optimizer(spec: Optimizer, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Build ``torch.optim``'s optimizer of that name; the LR stays 0 until the loop writes it.

    Fused where torch has it so: a third of the time, for large models and for tiny ones.
    """
    options: dict[str, Any] = {"lr": 0.0, "weight_decay": spec.weight_decay}
    if spec.name == "radam":  # as its authors wrote it: the weight decay is no part of the gradient
        options["decoupled_weight_decay"] = True
    else:
        options["fused"] = True
    if spec.name == "sgd":
        return optim.SGD(parameters, momentum=spec.momentum, **options)
    return _ADAM_FAMILY[spec.name](parameters, betas=spec.betas, eps=spec.eps, **options)


def note_lr_scales(optimizer: optim.Optimizer) -> None:
    """Give every group without a ``lr_scale`` its LR over the optimizer's own as one.

    A scheduler that was made before has noted what a group's LR was.
    """
    usual = float(optimizer.defaults.get("lr", 0.0))
    for group in optimizer.param_groups:
        own = float(group.get("initial_lr", group["lr"]))
        group.setdefault("lr_scale", own / usual if usual else 1.0)


def write_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the LR of the coming update, times each group's ``lr_scale`` (1 if it has none).

    No scheduler state exists, so none can be restored wrong.
    """
    for group in optimizer.param_groups:
        scaled = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):  # of an optimizer that is compiled or in a graph
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


@torch.no_grad()
def step_each(
    optimizer: optim.Optimizer,
    parameters: list[nn.Parameter],
    before: list[Tensor],
    lrs: Tensor,
) -> None:
    """Update stacked models, (rows, ...) each, once, with a LR for every row (rows,).

    torch's optimizers take one LR. All of ours move by LR x direction, the decoupled weight decay
    too, so they step with LR 1 and every row then goes its own share of that way. ``before``:
    memory for the parameters as they were.
    """
    write_lr(optimizer, 1.0)
    torch._foreach_copy_(before, [*parameters])
    optimizer.step()
    for parameter, old in zip(parameters, before, strict=True):
        # From the old ones on: 1 - LR would be rounded, which a small LR cannot bear.
        torch.lerp(old, parameter, lrs.view(-1, *[1] * (old.dim() - 1)), out=parameter)
