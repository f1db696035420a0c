"""From pixels to what networks take."""

from functools import cache

import torch
from torch import Tensor

Colour = tuple[float, float, float]
"""Red, green and blue, 1 at their fullest."""


def normalised(pixels: Tensor, *, mean: Colour, std: Colour) -> Tensor:
    """(n, h, w, 3) uint8 as networks take them: (n, 3, h, w) float32, channels last in memory."""
    n, height, width, _ = pixels.shape
    # Whole rows at a time: to repeat three numbers along the last dimension is slow on a CPU.
    rows = pixels.float().reshape(n, height, 3 * width)
    rows.sub_(_row(mean, width, rows.device)).div_(_row(std, width, rows.device))
    return rows.view(n, height, width, 3).permute(0, 3, 1, 2)


@cache
def _row(colour: Colour, width: int, device: torch.device) -> Tensor:
    """A row of pixels of one colour, (3 * width,) from 0 to 255; copied to a device once."""
    return torch.tensor(colour, device=device).mul(255).repeat(width)
