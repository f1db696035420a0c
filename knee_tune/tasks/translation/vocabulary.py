"""Symbols and their ids: fairseq's dictionaries, without fairseq."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from knee_tune.errors import UserError
from knee_tune.tasks.translation.text import Bpe

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
START, PAD, EOS, UNKNOWN = range(len(SPECIAL))

_COUNT = re.compile("[0-9]{1,18}")


@dataclass(frozen=True)
class Vocabulary:
    """Symbols with their counts, most frequent first; ids start after the special symbols."""

    counts: Mapping[str, int]

    @classmethod
    def build(cls, lines: Iterable[str]) -> "Vocabulary":
        """Count the symbols of ``lines``; sorted, and padded to a multiple of 8, as by fairseq."""
        counter = Counter(chain.from_iterable(line.split() for line in lines))
        for special in SPECIAL:
            counter.pop(special, None)
        counts = dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
        for number in range(-(len(SPECIAL) + len(counts)) % 8):
            counts[f"madeupword{number:04d}"] = 0
        return cls(counts)

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read a ``dict.<language>.txt``; UserError with the line that is wrong."""
        counts: dict[str, int] = {}
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8: no dictionary of fairseq") from None
        for number, line in enumerate(lines, start=1):
            if line:
                symbol, _, count = line.rstrip().rpartition(" ")
                if not symbol or not _COUNT.fullmatch(count):
                    raise UserError(f"{path}: line {number} is not a symbol and its count")
                if symbol in counts or symbol in SPECIAL:
                    raise UserError(f"{path}: line {number} holds a symbol that is there already")
                counts[symbol] = int(count)
        return cls(counts)

    def write(self, path: Path) -> None:
        """Write a ``dict.<language>.txt``."""
        text = "".join(f"{symbol} {count}\n" for symbol, count in self.counts.items())
        path.write_text(text, encoding="utf-8")

    def __len__(self) -> int:
        """Entries, special symbols included."""
        return len(SPECIAL) + len(self.counts)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of every symbol."""
        return {symbol: number for number, symbol in enumerate(chain(SPECIAL, self.counts))}

    def encode(self, line: str) -> list[int]:
        """Ids of a line of pieces, and of its end."""
        ids = self.ids
        return [*(ids.get(piece, UNKNOWN) for piece in line.split()), EOS]

    def text(self, tokens: Iterable[int], *, reference: bool = False) -> str:
        """Tokens as words: BPE joined; ``reference`` writes unknown words so that none can match.

        Starts and ends of sentences are left out.
        """
        symbols, unknown = self._symbols, f"<{SPECIAL[UNKNOWN]}>" if reference else SPECIAL[UNKNOWN]
        pieces = (
            unknown if token == UNKNOWN else symbols[token]
            for token in tokens
            if token not in (START, EOS)
        )
        return Bpe.decode([" ".join(pieces)])[0]

    @cached_property
    def _symbols(self) -> tuple[str, ...]:
        return (*SPECIAL, *self.counts)
