"""Stateless randomness: every random stream is named by what it is for, never carried along.

A stream depends on (seed, purpose, index) alone, so a run can be resumed or branched at any step
without restoring generators, and evaluation cannot disturb training.
"""

import hashlib

import torch


def stream_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for one stream, e.g. ``stream_seed(seed, "order", epoch)``."""
    text = "/".join(map(str, (seed, purpose, *index)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator at the start of that stream."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *index))


def seed_step(device: torch.device, seed: int, rank: int, step: int) -> None:
    """Put torch's global generators where step ``step`` of this rank starts (dropout)."""
    value = stream_seed(seed, "step", rank, step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
