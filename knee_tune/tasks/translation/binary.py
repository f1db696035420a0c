"""fairseq's memory-mapped files of sentences, written and read without fairseq.

``NAME.bin`` holds the token ids of all sentences one after another (end of sentence included);
``NAME.idx`` holds magic, version, type code, number of sentences, their sizes (int32) and their
byte offsets in the .bin file (int64), little-endian.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee_tune.errors import UserError
from knee_tune.tasks.translation.vocabulary import UNKNOWN, Vocabulary

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
_WRITTEN_AT_ONCE = 1 << 20
"""Tokens that are held in memory before they are written."""


@dataclass(frozen=True)
class Sentences:
    """Token ids of many sentences, one after another; a file's are read where they are touched."""

    tokens: NDArray[Any]
    """(tokens,) of all sentences, ends of sentences included."""
    sizes: NDArray[np.int32]
    """(sentences,)."""

    @classmethod
    def of(cls, sentences: Iterable[list[int]]) -> "Sentences":
        """Sentences that are lists of ids."""
        lists = list(sentences)
        flat = np.array([token for sentence in lists for token in sentence], np.int64)
        return cls(flat, np.array([len(sentence) for sentence in lists], np.int32))

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Ids of one sentence."""
        end = self._ends[index]
        return self.tokens[end - self.sizes[index] : end]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.sizes, dtype=np.int64)


def binarize(lines: Iterable[str], vocabulary: Vocabulary, prefix: Path) -> tuple[int, int, int]:
    """Write ``lines`` as ``<prefix>.bin`` and ``<prefix>.idx``; they may be more than fit memory.

    Returns the sentences, the tokens, ends of sentences included, and how many of those are
    unknown.
    """
    code = _UINT16 if len(vocabulary) < 65_500 else _UINT32
    sizes = array("i")
    tokens, total, unknown = array("I"), 0, 0
    with Path(f"{prefix}.bin").open("wb") as file:

        def write() -> None:
            nonlocal tokens, total, unknown
            flat = np.frombuffer(tokens, np.uint32)
            total, unknown = total + len(flat), unknown + int((flat == UNKNOWN).sum())
            file.write(flat.astype(_TYPES[code]).tobytes())
            tokens = array("I")

        for line in lines:
            ids = vocabulary.encode(line)
            tokens.extend(ids)
            sizes.append(len(ids))
            if len(tokens) > _WRITTEN_AT_ONCE:
                write()
        write()
    lengths = np.frombuffer(sizes, np.int32)
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(_TYPES[code]).itemsize
    Path(f"{prefix}.idx").write_bytes(
        _HEADER.pack(_MAGIC, 1, code, len(lengths)) + lengths.tobytes() + offsets.tobytes()
    )
    return len(lengths), total, unknown


def read_binarized(prefix: Path) -> Sentences:
    """Map the sentences into memory; UserError if the files are damaged."""
    index = Path(f"{prefix}.idx").read_bytes()
    try:
        magic, version, code, sentences = _HEADER.unpack_from(index)
        sizes = np.frombuffer(index, np.int32, sentences, _HEADER.size)
        offsets = np.frombuffer(index, np.int64, sentences, _HEADER.size + sizes.nbytes)
    except (struct.error, ValueError, OverflowError):
        raise UserError(f"{prefix}.idx is damaged: binarize the data again") from None
    if magic != _MAGIC or version != 1 or code not in _TYPES:
        raise UserError(f"{prefix}.idx is not in fairseq's mmap format: binarize it with that")
    ends, itemsize = np.cumsum(sizes, dtype=np.int64), np.dtype(_TYPES[code]).itemsize
    if sizes.min(initial=0) < 0 or not np.array_equal(offsets, (ends - sizes) * itemsize):
        raise UserError(f"{prefix}.idx is damaged: binarize the data again")
    path, total = Path(f"{prefix}.bin"), int(ends[-1]) if len(ends) else 0
    if path.stat().st_size != total * itemsize:
        raise UserError(
            f"{path} holds {path.stat().st_size // itemsize} tokens but {prefix.name}.idx says "
            f"{total}: binarize the data again"
        )
    # An empty file cannot be mapped.
    kind = _TYPES[code]
    flat = np.memmap(path, kind, mode="r") if total else np.empty(0, kind)
    return Sentences(flat, sizes)
