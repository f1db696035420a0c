"""Stateless randomness: every random stream is named by its purpose, never carried along.

A stream depends on (seed, purpose, index) alone, so a run can be resumed or branched at any step
without restoring generators, and evaluation cannot disturb training.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np
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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the CPU's global generators (torch, numpy, random) as they are found."""
    found = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(found[0])
        np.random.set_state(found[1])
        random.setstate(found[2])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have the CPU's global generators start from ``seed``; afterwards they go on as before."""
    with undisturbed():
        seed_generators(seed)
        yield


def seed_generators(seed: int) -> None:
    """Seed the CPU's global generators: torch's, numpy's and Python's."""
    torch.default_generator.manual_seed(seed)
    seed_beside_torch(seed)


def seed_beside_torch(seed: int) -> None:
    """Seed the global generators of numpy and Python."""
    np.random.seed(seed % 2**32)
    random.seed(seed)


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
    drawn = torch.randint(classes, (len(labels),), generator=draw)
    return torch.where(noisy, drawn, labels)
