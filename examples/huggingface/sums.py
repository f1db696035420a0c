"""Sums of two numbers as symbols, ``27+58=085``, and a small GPT-2 that reads them."""

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

SYMBOLS = "0123456789+="


class Sums(Dataset[dict[str, Tensor]]):
    """The sums from ``start`` to ``end`` of all, in a fixed order; results are what is learned."""

    def __init__(self, start: int, end: int) -> None:
        order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
        self._pairs = [divmod(pair, 100) for pair in order[start:end].tolist()]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        a, b = self._pairs[index]
        symbols = torch.tensor([SYMBOLS.index(each) for each in f"{a:02}+{b:02}={a + b:03}"])
        return {"input_ids": symbols, "labels": symbols.where(torch.arange(9) > 5, -100)}


def network() -> GPT2LMHeadModel:
    """Return a GPT-2 of two layers."""
    size = {"n_positions": 9, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(SYMBOLS), bos_token_id=None, eos_token_id=None, **size)
    )
