"""Writing a prepared set: vocabularies and fairseq's memory-mapped files, without fairseq.

``NAME.bin`` holds the token ids of all sentences one after another (end of sentence included);
``NAME.idx`` holds magic, version, type code, number of sentences, their sizes (int32) and their
byte offsets in the .bin file (int64), little-endian.
"""

import re
import shutil
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import record_files, write_manifest
from knee_tune.tasks.translation.corpus import Corpus
from knee_tune.tasks.translation.prepared import CODES, Manifest, read_manifest
from knee_tune.tasks.translation.text import Bpe, Progress, silent

Text = tuple[list[str], list[str]]
"""Lines of the source side and of the target side."""

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

    def ids(self) -> dict[str, int]:
        """Id of every symbol."""
        return {symbol: number for number, symbol in enumerate(chain(SPECIAL, self.counts))}


def binarize(lines: Iterable[str], vocabulary: Vocabulary, prefix: Path) -> tuple[int, int]:
    """Write ``lines`` as ``<prefix>.bin`` and ``<prefix>.idx``.

    Returns the tokens, ends of sentences included, and how many of them are unknown.
    """
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
    return len(flat), int(np.count_nonzero(flat == UNKNOWN))


def read_binarized(prefix: Path) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Read all token ids and the sizes of the sentences; UserError if the files are damaged."""
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


def finished(folder: Path, request: Mapping[str, Any], *, force: bool = False) -> Manifest | None:
    """Manifest of the set in ``folder`` if it answers ``request``; None if it is to be made.

    UserError if another set is there, unless ``force``.
    """
    if force or not folder.exists():
        return None
    manifest = read_manifest(folder, verify=True)
    if manifest.request != request:
        raise UserError(
            f"{folder} was prepared from other data or with other options: "
            "choose another `name`, or replace it with `force`"
        )
    return manifest


def write_text(
    folder: Path,
    text: Mapping[str, Text],
    *,
    name: str,
    kind: str,
    source: str,
    target: str,
    bpe: Bpe,
    joint_dictionary: bool = False,
    dropped: int = 0,
    request: Mapping[str, Any],
    progress: Progress = silent,
) -> Manifest:
    """Write vocabularies (of the training text) and binary files of ``text``, pieces by split."""
    source_text, target_text = text["train"]
    if joint_dictionary:
        vocabularies = dict.fromkeys((source, target), Vocabulary.build(source_text + target_text))
    else:
        vocabularies = {
            source: Vocabulary.build(source_text),
            target: Vocabulary.build(target_text),
        }
    tokens: dict[str, int] = {}
    unknown: dict[str, int] = {}
    for done, (split, sides) in enumerate(text.items()):
        progress("binarize", done / len(text))
        for (language, vocabulary), lines in zip(vocabularies.items(), sides, strict=True):
            prefix = folder / f"{split}.{source}-{target}.{language}"
            side = f"{split}.{language}"
            tokens[side], unknown[side] = binarize(lines, vocabulary, prefix)
    progress("binarize", 1.0)
    known = set(source_text)
    return _finish(
        folder,
        vocabularies,
        bpe,
        name=name,
        kind=kind,
        source=source,
        target=target,
        pairs={split: len(sides[0]) for split, sides in text.items()},
        tokens=tokens,
        unknown=unknown,
        dropped=dropped,
        overlap={
            split: sum(line in known for line in sides[0])
            for split, sides in text.items()
            if split != "train"
        },
        request=request,
    )


def copy_binarized(
    folder: Path, corpus: Corpus, *, name: str, kind: str, bpe: Bpe, request: Mapping[str, Any]
) -> Manifest:
    """Copy data that fairseq has binarized; UserError if its files do not fit together."""
    languages = (corpus.source, corpus.target)
    pairs: dict[str, int] = {}
    tokens: dict[str, int] = {}
    unknown: dict[str, int] = {}
    vocabularies = {
        language: Vocabulary.read(sides[2])
        for language, sides in zip(languages, corpus.splits["train"], strict=True)
    }
    for split, sides in corpus.splits.items():
        for language, (data, index, _) in zip(languages, sides, strict=True):
            ids, sizes = read_binarized(data.with_suffix(""))
            entries = len(vocabularies[language])
            if len(strange := ids[(ids < 0) | (ids >= entries)]):
                raise UserError(
                    f"{data} holds token {strange[0]} but dict.{language}.txt has {entries} "
                    "entries: they are not from one preparation"
                )
            if pairs.setdefault(split, len(sizes)) != len(sizes):
                raise UserError(
                    f"{data} has {len(sizes)} sentences but {sides[0][0]} has {pairs[split]}: "
                    "the two sides must correspond"
                )
            tokens[f"{split}.{language}"] = len(ids)
            unknown[f"{split}.{language}"] = int((ids == UNKNOWN).sum())
            prefix = f"{split}.{corpus.source}-{corpus.target}.{language}"
            shutil.copyfile(data, folder / f"{prefix}.bin")
            shutil.copyfile(index, folder / f"{prefix}.idx")
    return _finish(
        folder,
        vocabularies,
        bpe,
        name=name,
        kind=kind,
        source=corpus.source,
        target=corpus.target,
        pairs=pairs,
        tokens=tokens,
        unknown=unknown,
        dropped=0,
        overlap={},
        request=request,
    )


def _finish(
    folder: Path, vocabularies: Mapping[str, Vocabulary], bpe: Bpe, **facts: Any
) -> Manifest:
    """Write dictionaries, codes and, last of all, the manifest."""
    for language, vocabulary in vocabularies.items():
        vocabulary.write(folder / f"dict.{language}.txt")
    bpe.write(folder / CODES)
    symbols = chain.from_iterable(vocabulary.counts for vocabulary in vocabularies.values())
    files, fingerprint = record_files(folder)
    manifest = Manifest(
        lowercase=all(symbol == symbol.lower() for symbol in symbols),
        vocabulary={language: len(entries) for language, entries in vocabularies.items()},
        files=files,
        fingerprint=fingerprint,
        **facts,
    )
    write_manifest(folder, manifest)
    return manifest
