"""Writing a prepared set: vocabularies, binary files, manifest."""

import shutil
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import record_files, write_manifest
from knee_tune.tasks.translation.binary import Sentences, binarize, read_binarized
from knee_tune.tasks.translation.corpus import Corpus
from knee_tune.tasks.translation.prepared import CODES, Manifest, read_manifest
from knee_tune.tasks.translation.text import Bpe, Progress, Rules, silent
from knee_tune.tasks.translation.vocabulary import UNKNOWN, Vocabulary

Text = tuple[list[str], list[str]]
"""Lines of the source side and of the target side."""

Lines = tuple[Iterable[str], Iterable[str]]
"""The same, perhaps too many for the memory; they can be read more than once."""


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
    text: Mapping[str, Lines],
    *,
    name: str,
    kind: str,
    source: str,
    target: str,
    bpe: Bpe,
    joint_dictionary: bool = False,
    rules: Rules = "iwslt14",
    dropped: int = 0,
    request: Mapping[str, Any],
    progress: Progress = silent,
) -> Manifest:
    """Write vocabularies (of the training text) and binary files of ``text``, pieces by split.

    No split is held in memory that is not a list.
    """
    progress("binarize", 0.0)
    if joint_dictionary:
        joint = Vocabulary.build(chain.from_iterable(text["train"]))
        vocabularies = dict.fromkeys((source, target), joint)
    else:
        vocabularies = {
            language: Vocabulary.build(side)
            for language, side in zip((source, target), text["train"], strict=True)
        }
    pairs: dict[str, int] = {}
    tokens: dict[str, int] = {}
    unknown: dict[str, int] = {}
    for done, (split, sides) in enumerate(text.items()):
        progress("binarize", done / len(text))
        for (language, vocabulary), lines in zip(vocabularies.items(), sides, strict=True):
            prefix = folder / f"{split}.{source}-{target}.{language}"
            side = f"{split}.{language}"
            pairs[split], tokens[side], unknown[side] = binarize(lines, vocabulary, prefix)
    progress("binarize", 1.0)
    held_out = {split: sides[0] for split, sides in text.items() if split != "train"}
    wanted = set(chain.from_iterable(held_out.values()))
    known = {line for line in text["train"][0] if line in wanted}
    return _finish(
        folder,
        vocabularies,
        bpe,
        name=name,
        kind=kind,
        source=source,
        target=target,
        pairs=pairs,
        rules=rules,
        tokens=tokens,
        unknown=unknown,
        dropped=dropped,
        overlap={
            split: sum(line in known for line in source_lines)
            for split, source_lines in held_out.items()
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
            sentences = read_binarized(data.with_suffix(""))
            _check_ids(sentences, data, language, entries=len(vocabularies[language]))
            if pairs.setdefault(split, len(sentences)) != len(sentences):
                raise UserError(
                    f"{data} has {len(sentences)} sentences but {sides[0][0]} has {pairs[split]}: "
                    "the two sides must correspond"
                )
            tokens[f"{split}.{language}"] = len(sentences.tokens)
            unknown[f"{split}.{language}"] = int((sentences.tokens == UNKNOWN).sum())
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


def _check_ids(sentences: Sentences, data: Path, language: str, *, entries: int) -> None:
    ids = sentences.tokens
    if len(strange := ids[(ids < 0) | (ids >= entries)]):
        raise UserError(
            f"{data} holds token {strange[0]} but dict.{language}.txt has {entries} "
            "entries: they are not from one preparation"
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
