"""Keskar's sharpness of a minimum (section 3.2.1, equation 1), by projected gradient ascent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from knee_tune.analysis.training_loss import flat, parts
from knee_tune.specs.analyses import Sharpness


@dataclass(frozen=True, kw_only=True)
class Sharp:
    """How sharp a minimum is."""

    value: float
    """(highest - loss) / (1 + loss) * 100"""
    loss: float
    """F at the weights themselves."""
    highest: float
    """The largest F found in the box."""
    stuck: bool
    """The gradient at the weights is exactly 0: the ascent could not leave them."""


@torch.no_grad()
def sharpness(
    loss: Callable[[], tuple[float, Tensor]],
    parameters: Sequence[Tensor],
    *,
    settings: Sharpness,
) -> Sharp:
    """How far F can rise within the box |y_i| <= epsilon * (|x_i| + 1) around the weights x.

    ``loss`` gives F at the present values of ``parameters``, and its gradient, flat. The ascent
    starts at y = 0 and takes plain steps ``y += lr * gradient``, each projected back into the box;
    the largest F on the way counts. It draws nothing, so it is the same every time. The
    parameters have their values back afterwards, whatever happens.
    """
    x = flat(parameters)
    bound = settings.epsilon * (x.abs() + 1)
    # Held apart from x: what is added in one step would be lost in the rounding of x + y.
    y = torch.zeros_like(x)
    try:
        start, gradient = loss()
        stuck = not bool(gradient.any())
        highest = start
        for _ in range(0 if stuck else settings.iterations):
            y.add_(gradient, alpha=settings.lr).clamp_(-bound, bound)
            _write(parameters, x + y)
            here, gradient = loss()
            highest = max(highest, here)
    finally:
        _write(parameters, x)
    value = (highest - start) / (1 + start) * 100
    return Sharp(value=value, loss=start, highest=highest, stuck=stuck)


def _write(parameters: Sequence[Tensor], values: Tensor) -> None:
    for parameter, value in zip(parameters, parts(values, parameters), strict=True):
        parameter.copy_(value)
