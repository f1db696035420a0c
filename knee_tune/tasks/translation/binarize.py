"""Vocabularies and fairseq's memory-mapped binary files, written without fairseq.

``NAME.bin`` holds the token ids of all sentences one after another (end of sentence included);
``NAME.idx`` holds magic, version, type code, number of sentences, their sizes (int32) and their
byte offsets in the .bin file (int64), little-endian.
"""

import re
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knee_tune.errors import UserError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
EOS = SPECIAL.index("</s>")
UNKNOWN = SPECIAL.index("<unk>")

_COUNT = re.compile("[0-9]{1,18}")

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQ")
# fairseq's type codes; 16 bits while the vocabulary is below 65,500 entries.
_UINT16, _UINT32 = 8, 9
_TYPES: Mapping[int, type[np.generic]] = {
    4: np.int32,
    5: np.int64,
    _UINT16: np.uint16,
    _UINT32: np.uint32,
}


@dataclass(frozen=True)
class Vocabulary:
    """Symbols with their counts, most frequent first; ids start after the special symbols."""

    counts: Mapping[str, int]

    @classmethod
    def build(cls, lines: Iterable[str]) -> "Vocabulary":
        """As fairseq's preprocessing does: sorted, and padded to a multiple of 8 entries."""
        counter = Counter(chain.from_iterable(line.split() for line in lines))
        for special in SPECIAL:
            counter.pop(special, None)
        counts = dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
        for number in range(-(len(SPECIAL) + len(counts)) % 8):
            counts[f"madeupword{number:04d}"] = 0
        return cls(counts)

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """A ``dict.<language>.txt``; UserError with the line that is wrong."""
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

    def ids(self) -> dict[str, int]:
        """Id of every symbol."""
        return {symbol: number for number, symbol in enumerate(chain(SPECIAL, self.counts))}


@dataclass(frozen=True, kw_only=True)
class Binarized:
    """What a binary file holds."""

    sentences: int
    tokens: int
    """Ends of sentences included."""
    unknown: int


def binarize(lines: Iterable[str], vocabulary: Vocabulary, prefix: Path) -> Binarized:
    """Write ``lines`` as ``<prefix>.bin`` and ``<prefix>.idx``."""
    code = _UINT16 if len(vocabulary) < 65_500 else _UINT32
    ids = vocabulary.ids()
    tokens = array("I")
    sizes = array("i")
    for line in lines:
        start = len(tokens)
        tokens.extend([ids.get(token, UNKNOWN) for token in line.split()])
        tokens.append(EOS)
        sizes.append(len(tokens) - start)
    flat = np.frombuffer(tokens, np.uint32).astype(_TYPES[code])
    lengths = np.frombuffer(sizes, np.int32)
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * flat.itemsize
    Path(f"{prefix}.bin").write_bytes(flat.tobytes())
    Path(f"{prefix}.idx").write_bytes(
        _HEADER.pack(_MAGIC, 1, code, len(lengths)) + lengths.tobytes() + offsets.tobytes()
    )
    return Binarized(
        sentences=len(lengths), tokens=len(flat), unknown=int(np.count_nonzero(flat == UNKNOWN))
    )


def read_binarized(prefix: Path) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """All token ids and the sizes of the sentences; UserError if the files are damaged."""
    index = Path(f"{prefix}.idx").read_bytes()
    try:
        magic, version, code, sentences = _HEADER.unpack_from(index)
        sizes = np.frombuffer(index, np.int32, sentences, _HEADER.size)
        offsets = np.frombuffer(index, np.int64, sentences, _HEADER.size + sizes.nbytes)
    except (struct.error, ValueError, OverflowError):
        raise UserError(f"{prefix}.idx is damaged: binarize the data again") from None
    if magic != _MAGIC or version != 1 or code not in _TYPES:
        raise UserError(f"{prefix}.idx is not in fairseq's mmap format: binarize it with that")
    ends = np.cumsum(sizes, dtype=np.int64)
    if sizes.min(initial=0) < 0 or not np.array_equal(
        offsets, (ends - sizes) * np.dtype(_TYPES[code]).itemsize
    ):
        raise UserError(f"{prefix}.idx is damaged: binarize the data again")
    flat = np.fromfile(f"{prefix}.bin", _TYPES[code])
    if len(flat) != sizes.sum():
        raise UserError(
            f"{prefix}.bin holds {len(flat)} tokens but {prefix.name}.idx says {sizes.sum()}: "
            "binarize the data again"
        )
    return flat.astype(np.int64), sizes
