"""What BERT is asked: inputs of a text, some of their tokens masked; any of them can be made again.

Documents stand behind each other in an order that is drawn for every epoch, and are cut into
inputs that are all full, so there is no padding. 15 % of an input's tokens are to be guessed: 80 %
of those are masked, 10 % are replaced by any token, 10 % stay (Devlin et al., 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from knee_tune.tasks.bert.wordpiece import Specials

GUESSED = 0.15
MASKED, REPLACED = 0.8, 0.1
"""Shares of the guessed tokens."""

NOT_GUESSED = -100
"""As a label: the token is no part of the loss."""


@dataclass(frozen=True)
class Inputs:
    """A batch of inputs; every tensor is int64 and begins with the batch (n, ...)."""

    tokens: Tensor
    """(n, length): what the model sees."""
    segments: Tensor
    """(n, length): 0 in the first part, 1 in the second."""
    places: Tensor
    """(n, guesses): where tokens are to be guessed."""
    labels: Tensor
    """(n, guesses): which they are."""
    follows: Tensor
    """(n,): 0 if the second part follows the first in the text, 1 if it is from elsewhere."""
    guesses: int
    """How many labels there are to guess: known here, for to ask a device is to wait for it."""

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Self:
        """A batch of these, in their order; they are not on a device yet."""
        tokens, segments, places, labels, follows = tensors
        guesses = int((labels != NOT_GUESSED).sum())
        return cls(tokens, segments, places, labels, follows, guesses)

    def to(self, device: torch.device) -> Self:
        """The same batch on ``device``."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            segments=self.segments.to(device),
            places=self.places.to(device),
            labels=self.labels.to(device),
            follows=self.follows.to(device),
        )

    def parts(self, count: int) -> list[Self]:
        """The same inputs in so many batches."""
        tensors = (self.tokens, self.segments, self.places, self.labels, self.follows)
        cut = zip(*(torch.tensor_split(each, count) for each in tensors), strict=True)
        return [self.of(part) for part in cut]


class Stream:
    """Documents behind each other, with a [SEP] after each.

    ``tokens``: of the whole text; ``starts`` and ``lengths``: of these documents in it, in order.
    """

    def __init__(
        self,
        tokens: NDArray[np.uint16],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        between: int,
    ) -> None:
        self._tokens, self._starts, self._lengths = tokens, starts, lengths
        self._between = between
        self._ends = np.cumsum(lengths + 1)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, places: Tensor) -> Tensor:
        """The tokens at these places, which count from 0, in the same shape."""
        wanted = places.numpy()
        document = np.searchsorted(self._ends, wanted, side="right")
        within = wanted - (self._ends[document] - self._lengths[document] - 1)
        inside = within < self._lengths[document]
        found = self._tokens[np.where(inside, self._starts[document] + within, 0)]
        return torch.from_numpy(np.where(inside, found, self._between).astype(np.int64))


class Masking:
    """Makes inputs of a stream; ``vocabulary``: how many tokens there are.

    ``paired``: an input has two parts, the second one half the time from elsewhere in the stream.
    """

    def __init__(self, specials: Specials, *, vocabulary: int, length: int, paired: bool) -> None:
        self._specials, self._vocabulary = specials, vocabulary
        self._length, self._paired = length, paired
        self.text = length - (3 if paired else 2)
        """Tokens of an input that are text."""
        self.guesses = max(1, round(GUESSED * self.text))

    def count(self, tokens: int) -> int:
        """The number of inputs that a stream of so many tokens has."""
        return tokens // self.text

    def inputs(
        self, stream: Stream, numbers: Tensor, draw: Generator, mine: slice = slice(None)
    ) -> Inputs:
        """Those of these numbers (n,) of a stream, of which only the ones in ``mine`` are made.

        Everything is drawn for all of them, so that a share does not depend on who has the others.
        """
        n, text = len(numbers), self.text
        cut = torch.randint(text // 4, text - text // 4, (n,), generator=draw)[mine]
        elsewhere = torch.rand(n, generator=draw)[mine] < 0.5
        start = torch.randint(max(1, len(stream) - text), (n,), generator=draw)[mine]
        chances = torch.rand(n, text, generator=draw)[mine]
        fate = torch.rand(n, self.guesses, generator=draw)[mine]
        others = torch.randint(self._vocabulary, (n, self.guesses), generator=draw)[mine]

        column = torch.arange(text)
        places = numbers[mine, None] * text + column
        second = (column >= cut[:, None]) & torch.tensor(self._paired)
        if self._paired:
            places = torch.where(second & elsewhere[:, None], start[:, None] + column, places)
        truth = stream.at(places)
        return self._framed(truth, second, elsewhere, chances, fate, others)

    def _framed(
        self,
        truth: Tensor,
        second: Tensor,
        elsewhere: Tensor,
        chances: Tensor,
        fate: Tensor,
        others: Tensor,
    ) -> Inputs:
        """Guess some of the true tokens, and stand [CLS] before and [SEP] after every part."""
        special = self._specials
        # What is between documents is nothing to guess.
        chances = chances.masked_fill(truth == special.between, 2.0)
        chance, guessed = chances.topk(self.guesses, largest=False, sorted=False)
        labels = truth.gather(1, guessed)
        shown = torch.where(fate < MASKED, special.mask, labels)
        shown = torch.where(fate >= 1 - REPLACED, others, shown)
        shown = torch.where(chance < 2.0, shown, labels)
        labels = labels.masked_fill(chance >= 2.0, NOT_GUESSED)

        n = len(truth)
        place = torch.arange(1, self.text + 1) + second  # a [SEP] stands before the second part
        tokens = torch.full((n, self._length), special.between)
        tokens[:, 0] = special.first
        tokens.scatter_(1, place, truth.scatter(1, guessed, shown))
        segments = torch.zeros_like(tokens).scatter_(1, place, second.long())
        segments[:, -1] = int(self._paired)
        return Inputs.of((tokens, segments, place.gather(1, guessed), labels, elsewhere.long()))
