"""Batches of sentence pairs by their tokens: which pairs, in which order, padded to one length.

They are fairseq's, to the bit: pairs in order of their lengths, ties by chance, are cut into
batches, whose order is drawn anew for every epoch from (seed, epoch).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knee_tune.tasks.translation.binary import Sentences, read_binarized
from knee_tune.tasks.translation.vocabulary import EOS, PAD
from knee_tune.workers.group import Group

Indices = NDArray[np.int64]

MULTIPLE = 8
"""Sentences of a training batch come in multiples of this: fairseq-train's default."""


@dataclass(frozen=True)
class Pairs:
    """The sentence pairs of one split; to be translated, they have no target."""

    source: Sentences
    target: Sentences | None = None

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of the longer side of every pair."""
        if self.target is None:
            return self.source.sizes
        return np.maximum(self.source.sizes, self.target.sizes)

    def fitting(self, indices: Indices, most: tuple[int, int]) -> Indices:
        """Those of the pairs whose sides have at most so many tokens."""
        fits = self.source.sizes[indices] <= most[0]
        if self.target is not None:
            fits &= self.target.sizes[indices] <= most[1]
        return indices[fits]

    def by_length(self, indices: Indices) -> Indices:
        """Sort by the length of the source, then by that of the target; ties stay as they are."""
        keys = [self.source.sizes[indices]]
        if self.target is not None:
            keys.insert(0, self.target.sizes[indices])
        return indices[np.lexsort(keys)]


def read_pairs(folder: Path, split: str, *, source: str, target: str) -> Pairs:
    """A split of a prepared set, mapped into memory."""
    sides = (folder / f"{split}.{source}-{target}.{language}" for language in (source, target))
    return Pairs(*map(read_binarized, sides))


def cut(
    lengths: NDArray[np.int32], *, max_tokens: int, multiple: int = 1, max_sentences: int = 0
) -> list[int]:
    """Cut sentences of these ``lengths`` (tokens), in their order, into batches: where each ends.

    A batch has as many sentences as fit into ``max_tokens`` when all are padded to its longest, a
    multiple of ``multiple`` or less than that, and at most ``max_sentences`` unless that is 0. No
    sentence is longer than ``max_tokens``.
    """
    ends: list[int] = []
    # The batch that grows, start to end, with its longest sentence, and what came after it but
    # makes no multiple yet.
    start = end = longest = longest_after = 0
    for at, length in enumerate(lengths.tolist()):
        longest_after = max(longest_after, length)
        sentences, width = at + 1 - start, max(longest, longest_after)
        if sentences * width > max_tokens or 0 < max_sentences < sentences:
            ends.append(end)
            if (at + 1 - end) * longest_after > max_tokens:
                ends.append(at)
                longest_after = length
            start, width = ends[-1], longest_after
        elif sentences > multiple and sentences % multiple:
            continue
        end, longest, longest_after = at + 1, width, 0
    if end:
        ends.append(end)
    if end < len(lengths):
        ends.append(len(lengths))
    return ends


def batches_by_length(
    pairs: Pairs,
    *,
    max_tokens: int,
    most: tuple[int, int],
    max_sentences: int = 0,
    limit: int | None = None,
) -> list[Indices]:
    """Indices of the pairs that fit, batched with others of their length.

    ``limit`` takes that many pairs only, spread evenly over the split.
    """
    count = min(limit or len(pairs), len(pairs))
    chosen = np.linspace(0, len(pairs) - 1, count).astype(np.int64)
    # By the length of the target, then by that of the source.
    keys = [pairs.source.sizes[chosen]]
    if pairs.target is not None:
        keys.append(pairs.target.sizes[chosen])
    order = pairs.fitting(chosen[np.lexsort(keys)], most)
    widest = int(pairs.lengths.max(initial=1))
    ends = cut(
        pairs.lengths[order], max_tokens=max(max_tokens, widest), max_sentences=max_sentences
    )
    return np.split(order, ends[:-1]) if ends else []


class Epochs:
    """The batches of the training pairs: the same in every epoch, in another order, dealt to ranks.

    What is left at the end of all pairs, fewer than ``multiple`` of the longest ones, is trained in
    no epoch (fairseq's rule), unless it is all there is.
    """

    def __init__(
        self, pairs: Pairs, *, max_tokens: int, multiple: int, most: tuple[int, int], seed: int
    ) -> None:
        self._seed = seed
        # fairseq counts epochs from 1, and draws the ties of all of them as of the first.
        drawn = np.random.RandomState(seed + 1).permutation(len(pairs)).astype(np.int64)
        order = pairs.fitting(pairs.by_length(drawn), most)
        ends = cut(pairs.lengths[order], max_tokens=max_tokens, multiple=multiple)
        self.batches = np.split(order, ends[:-1])
        if len(self.batches) > 1 and multiple > 1 and len(self.batches[-1]) % multiple:
            self.batches.pop()

    def steps(self, group: Group) -> int:
        """Batches of one rank in an epoch."""
        return -(-len(self.batches) // group.world_size)

    def shares(self, epoch: int, group: Group) -> list[Indices]:
        """This rank's batches of an epoch, counted from 0; the last may be empty."""
        order = np.arange(len(self.batches))
        np.random.RandomState(self._seed + epoch + 1).shuffle(order)
        mine = [self.batches[each] for each in order[group.rank :: group.world_size]]
        missing = self.steps(group) - len(mine)
        return mine + [np.empty(0, np.int64)] * missing


def collate(pairs: Pairs, indices: Sequence[int] | Indices) -> dict[str, Any]:
    """A batch as fairseq has it: the longest source first, sources padded left, targets right.

    ``net_input`` are the model's inputs: ``src_tokens`` and ``prev_output_tokens`` (the target, its
    last token first), int64 (sentences, time), and ``src_lengths``.
    """
    sources = [pairs.source[index] for index in indices]
    lengths, order = torch.tensor([len(each) for each in sources]).sort(descending=True)
    rows = order.tolist()
    inputs = {"src_tokens": _padded([sources[row] for row in rows], left=True)}
    inputs["src_lengths"] = lengths
    sample: dict[str, Any] = {"id": torch.as_tensor(np.asarray(indices, np.int64))[order]}
    if pairs.target is None:
        return sample | {"net_input": inputs, "target": None, "ntokens": int(lengths.sum())}
    targets = [pairs.target[indices[row]] for row in rows]
    shifted = [np.concatenate([[EOS], each[:-1]]) for each in targets]
    inputs["prev_output_tokens"] = _padded(shifted)
    tokens = sum(map(len, targets))
    return sample | {"net_input": inputs, "target": _padded(targets), "ntokens": tokens}


def _padded(sentences: Sequence[NDArray[Any]], *, left: bool = False) -> torch.Tensor:
    width = max(map(len, sentences))
    padded = np.full((len(sentences), width), PAD, np.int64)
    for row, sentence in zip(padded, sentences, strict=True):
        if left:
            row[width - len(sentence) :] = sentence
        else:
            row[: len(sentence)] = sentence
    return torch.from_numpy(padded)
