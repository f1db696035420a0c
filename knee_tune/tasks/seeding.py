"""Stateless randomness: every random stream is named by its purpose, never carried along.

A stream depends on (seed, purpose, index) alone, so a run can be resumed or branched at any step
without restoring generators, and evaluation cannot disturb training.
"""

import hashlib
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor


def stream_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for one stream, e.g. ``stream_seed(seed, "order", epoch)``."""
    text = "/".join(map(str, (seed, purpose, *index)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator at the start of that stream."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *index))


def seed_step(device: torch.device, seed: int, rank: int, step: int) -> None:
    """Seed torch's global generators for step ``step`` of this rank (dropout)."""
    value = stream_seed(seed, "step", rank, step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def epochs_after(start_step: int, steps: int) -> Iterator[tuple[int, range]]:
    """Epochs (from 0) of ``steps`` steps, each with its steps after ``start_step``; for ever."""
    epoch, made = divmod(start_step, steps)
    yield epoch, range(made, steps)
    yield from ((later, range(steps)) for later in count(epoch + 1))


def noisy_labels(labels: Tensor, *, share: float, classes: int, seed: int) -> Tensor:
    """Labels (n,) int64 of which each is, with probability ``share``, drawn from all ``classes``.

    A label that is drawn may come out as it was. The same ``seed`` gives the same labels.
    """
    draw = generator(seed, "label noise")
    noisy = torch.rand(len(labels), generator=draw) < share
    random = torch.randint(classes, (len(labels),), generator=draw)
    return torch.where(noisy, random, labels)
