"""Random crops and flips of a whole batch at once, on the device, from uint8.

What an epoch draws is drawn at its start, on the CPU and from a stream of its own: every device
and every partition over ranks sees the same images, and an epoch can be entered at any step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from knee_tune.tasks.seeding import generator
from knee_tune.tasks.vision import pixels

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training images, by channel, for pixels in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What one epoch draws, (n,) each."""

    order: Tensor
    """The image at every place of the epoch."""
    top: Tensor
    left: Tensor
    """The corner of the crop in the padded image, 0 to twice the padding."""
    flip: Tensor
    """Whether left and right are swapped, bool."""

    @classmethod
    def of_epoch(
        cls, epoch: int, *, seed: int, images: int, padding: int, flip: bool, device: torch.device
    ) -> "Draws":
        """Drawn anew from (``seed``, ``epoch``), and moved to ``device`` in one go."""
        draw = generator(seed, "images", epoch)
        order = torch.randperm(images, generator=draw)
        corners = torch.randint(2 * padding + 1, (2, images), generator=draw)
        flips = torch.randint(2, (images,), generator=draw) * flip
        order, top, left, flips = torch.stack([order, *corners, flips]).to(device)
        return cls(order=order, top=top, left=left, flip=flips.bool())

    def __getitem__(self, places: slice) -> "Draws":
        return Draws(
            order=self.order[places],
            top=self.top[places],
            left=self.left[places],
            flip=self.flip[places],
        )


def pad(images: Tensor, padding: int) -> Tensor:
    """Black pixels around every image, (n, s, s, 3) -> (n, s + 2 padding, s + 2 padding, 3)."""
    n, height, width, channels = images.shape
    padded = images.new_zeros(n, height + 2 * padding, width + 2 * padding, channels)
    padded[:, padding : padding + height, padding : padding + width] = images
    return padded


def crop(padded: Tensor, draws: Draws, *, side: int) -> Tensor:
    """Crops and flips of the drawn images, (n, side, side, 3) uint8, in one gather."""
    span = torch.arange(side, device=padded.device)
    rows = draws.top[:, None] + span
    columns = draws.left[:, None] + torch.where(draws.flip[:, None], side - 1 - span, span)
    return padded[draws.order[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalised(images: Tensor) -> Tensor:
    """Images (n, s, s, 3) uint8 as networks take them: (n, 3, s, s) float32, channels last."""
    return pixels.normalised(images, mean=MEAN, std=STD)
