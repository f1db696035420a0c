"""Moses-equivalent text processing: tokenize, clean, split, and back to plain text.

The rules are those of fairseq's IWSLT'14 recipe (``tokenizer.perl``, ``clean-corpus-n.perl``, every
23rd line to validation), on top of sacremoses.
"""

import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any, TypeVar

from knee_tune.errors import UserError
from knee_tune.workers.cores import usable_cores

Progress = Callable[[str, float], None]
"""Told what is being done and which fraction of it (0 to 1) is done."""

Item = TypeVar("Item")

MOST_TOKENS = 175
HIGHEST_RATIO = 1.5
"""Of the longer side of a training pair, and of its length to that of the shorter."""

CHUNK = 2000
"""Lines that a process tokenizes at a time."""

_FINAL_PERIOD = re.compile(r"(?<=[^.\s])\.$")


def silent(text: str, fraction: float) -> None:
    """The progress callback that shows nothing."""


class Moses:
    """Tokenizer and detokenizer of one language; unknown languages use the English rules."""

    def __init__(self, language: str) -> None:
        # Imported here: its character tables take half a second to load.
        try:
            from sacremoses import MosesDetokenizer, MosesTokenizer
        except ImportError:
            raise UserError(
                "sacremoses is missing: install the translation extra, "
                "pip install 'knee-tune[translation]'"
            ) from None

        self._tokenizer: Any = MosesTokenizer(lang=language)
        self._detokenizer: Any = MosesDetokenizer(lang=language)

    def tokenize(self, line: str) -> str:
        """Tokens joined by blanks, special characters escaped (``&apos;``), as Moses does."""
        tokens: str = self._tokenizer.tokenize(line, return_str=True)
        # Moses splits the period off the last word whatever the word is; sacremoses keeps it with
        # abbreviations ("etc.").
        return _FINAL_PERIOD.sub(" .", tokens)

    def detokenize(self, line: str) -> str:
        """Plain text of a tokenized ``line``."""
        text: str = self._detokenizer.detokenize(line.split())
        return text


@cache
def moses(language: str) -> Moses:
    """The (shared) Moses rules of ``language``."""
    return Moses(language)


def tokenize_lines(
    lines: Sequence[str],
    language: str,
    *,
    lowercase: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Every line tokenized, in order; ``workers`` processes share large inputs.

    ``workers`` defaults to the cores this process may use.
    """
    chunks = [
        (lines[start : start + CHUNK], language, lowercase) for start in range(0, len(lines), CHUNK)
    ]
    workers = min(workers or usable_cores(), len(chunks) // 5)
    tokenized: list[str] = []
    text = f"tokenize {language}"
    if workers < 2:
        for done, chunk in enumerate(chunks):
            progress(text, done / len(chunks))
            tokenized += _tokenize_chunk(chunk)
    else:
        # Spawned, not forked: the caller may run threads (a progress display).
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for done, part in enumerate(pool.map(_tokenize_chunk, chunks)):
                progress(text, done / len(chunks))
                tokenized += part
    progress(text, 1.0)
    return tokenized


def _tokenize_chunk(chunk: tuple[Sequence[str], str, bool]) -> list[str]:
    lines, language, lowercase = chunk
    tokenized = map(moses(language).tokenize, lines)
    return [line.lower() for line in tokenized] if lowercase else list(tokenized)


def is_clean(source: str, target: str) -> bool:
    """Whether a tokenized training pair stays: not empty, not too long, of similar lengths."""
    shorter, longer = sorted((len(source.split()), len(target.split())))
    return shorter >= 1 and longer <= MOST_TOKENS and longer <= HIGHEST_RATIO * shorter


def every(items: Iterable[Item], n: int) -> tuple[list[Item], list[Item]]:
    """``items`` as (the rest, every ``n``-th one): numbers n, 2n, ..."""
    rest: list[Item] = []
    picked: list[Item] = []
    for number, item in enumerate(items, start=1):
        (rest if number % n else picked).append(item)
    return rest, picked


_DROPPED_TAGS = ("<url>", "<talkid>", "<keywords>")
_KEPT_TAGS = re.compile(r"</?(?:title|description)>")
_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*')
_SEGMENT_END = re.compile(r"\s*</seg>\s*")


def talk_text(lines: Iterable[str]) -> Iterator[str]:
    """Text of a ``train.tags`` file of the TED archive: no addresses, ids and keywords."""
    for line in lines:
        if not any(tag in line for tag in _DROPPED_TAGS):
            yield _KEPT_TAGS.sub("", line)


def segment_text(lines: Iterable[str]) -> Iterator[str]:
    """Text of the ``<seg>`` lines of a dev or test XML file of the TED archive."""
    for line in lines:
        if "<seg id" in line:
            yield _SEGMENT_END.sub("", _SEGMENT.sub("", line)).replace("’", "'")
