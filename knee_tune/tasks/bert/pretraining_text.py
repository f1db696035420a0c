"""``knee-tune data prepare bert``: any text as the tokens of its documents, with a vocabulary.

``<data>/<name>/{tokens, documents.npz, vocab.txt, manifest.json}``. Documents are what blank lines
separate. Which of them train, validate and test is drawn: 90, 5 and 5 % of the tokens.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from knee_tune.errors import UserError
from knee_tune.tasks import prepared_folder
from knee_tune.tasks.bert.masking import Stream
from knee_tune.tasks.bert.pretraining_recipe import DEFAULT_TEXT
from knee_tune.tasks.bert.wordpiece import (
    BETWEEN,
    SETTINGS,
    VOCABULARY,
    learn_vocabulary,
    read_vocabulary,
    wordpiece,
    write_vocabulary,
)
from knee_tune.tasks.language.text import text_blocks, usual_name
from knee_tune.tasks.prepared_folder import (
    PreparedSet,
    SetManifest,
    check_files,
    new_folder,
    prepare_once,
    record_files,
    set_folder,
    write_manifest,
)

TOKENS, DOCUMENTS = "tokens", "documents.npz"

TOKENIZER_FILES = (VOCABULARY, SETTINGS)
"""What a tokenizer is made of again; the second one only where capitals count."""

SPLITS = ("train", "valid", "test")
HELD_OUT = 0.05
"""Of the tokens, for each of the last two."""

SPLIT_SEED = 1818
"""Of the draw of documents: the same for every study."""

BERT_VOCABULARY = 30_522
BYTES_PER_ENTRY = 200
"""A smaller text has a smaller vocabulary: every entry should be met some times."""

FEWEST_ENTRIES, MOST_ENTRIES = 500, 1 << 16
"""Tokens are stored in two bytes each."""

FEWEST_DOCUMENTS = 20
"""Of a text that is worth to be split."""

_AT_ONCE = 1_000
"""Documents that are tokenized together."""

_AGAIN = (
    "run 'knee-tune data prepare bert ... --force', or remove the folder to have the embedded text "
    "prepared anew"
)


class TokensManifest(SetManifest):
    """Contents and origin of a tokenized text."""

    made_of: str
    """Digest of the text, and of what was asked for its vocabulary."""
    tokens: dict[str, int]
    """By split."""
    documents: dict[str, int]
    vocabulary: int
    unigram_entropy: float
    """In nats per token of the training split: the loss of who knows how often each one is."""


@dataclass(frozen=True, kw_only=True)
class PreparedDocuments(PreparedSet):
    """A preparation of a text."""

    tokens: dict[str, int]
    """By split."""
    documents: dict[str, int]
    vocabulary: int
    unigram_entropy: float

    def contents(self) -> str:
        """Sizes of the set, in a few words."""
        counts = ", ".join(
            f"{count:,} {split} tokens in {self.documents[split]:,} documents"
            for split, count in self.tokens.items()
        )
        return (
            f"{counts}; {self.vocabulary:,} vocabulary entries, unigram entropy "
            f"{self.unigram_entropy:.2f} nats"
        )


def prepare(
    *,
    data_root: Path,
    from_path: Path | None = None,
    name: str | None = None,
    vocabulary: Path | None = None,
    lowercase: bool = True,
    force: bool = False,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> PreparedDocuments:
    """Prepare the set ``<data_root>/<name>`` of a file, or of all ``.txt`` files in a folder.

    Without ``from_path`` of gpt's embedded text. ``vocabulary``: a ``vocab.txt`` to take; learned
    from the text if None, of 30,522 entries or fewer for a small one. A set that is there already
    stays, unless ``force``; another text needs it, or another name. UserError for everything wrong
    with the input; nothing is half-written.
    """
    began = time.monotonic()
    folder = set_folder(data_root, name or usual_name(from_path, default=DEFAULT_TEXT))
    origin = "the embedded text" if from_path is None else str(from_path.resolve())
    progress("read text", 0.0)
    made_of, size = _looked_through(from_path, vocabulary, lowercase=lowercase)

    def prepared(manifest: TokensManifest, *, reused: bool) -> PreparedDocuments:
        return PreparedDocuments(
            folder=folder,
            name=folder.name,
            tokens=manifest.tokens,
            documents=manifest.documents,
            vocabulary=manifest.vocabulary,
            unigram_entropy=manifest.unigram_entropy,
            fingerprint=manifest.fingerprint,
            seconds=time.monotonic() - began,
            reused=reused,
        )

    if folder.exists() and not force:
        known = read_manifest(folder, verify=True)
        if known.made_of == made_of:
            return prepared(known, reused=True)
        raise UserError(
            f"{folder} was prepared from another text, or with another vocabulary "
            f"({known.origin}): choose another `name`, or replace it with `force`"
        )
    with new_folder(folder) as partial:
        progress("learn vocabulary", 0.1)
        entries = _vocabulary(from_path, vocabulary, size, lowercase=lowercase)
        write_vocabulary(entries, partial / VOCABULARY)
        if not lowercase:
            (partial / SETTINGS).write_text(json.dumps({"do_lower_case": False}) + "\n")
        progress("tokenize", 0.4)
        lengths = _tokenize(from_path, wordpiece(entries, lowercase=lowercase), partial / TOKENS)
        if len(lengths) < FEWEST_DOCUMENTS:
            raise UserError(
                f"`from_path` {from_path}: {len(lengths)} documents are too few to be split into "
                f"training, validation and test; separate {FEWEST_DOCUMENTS} or more by blank lines"
            )
        splits = _drawn(lengths)
        np.savez(partial / DOCUMENTS, lengths=lengths, splits=splits)
        files, fingerprint = record_files(partial)
        within = {split: splits == number for number, split in enumerate(SPLITS)}
        manifest = TokensManifest(
            name=folder.name,
            origin=origin,
            made_of=made_of,
            tokens={split: int(lengths[chosen].sum()) for split, chosen in within.items()},
            documents={split: int(chosen.sum()) for split, chosen in within.items()},
            vocabulary=len(entries),
            unigram_entropy=_unigram_entropy(partial / TOKENS, lengths, within["train"]),
            files=files,
            fingerprint=fingerprint,
        )
        write_manifest(partial, manifest)
    progress("tokenize", 1.0)
    return prepared(manifest, reused=False)


@dataclass(frozen=True)
class PreparedTokens:
    """A prepared text, read from disk where it is touched."""

    folder: Path
    manifest: TokensManifest
    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Of every document."""
    splits: NDArray[np.uint8]
    between: int
    """The token that stands between documents."""

    def size(self, split: str) -> int:
        """Tokens of a split's stream."""
        return self.manifest.tokens[split] + self.manifest.documents[split]

    def stream(self, split: str, order: torch.Generator | None = None) -> Stream:
        """The documents of a split behind each other, in the text's order or in a drawn one."""
        chosen = np.flatnonzero(self.splits == SPLITS.index(split))
        if order is not None:
            chosen = chosen[torch.randperm(len(chosen), generator=order).numpy()]
        return Stream(self.tokens, self.starts[chosen], self.lengths[chosen], between=self.between)


def find_prepared(data_dir: Path, name: str) -> PreparedTokens:
    """The prepared text ``name``; prepares the embedded one if it is missing.

    UserError if there is no such set.
    """
    folder = data_dir / name
    if name == DEFAULT_TEXT:
        prepare_once(folder, lambda: prepare(data_root=data_dir))
    manifest = read_manifest(folder)
    with np.load(folder / DOCUMENTS) as documents:
        lengths, splits = documents["lengths"], documents["splits"]
    return PreparedTokens(
        folder=folder,
        manifest=manifest,
        tokens=np.memmap(folder / TOKENS, dtype=np.uint16, mode="r"),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        splits=splits,
        between=read_vocabulary(folder / VOCABULARY).index(BETWEEN),
    )


def read_manifest(folder: Path, *, verify: bool = False) -> TokensManifest:
    """The manifest of the text in ``folder``; UserError if there is no finished one.

    ``verify`` looks at its files too: UserError if they are missing or not as they were prepared.
    """
    missing = (
        f"recipe.data={folder.name}: no prepared text in {folder}; run 'knee-tune data prepare "
        f"bert --from FILE|DIR --name {folder.name}', or use recipe.data={DEFAULT_TEXT}, which "
        "needs none"
    )
    manifest = prepared_folder.read_manifest(folder, TokensManifest, missing=missing, again=_AGAIN)
    if verify:
        check_files(folder, manifest.files, again=_AGAIN)
    return manifest


def documents_of(path: Path | None) -> Iterator[str]:
    """The documents of a text: what blank lines separate, each in one line; UserError for none."""
    waiting, lines = b"", list[str]()
    for block in chain(text_blocks(path), [b"\n\n"]):  # the last document ends too
        *whole, waiting = (waiting + block).split(b"\n")
        for line in whole:
            text = line.decode(errors="replace").strip()
            if text:
                lines.append(text)
            elif lines:
                yield " ".join(lines)
                lines = []


def _looked_through(
    path: Path | None, vocabulary: Path | None, *, lowercase: bool
) -> tuple[str, int]:
    """Digest of what a set is made of, and the bytes of its text."""
    digest, size = sha256(), 0
    for block in text_blocks(path):
        digest.update(block)
        size += len(block)
    if vocabulary is not None:
        digest.update(_read_given(vocabulary).encode())
    digest.update(str((vocabulary is not None, lowercase)).encode())
    return digest.hexdigest(), size


def _read_given(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`vocabulary` {path}: {error}; give a vocab.txt, one entry a line"
        ) from None


def _vocabulary(path: Path | None, given: Path | None, size: int, *, lowercase: bool) -> list[str]:
    if given is None:
        entries = min(BERT_VOCABULARY, max(FEWEST_ENTRIES, size // BYTES_PER_ENTRY))
        return learn_vocabulary(_Documents(path), size=entries, lowercase=lowercase)
    try:
        taken = read_vocabulary(given)
        wordpiece(taken)  # whether it has the special tokens
    except ValueError as error:
        raise UserError(f"`vocabulary` {given}: {error}") from None
    if len(taken) > MOST_ENTRIES:
        raise UserError(f"`vocabulary` {given}: {len(taken):,} entries, at most {MOST_ENTRIES:,}")
    return taken


@dataclass(frozen=True)
class _Documents:
    """The documents of a text, as often as they are asked for."""

    path: Path | None

    def __iter__(self) -> Iterator[str]:
        return documents_of(self.path)


def _tokenize(path: Path | None, tokenizer: Tokenizer, target: Path) -> NDArray[np.int64]:
    """Write the tokens of every document; the number of each."""
    lengths = list[int]()
    with target.open("wb") as file:
        documents = documents_of(path)
        while some := list(islice(documents, _AT_ONCE)):
            for encoding in tokenizer.encode_batch(some, add_special_tokens=False):
                ids = np.asarray(encoding.ids, dtype=np.uint16)
                if len(ids):
                    lengths.append(len(ids))
                    file.write(ids.tobytes())
    return np.asarray(lengths, dtype=np.int64)


def _drawn(lengths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The split of every document: none is in two, whatever their order in the text."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(lengths))
    splits = np.zeros(len(lengths), dtype=np.uint8)
    before = np.cumsum(lengths[order]) - lengths[order]
    held = HELD_OUT * lengths.sum()
    splits[order[before < 2 * held]] = 2
    splits[order[before < held]] = 1
    return splits


def _unigram_entropy(path: Path, lengths: NDArray[np.int64], chosen: NDArray[np.bool_]) -> float:
    """In nats per token of the chosen documents."""
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    counts, begin = np.zeros(MOST_ENTRIES, dtype=np.int64), 0
    for at in range(0, len(lengths), _AT_ONCE):
        some = lengths[at : at + _AT_ONCE]
        end = begin + int(some.sum())
        counted = tokens[begin:end][np.repeat(chosen[at : at + _AT_ONCE], some)]
        counts += np.bincount(counted, minlength=MOST_ENTRIES)
        begin = end
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
