"""Byte-pair encoding (Sennrich et al., 2016): learned, applied and undone.

File format and results are those of subword-nmt: codes version 0.2, ``@@`` after every piece that
does not end a word.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from knee_tune.errors import UserError
from knee_tune.tasks.translation.text import Progress, silent

Pair = tuple[str, str]

VERSION = "#version: 0.2"
SEPARATOR = "@@"
END = "</w>"
RAREST = 2
"""Pairs that occur less often are not merged."""


class Bpe:
    """Merges in the order in which they were learned; words already seen are remembered."""

    def __init__(self, merges: Sequence[Pair]) -> None:
        self.merges = tuple(merges)
        self._rank: dict[Pair, int] = {}
        for rank, pair in enumerate(self.merges):
            self._rank.setdefault(pair, rank)
        self._known: dict[str, str] = {}

    @classmethod
    def learn(cls, words: Mapping[str, int], *, merges: int, progress: Progress = silent) -> "Bpe":
        """The most frequent pairs of ``words`` (word -> count), at most ``merges`` of them."""
        return cls(_learn(words, merges, progress))

    @classmethod
    def read(cls, path: Path) -> "Bpe":
        """The codes in ``path``; UserError if it is no codes file of version 0.2."""
        try:
            head, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8: no BPE codes of subword-nmt") from None
        if head.strip() != VERSION:
            raise UserError(f"{path}: line 1 is not {VERSION!r}: no BPE codes of subword-nmt")
        merges: list[Pair] = []
        for number, line in enumerate(lines, start=2):
            match line.strip("\r ").split(" "):
                case [left, right]:
                    merges.append((left, right))
                case _:
                    raise UserError(f"{path}: line {number} does not hold two pieces")
        return cls(merges)

    def write(self, path: Path) -> None:
        """Write the codes as subword-nmt does."""
        lines = [VERSION, *(f"{left} {right}" for left, right in self.merges)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def encode(self, lines: Iterable[str]) -> list[str]:
        """Tokenized lines with their words cut into pieces."""
        known, cut = self._known, self._cut
        encoded: list[str] = []
        for line in lines:
            words = line.split()
            for word in words:
                if word not in known:
                    known[word] = cut(word)
            encoded.append(" ".join([known[word] for word in words]))
        return encoded

    @staticmethod
    def decode(lines: Iterable[str]) -> list[str]:
        """Lines of pieces with their words put together again."""
        return [(line + " ").replace(SEPARATOR + " ", "").rstrip() for line in lines]

    def _cut(self, word: str) -> str:
        pieces = [*word[:-1], word[-1] + END]
        unranked = len(self.merges)
        while len(pieces) > 1:
            rank, pair = min(
                (self._rank.get(pair, unranked), pair)
                for pair in zip(pieces, pieces[1:], strict=False)
            )
            if rank == unranked:
                break
            pieces = _merge(pieces, pair)
        pieces[-1] = pieces[-1].removesuffix(END)
        return f"{SEPARATOR} ".join(pieces)


def _merge(pieces: Sequence[str], pair: Pair) -> list[str]:
    """``pieces`` with every (left-most, not overlapping) ``pair`` joined."""
    merged: list[str] = []
    at, last = 0, len(pieces) - 1
    while at <= last:
        if at < last and pieces[at] == pair[0] and pieces[at + 1] == pair[1]:
            merged.append(pair[0] + pair[1])
            at += 2
        else:
            merged.append(pieces[at])
            at += 1
    return merged


def _learn(words: Mapping[str, int], merges: int, progress: Progress) -> list[Pair]:
    """Greedy merges by (count, pair), with a heap whose outdated entries are corrected on the way.

    An entry is (-count, reversed order of the pair, pair); a pair is pushed whenever its count
    rises, so the newest entry is never below the truth.
    """
    cut = [[*word[:-1], word[-1] + END] for word in words]
    times = list(words.values())
    count: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, pieces in enumerate(cut):
        for pair in zip(pieces, pieces[1:], strict=False):
            count[pair] += times[index]
            where[pair].add(index)

    order: dict[str, tuple[int, ...]] = {}

    def entry(pair: Pair) -> tuple[int, tuple[int, ...], tuple[int, ...], Pair]:
        # Of pairs with equal counts subword-nmt takes the last in alphabetical order.
        for piece in pair:
            if piece not in order:
                order[piece] = (*(-ord(character) for character in piece), 1)
        return -count[pair], order[pair[0]], order[pair[1]], pair

    heap = [entry(pair) for pair in count]
    heapq.heapify(heap)
    learned: list[Pair] = []
    while heap and len(learned) < merges:
        top = heapq.heappop(heap)
        best = top[-1]
        if -top[0] != count[best]:
            if count[best] >= RAREST:
                heapq.heappush(heap, entry(best))
            continue
        if count[best] < RAREST:
            break
        learned.append(best)
        if len(learned) % 100 == 0:
            progress("learn BPE", len(learned) / merges)

        change: Counter[Pair] = Counter()
        for index in where.pop(best):
            cut[index] = _merge_counted(cut[index], best, times[index], change, index, where)
        for pair, difference in change.items():
            count[pair] += difference
            if difference > 0:
                heapq.heappush(heap, entry(pair))
    progress("learn BPE", 1.0)
    return learned


def _merge_counted(
    pieces: list[str],
    pair: Pair,
    times: int,
    change: Counter[Pair],
    index: int,
    where: defaultdict[Pair, set[int]],
) -> list[str]:
    """``_merge`` that also notes which pairs a word (``index``, seen ``times``) lost and gained."""
    first, second = pair
    joined = first + second
    merged: list[str] = []
    after_merge = False
    at, size = 0, len(pieces)
    while at < size:
        piece = pieces[at]
        merges = piece == first and at + 1 < size and pieces[at + 1] == second
        new = joined if merges else piece
        if merged and (merges or after_merge):
            change[pieces[at - 1], piece] -= times
            gained = (merged[-1], new)
            change[gained] += times
            where[gained].add(index)
        if merges:
            change[pair] -= times
        merged.append(new)
        after_merge = merges
        at += 2 if merges else 1
    return merged
