"""Putting a prepared set together: the files of a folder that is still without its name."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import record_files, write_manifest
from knee_tune.tasks.translation.binarize import UNKNOWN, Vocabulary, binarize, read_binarized
from knee_tune.tasks.translation.bpe import Bpe
from knee_tune.tasks.translation.corpus import Corpus
from knee_tune.tasks.translation.manifest import CODES, Manifest, read_manifest
from knee_tune.tasks.translation.text import Progress, silent

Text = tuple[list[str], list[str]]
"""Lines of the source side and of the target side."""


def finished(folder: Path, request: Mapping[str, Any], *, force: bool = False) -> Manifest | None:
    """The manifest of the set in ``folder`` if it answers ``request``; None if it is to be made.

    UserError if another set is there, unless ``force``.
    """
    if force or not folder.exists():
        return None
    manifest = read_manifest(folder, verify=True)
    if manifest.request != request:
        raise UserError(
            f"{folder} was prepared from other data or with other options: "
            "choose another --name, or replace it with --force"
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
    """Vocabularies (of the training text) and binary files of ``text``, lines of pieces a split."""
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
            written = binarize(lines, vocabulary, prefix)
            tokens[f"{split}.{language}"] = written.tokens
            unknown[f"{split}.{language}"] = written.unknown
    for language, vocabulary in vocabularies.items():
        vocabulary.write(folder / f"dict.{language}.txt")
    bpe.write(folder / CODES)
    progress("binarize", 1.0)
    known = set(source_text)
    return _finish(
        folder,
        name=name,
        kind=kind,
        source=source,
        target=target,
        lowercase=_is_lowercase(vocabularies),
        pairs={split: len(sides[0]) for split, sides in text.items()},
        tokens=tokens,
        unknown=unknown,
        vocabulary={language: len(entries) for language, entries in vocabularies.items()},
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
    """Take over data that fairseq has binarized; UserError if it does not fit together."""
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
    for language, vocabulary in vocabularies.items():
        vocabulary.write(folder / f"dict.{language}.txt")
    bpe.write(folder / CODES)
    return _finish(
        folder,
        name=name,
        kind=kind,
        source=corpus.source,
        target=corpus.target,
        lowercase=_is_lowercase(vocabularies),
        pairs=pairs,
        tokens=tokens,
        unknown=unknown,
        vocabulary={language: len(entries) for language, entries in vocabularies.items()},
        dropped=0,
        overlap={},
        request=request,
    )


def _finish(folder: Path, **facts: Any) -> Manifest:
    files, fingerprint = record_files(folder)
    manifest = Manifest(files=files, fingerprint=fingerprint, **facts)
    write_manifest(folder, manifest)
    return manifest


def _is_lowercase(vocabularies: Mapping[str, Vocabulary]) -> bool:
    return all(
        symbol == symbol.lower()
        for vocabulary in vocabularies.values()
        for symbol in vocabulary.counts
    )
