"""``knee-tune data prepare iwslt`` and ``translation``: IWSLT'14, and corpora of one's own.

The recipe of fairseq's prepare-iwslt14.sh in pure Python. Tokenize, clean (1 to 175 tokens, ratio
1.5), lowercase, hold out every 23rd pair, 10,000 joint BPE merges, one vocabulary per language,
binary files. Text that is already further on enters the recipe where it stands.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from knee_tune.errors import UserError
from knee_tune.files import checksum
from knee_tune.tasks.archive import unpacked
from knee_tune.tasks.prepared_folder import PreparedSet, new_folder, set_folder
from knee_tune.tasks.translation.binarize import Text, copy_binarized, finished, write_text
from knee_tune.tasks.translation.corpus import Corpus, Kind, find_corpus, read_split, split_off
from knee_tune.tasks.translation.download import IWSLT14, Archive, download
from knee_tune.tasks.translation.prepared import Manifest
from knee_tune.tasks.translation.recipe import OWN
from knee_tune.tasks.translation.text import (
    MOST_TOKENS,
    Bpe,
    Progress,
    is_clean,
    silent,
    tokenize_lines,
)

MERGES = 10_000
"""BPE merges of the IWSLT'14 recipe, learned on both languages together."""

RECIPE_VERSION = 1
"""Raised whenever the same input would give another set."""

_CHECKED_LINES = 1000
_SHARED = ("name", "kind", "pairs", "vocabulary", "dropped", "overlap", "fingerprint")


@dataclass(frozen=True, kw_only=True)
class PreparedCorpus(PreparedSet):
    """A preparation of a corpus."""

    kind: str
    pairs: Mapping[str, int]
    """Sentence pairs by split."""
    vocabulary: Mapping[str, int]
    """Entries by language."""
    dropped: int
    """Training pairs taken out by cleaning."""
    overlap: Mapping[str, int]
    """Held-out pairs whose source sentence also occurs in the training text."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        folder: Path,
        *,
        began: float,
        reused: bool = False,
        warnings: tuple[str, ...] = (),
    ) -> "PreparedCorpus":
        """What ``manifest`` says of the set in ``folder``; ``began``: by the monotonic clock."""
        shared = {key: getattr(manifest, key) for key in _SHARED}
        seconds = time.monotonic() - began
        return cls(folder=folder, seconds=seconds, reused=reused, warnings=warnings, **shared)

    def contents(self) -> str:
        """Sizes of the set, in a few words."""
        pairs = ", ".join(f"{count:,} {split}" for split, count in self.pairs.items())
        words = ", ".join(f"{count:,} {language}" for language, count in self.vocabulary.items())
        left_out = f"; {self.dropped:,} training pairs left out by cleaning" if self.dropped else ""
        return f"{pairs} pairs; vocabulary {words}{left_out}"


def prepare(
    *,
    data_root: Path,
    source: str = "de",
    target: str = "en",
    name: str | None = None,
    from_path: Path | None = None,
    kind: Kind | None = None,
    train_prefix: str | None = None,
    valid_prefix: str | None = None,
    test_prefix: str | None = None,
    codes: Path | None = None,
    bpe_codes: int | None = None,
    joint_dictionary: bool = False,
    lowercase: bool = True,
    force: bool = False,
    archive: Archive | None = IWSLT14,
    progress: Progress = silent,
) -> PreparedCorpus:
    """Prepare the set ``<data_root>/<name>`` (default ``iwslt14.<source>-<target>``).

    ``from_path``: folder or ``.tgz`` of a corpus; without it ``archive`` is downloaded to
    ``<data_root>/downloads``, unless that is None. ``kind`` overrules what its files look like, the
    prefixes say which they are. ``codes``: BPE codes to apply; ``bpe_codes``: how many to learn
    instead (default: those beside the text, else 10,000). ``lowercase``: of raw and tokenized text;
    what is further on stays as it is. The same request again does nothing,
    another one needs ``force`` or another name. UserError for everything wrong with the input.
    """
    began = time.monotonic()
    _check_languages(source, target)
    name = name or (f"iwslt14.{source}-{target}" if archive else OWN)
    folder = set_folder(data_root, name)
    if bpe_codes is not None and bpe_codes < 1:
        raise UserError(f"`bpe_codes` {bpe_codes}: must be 1 or more")
    if codes is not None:
        if bpe_codes is not None:
            raise UserError("`codes` and `bpe_codes`: apply codes or learn them, not both")
        if not codes.is_file():
            raise UserError(f"`codes` {codes}: no such file")
    prefixes = {"train": train_prefix, "valid": valid_prefix, "test": test_prefix}
    request: dict[str, Any] = {
        "recipe": RECIPE_VERSION,
        "source": source,
        "target": target,
        "kind": kind,
        "codes": codes and checksum(codes),
        "bpe_codes": bpe_codes,
        "joint_dictionary": joint_dictionary,
        "lowercase": lowercase,
    }

    downloads = from_path is None and not any(prefixes.values())
    if downloads:
        if archive is None:
            raise UserError(
                "`from_path` is missing: the folder or archive with your corpus, of which "
                f"train.{source} and train.{target} are the training text"
            )
        _check_downloadable(source, target)
        request["archive"] = archive.md5 or archive.name
        if manifest := finished(folder, request, force=force):
            return PreparedCorpus.of(manifest, folder, began=began, reused=True)
        from_path = download(archive, data_root / "downloads", progress=progress)
    with unpacked(from_path or Path(), expected="an archive of a corpus") as input_folder:
        corpus = find_corpus(
            input_folder,
            source=source,
            target=target,
            kind=kind,
            prefixes={split: prefix for split, prefix in prefixes.items() if prefix},
            codes=codes,
        )
        if not downloads:
            request["files"] = [checksum(path) for path in corpus.files()]
            if manifest := finished(folder, request, force=force):
                return PreparedCorpus.of(manifest, folder, began=began, reused=True)
        with new_folder(folder) as partial:
            about: dict[str, Any] = {"name": name, "kind": corpus.kind, "request": request}
            warnings = corpus.remarks
            if corpus.kind == "binarized":
                manifest = copy_binarized(partial, corpus, bpe=_given_codes(corpus), **about)
            else:
                text, bpe, dropped, found = _pieces(
                    corpus, bpe_codes, lowercase=lowercase, progress=progress
                )
                warnings = (*found, *warnings, *_taken_from_training(text, corpus))
                manifest = write_text(
                    partial,
                    text,
                    source=source,
                    target=target,
                    bpe=bpe,
                    joint_dictionary=joint_dictionary,
                    dropped=dropped,
                    progress=progress,
                    **about,
                )
    return PreparedCorpus.of(manifest, folder, began=began, warnings=warnings)


prepare_own = partial(prepare, archive=None, lowercase=False)
"""Prepare a corpus of one's own, called ``mine`` by default; capitals stay."""


def _pieces(
    corpus: Corpus, bpe_codes: int | None, *, lowercase: bool, progress: Progress
) -> tuple[dict[str, Text], Bpe, int, tuple[str, ...]]:
    """Text of every split cut by BPE, the BPE, pairs dropped, warnings."""
    if corpus.kind == "bpe":
        text = _held_out({split: read_split(corpus, split) for split in corpus.splits}, corpus)
        bpe = _given_codes(corpus)
        return text, bpe, 0, _misfit(text["train"], bpe, corpus)
    text = {}
    for split in corpus.splits:
        source, target = (
            ([line.lower() for line in side] if lowercase else side)
            if corpus.kind == "tok"
            else tokenize_lines(side, language, lowercase=lowercase, progress=progress)
            for side, language in zip(
                read_split(corpus, split), (corpus.source, corpus.target), strict=True
            )
        )
        text[split] = (source, target)
    before = len(text["train"][0])
    text["train"] = _cleaned(text["train"], corpus)
    dropped = before - len(text["train"][0])
    text = _held_out(text, corpus)
    if bpe_codes is None and corpus.codes is not None:
        bpe = Bpe.read(corpus.codes)
    else:
        words = Counter(word for side in text["train"] for line in side for word in line.split())
        bpe = Bpe.learn(words, merges=bpe_codes or MERGES, progress=progress)
    progress("apply BPE", 0.0)
    pieces = {
        split: (bpe.encode(source), bpe.encode(target)) for split, (source, target) in text.items()
    }
    progress("apply BPE", 1.0)
    return pieces, bpe, dropped, ()


def _cleaned(text: Text, corpus: Corpus) -> Text:
    pairs = [pair for pair in zip(*text, strict=True) if is_clean(*pair)]
    if not pairs:
        raise UserError(
            f"{corpus.folder}: no training pair has 1 to {MOST_TOKENS} tokens on both sides and "
            "similar lengths: are the two sides translations of each other?"
        )
    return [source for source, _ in pairs], [target for _, target in pairs]


def _held_out(text: Mapping[str, Text], corpus: Corpus) -> dict[str, Text]:
    """``text`` with every split: those that are missing are taken from the training text."""
    train = text["train"]
    splits = {}
    for split in ("valid", "test"):
        if split in text:
            splits[split] = text[split]
        else:
            train, splits[split] = split_off(*train)
            if not splits[split][0]:
                raise UserError(
                    f"{corpus.folder}: {len(train[0])} training pairs are too few to hold out a "
                    f"{split} split; give one with `{split}_prefix`"
                )
    return {"train": train, **splits}


def _taken_from_training(text: Mapping[str, Text], corpus: Corpus) -> Iterator[str]:
    """Warnings of splits that were held out of the training text; the TED archive is meant so."""
    for split in ("valid", "test"):
        if split not in corpus.splits and corpus.kind != "xml":
            yield (
                f"{split}: no files of that name, so every 23rd training pair, "
                f"{len(text[split][0]):,} in all, was held out for it; files of your own are named "
                f"{split}.{corpus.source} and {split}.{corpus.target}, or by `{split}_prefix`"
            )


def _given_codes(corpus: Corpus) -> Bpe:
    if corpus.codes is None:
        raise UserError(
            f"{corpus.folder}: no bpe.codes or code file beside text that is already cut by BPE; "
            "translating new sentences needs it: give it with `codes` FILE"
        )
    return Bpe.read(corpus.codes)


def _misfit(text: Text, bpe: Bpe, corpus: Corpus) -> tuple[str, ...]:
    """A warning if the codes do not give the pieces that the text has."""
    lines = [" ".join(line.split()) for side in text for line in side[:_CHECKED_LINES]]
    again = bpe.encode(bpe.decode(lines))
    differing = sum(line != other for line, other in zip(lines, again, strict=True))
    if not differing:
        return ()
    return (
        f"{corpus.codes} cuts {differing / len(lines):.0%} of the training lines otherwise than "
        "they are: it may not belong to this text; preparing from tokenized text avoids that",
    )


def _check_languages(source: str, target: str) -> None:
    for option, language in (("`source`", source), ("`target`", target)):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", language):
            raise UserError(f"{option} {language!r}: must be a language code such as de")
    if source == target:
        raise UserError(f"`source` and `target` are both {source}: they must differ")


def _check_downloadable(source: str, target: str) -> None:
    if {source, target} != {"de", "en"}:
        raise UserError(
            f"`source` {source} `target` {target}: only German-English can be downloaded; "
            "give a folder with the corpus with `from_path`"
        )
