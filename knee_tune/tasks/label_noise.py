"""Wrong labels on purpose."""

import torch
from torch import Tensor

from knee_tune.tasks.seeding import generator


def with_noise(labels: Tensor, *, share: float, classes: int, seed: int) -> Tensor:
    """Labels (n,) int64 of which each is, with probability ``share``, drawn from all ``classes``.

    A label that is drawn may come out as it was. The same ``seed`` gives the same labels.
    """
    draw = generator(seed, "label noise")
    noisy = torch.rand(len(labels), generator=draw) < share
    random = torch.randint(classes, (len(labels),), generator=draw)
    return torch.where(noisy, random, labels)
