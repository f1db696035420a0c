"""From plain text to the pieces that a model reads, and back: Moses' rules, then BPE.

The rules are those of fairseq's recipes: ``tokenizer.perl`` (on top of sacremoses), for WMT'14
``normalize-punctuation.perl`` and ``remove-non-printing-char.perl`` before it,
``clean-corpus-n.perl``, and byte-pair encoding (Sennrich et al., 2016) as subword-nmt does it: the
same codes, in the format of its version 0.2, and the same pieces, ``@@`` after every one that does
not end a word.
"""

import heapq
import multiprocessing
import re
import unicodedata
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache, partial
from itertools import islice
from pathlib import Path
from sys import intern
from typing import Any, Literal

from knee_tune.errors import UserError
from knee_tune.workers.cores import usable_cores

Progress = Callable[[str, float], None]
"""Told what is being done and which fraction of it (0 to 1) is done."""

MOST_TOKENS = 175
HIGHEST_RATIO = 1.5
"""Of the longer side of a training pair, and of its length to that of the shorter."""

CHUNK = 2000
"""Lines that a process tokenizes at a time."""

Rules = Literal["iwslt14", "wmt14", "wmt14-test"]
"""How raw text becomes tokens. ``wmt14``: punctuation is normalised, characters that do not print
become blanks, and words are split at their hyphens; of test sets they are split, and no more."""

Pair = tuple[str, str]

VERSION = "#version: 0.2"
SEPARATOR = "@@"
END = "</w>"
RAREST = 2
"""Pairs that occur less often are not merged."""

_FINAL_PERIOD = re.compile(r"(?<=[^.\s])\.$")


def silent(text: str, fraction: float) -> None:
    """The progress callback that shows nothing."""


class _Printing(dict[int, str]):
    """What ``str.translate`` makes of a character: a blank if Unicode has it in category C."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = " " if unicodedata.category(character).startswith("C") else character
        return self[code]


_PRINTING = _Printing()


class Moses:
    """Tokenizer and detokenizer of one language; unknown languages use the English rules."""

    def __init__(self, language: str, rules: Rules = "iwslt14") -> None:
        # Imported here: its character tables take half a second to load.
        try:
            from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer
        except ImportError:
            raise UserError(
                "sacremoses is missing: install the translation extra, "
                "pip install 'knee-tune[translation]'"
            ) from None

        self._normalizer: Any = None
        if rules == "wmt14":
            self._normalizer = MosesPunctNormalizer(lang=language, perl_parity=True)
        self._split_hyphens = rules != "iwslt14"
        self._tokenizer: Any = MosesTokenizer(lang=language)
        self._detokenizer: Any = MosesDetokenizer(lang=language)

    def tokenize(self, line: str) -> str:
        """Tokens joined by blanks, special characters escaped (``&apos;``), as Moses does."""
        if self._normalizer is not None:
            line = self._normalizer.normalize(line).translate(_PRINTING)
        tokens: str = self._tokenizer.tokenize(
            line, return_str=True, aggressive_dash_splits=self._split_hyphens
        )
        # Moses splits the period off the last word whatever the word is; sacremoses keeps it with
        # abbreviations ("etc.").
        return _FINAL_PERIOD.sub(" .", tokens)

    def detokenize(self, line: str) -> str:
        """Plain text of a tokenized ``line``."""
        text: str = self._detokenizer.detokenize(line.split())
        return text


@cache
def moses(language: str, rules: Rules = "iwslt14") -> Moses:
    """The (shared) Moses rules of ``language``."""
    return Moses(language, rules)


def tokenize_lines(
    lines: Sequence[str],
    language: str,
    *,
    lowercase: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Tokenize every line, in order; ``workers`` processes share large inputs.

    ``workers`` defaults to the cores this process may use.
    """
    chunks = -(-len(lines) // CHUNK)
    workers = min(workers or usable_cores(), chunks // 5)
    result: list[str] = []
    for done, part in enumerate(
        tokenized(lines, language, lowercase=lowercase, workers=workers), start=1
    ):
        progress(f"tokenize {language}", done / chunks)
        result += part
    progress(f"tokenize {language}", 1.0)
    return result


def tokenized(
    lines: Iterable[str],
    language: str,
    *,
    lowercase: bool = True,
    rules: Rules = "iwslt14",
    workers: int,
) -> Iterator[list[str]]:
    """Tokenize every line, in order, some thousand at a time; the lines may be endless."""
    tokenize = partial(_tokenize_chunk, language=language, lowercase=lowercase, rules=rules)
    rest = iter(lines)
    chunks = iter(lambda: list(islice(rest, CHUNK)), [])
    if workers < 2:
        yield from map(tokenize, chunks)
        return
    # Spawned, not forked: the caller may run threads (a progress display).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: deque[Future[list[str]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(tokenize, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _tokenize_chunk(
    lines: Sequence[str], *, language: str, lowercase: bool, rules: Rules
) -> list[str]:
    tokens = map(moses(language, rules).tokenize, lines)
    return [line.lower() for line in tokens] if lowercase else list(tokens)


def is_clean(source: str, target: str, *, most: int = MOST_TOKENS) -> bool:
    """Check a tokenized training pair: not empty, not too long, of similar lengths."""
    shorter, longer = sorted((len(source.split()), len(target.split())))
    return shorter >= 1 and longer <= most and longer <= HIGHEST_RATIO * shorter


class Bpe:
    """Byte-pair merges, in the order in which they were learned; words seen before are kept cut."""

    def __init__(self, merges: Sequence[Pair]) -> None:
        self.merges = tuple(merges)
        self._rank: dict[Pair, int] = {}
        for rank, pair in enumerate(self.merges):
            self._rank.setdefault(pair, rank)
        self._known: dict[str, str] = {}

    @classmethod
    def learn(cls, words: Mapping[str, int], *, merges: int, progress: Progress = silent) -> "Bpe":
        """Learn the most frequent pairs of ``words`` (word -> count), ``merges`` at most."""
        return cls(_learn(words, merges, progress))

    @classmethod
    def read(cls, path: Path) -> "Bpe":
        """Read the codes in ``path``; UserError if it is no codes file of version 0.2."""
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
        """Cut the words of tokenized lines into pieces."""
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
        """Join the words of lines of pieces again."""
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
    # Words of millions of types: every piece is one object, and places are numbers of 4 bytes.
    cut = [[*map(intern, word[:-1]), intern(word[-1] + END)] for word in words]
    times = list(words.values())
    count: Counter[Pair] = Counter()
    where: defaultdict[Pair, array[int]] = defaultdict(lambda: array("I"))
    for index, pieces in enumerate(cut):
        for pair in zip(pieces, pieces[1:], strict=False):
            count[pair] += times[index]
            where[pair].append(index)

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
        for index in dict.fromkeys(where.pop(best)):
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
    where: "defaultdict[Pair, array[int]]",  # an array cannot be subscripted in 3.11
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
            where[gained].append(index)
        if merges:
            change[pair] -= times
        merged.append(new)
        after_merge = merges
        at += 2 if merges else 1
    return merged
