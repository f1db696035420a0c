"""``knee-tune data prepare wmt14``: the recipe of fairseq's prepare-wmt14en2de.sh in pure Python.

Normalise punctuation, drop what does not print, tokenize with hyphens split; every 100th pair
validates, 40,000 joint BPE merges of the rest, and only then clean (1 to 250 pieces, ratio 1.5).
Capitals stay. newstest2014 tests, tokenized and cut, but neither normalised nor cleaned. The 4.5
million pairs go from file to file: in memory are the different words, never the sentences.
"""

import gzip
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from knee_tune.errors import UserError
from knee_tune.files import checksum
from knee_tune.leftovers import scratch
from knee_tune.tasks.archive import unpacked
from knee_tune.tasks.prepared_folder import new_folder, set_folder
from knee_tune.tasks.translation.binarize import finished, write_text
from knee_tune.tasks.translation.corpus import segment_text
from knee_tune.tasks.translation.download import Archive, download
from knee_tune.tasks.translation.prepare import PreparedCorpus
from knee_tune.tasks.translation.recipe import WMT14
from knee_tune.tasks.translation.text import (
    CHUNK,
    Bpe,
    Progress,
    Rules,
    is_clean,
    silent,
    tokenized,
)
from knee_tune.workers.cores import usable_cores

SOURCE, TARGET = LANGUAGES = ("en", "de")
MERGES = 40_000
MOST_PIECES = 250
VALIDATION_EVERY = 100

RECIPE_VERSION = 1
"""Raised whenever the same input would give another set."""

# The addresses are those of fairseq's script. The checksums were published by others who downloaded
# from them; of the two without nobody's is known, so that their own gzip checksum must do.
_STATMT = "http://statmt.org"
TRAINING: Mapping[str, Archive] = {
    "europarl-v7.de-en": Archive(
        name="training-parallel-europarl-v7.tgz",
        urls=(f"{_STATMT}/wmt13/training-parallel-europarl-v7.tgz",),
        sha256="0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
    ),
    "commoncrawl.de-en": Archive(
        name="training-parallel-commoncrawl.tgz",
        urls=(f"{_STATMT}/wmt13/training-parallel-commoncrawl.tgz",),
        sha256="c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
    ),
    "news-commentary-v12.de-en": Archive(
        name="training-parallel-nc-v12.tgz",
        urls=("http://data.statmt.org/wmt17/translation-task/training-parallel-nc-v12.tgz",),
    ),
}
"""Parallel texts, in their order, each with the archive that it comes in."""

OLDER = {
    "news-commentary-v12.de-en": (
        "news-commentary-v9.de-en",
        Archive(
            name="training-parallel-nc-v9.tgz",
            urls=(f"{_STATMT}/wmt14/training-parallel-nc-v9.tgz",),
            sha256="cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        ),
    )
}
"""What is taken in place of a text that is not there: that of WMT'14 itself (``--icml17``)."""

TEST_FILES = (f"newstest2014-deen-src.{SOURCE}.sgm", f"newstest2014-deen-ref.{TARGET}.sgm")
TEST_ARCHIVE = Archive(name="test-full.tgz", urls=(f"{_STATMT}/wmt14/test-full.tgz",))

_LARGE = 50_000_000
"""Bytes of a text that is worth a second process."""


@dataclass(frozen=True)
class Parallel:
    """A parallel text: the names of its files, and either these or the archive that has them."""

    names: tuple[str, str]
    paths: tuple[Path, ...]

    @contextmanager
    def opened(self) -> Iterator[tuple[Path, ...]]:
        """Both files; those of an archive while the block runs."""
        if len(self.paths) == 2:
            yield self.paths
            return
        (archive,) = self.paths
        with unpacked(archive, expected=f"an archive with {self.names[0]}") as folder:
            found = [_file(folder, name) for name in self.names]
            if None in found:
                raise UserError(f"{archive}: there is no {' and no '.join(self.names)} in it")
            yield tuple(path for path in found if path is not None)


def prepare(
    *,
    data_root: Path,
    name: str | None = None,
    from_path: Path | None = None,
    bpe_codes: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> PreparedCorpus:
    """Prepare the set ``<data_root>/<name>`` (default ``wmt14.en-de``).

    ``from_path``: a folder that has the archives, or anywhere in it the files that are in them,
    plain or packed by gzip; without it they are downloaded to ``<data_root>/downloads``: 1.7 GB.
    ``bpe_codes``: merges to learn (default 40,000). The same request again does nothing, another
    one needs ``force`` or another name. UserError for everything wrong with the input.
    """
    began = time.monotonic()
    folder = set_folder(data_root, name or WMT14)
    if from_path is not None and not from_path.is_dir():
        raise UserError(f"`from_path` {from_path}: no such folder")
    if from_path is None:
        for archive in (*TRAINING.values(), TEST_ARCHIVE):
            from_path = download(archive, data_root / "downloads", progress=progress).parent
    assert from_path is not None
    texts = [_training_text(from_path, stem) for stem in TRAINING]
    test = _located(from_path, TEST_FILES, TEST_ARCHIVE)
    request: dict[str, Any] = {
        "recipe": RECIPE_VERSION,
        "rules": "wmt14",
        "bpe_codes": bpe_codes or MERGES,
        "files": [checksum(path) for text in (*texts, test) for path in text.paths],
    }
    if manifest := finished(folder, request, force=force):
        return PreparedCorpus.of(manifest, folder, began=began, reused=True)
    data_root.mkdir(parents=True, exist_ok=True)
    with scratch(".wmt14.", within=data_root) as (work, _), new_folder(folder) as partial:
        words = _tokenize(texts, work, progress)
        with test.opened() as paths:
            for path, language in zip(paths, LANGUAGES, strict=True):
                lines = segment_text(_Lines(path))
                _write(work / f"test.tok.{language}", _tokens(lines, language, "wmt14-test"))
        bpe = Bpe.learn(words, merges=bpe_codes or MERGES, progress=progress)
        del words
        dropped = {split: _cut(work, split, bpe, progress) for split in ("train", "valid", "test")}
        manifest = write_text(
            partial,
            {split: _sides(work / f"{split}.bpe") for split in dropped},
            name=folder.name,
            kind="raw",
            source=SOURCE,
            target=TARGET,
            bpe=Bpe(bpe.merges),  # without the words that it has cut
            rules="wmt14",
            dropped=dropped["train"],
            request=request,
            progress=progress,
        )
    return PreparedCorpus.of(manifest, folder, began=began)


@dataclass(frozen=True)
class _Lines:
    """Lines of a text file, read anew whenever they are asked for; only line feeds end one."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        opened = gzip.open if self.path.suffix == ".gz" else open
        # What is no UTF-8 becomes a sign of its own, in the middle of millions of lines that are.
        with opened(self.path, "rt", encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")


def _sides(prefix: Path) -> tuple[_Lines, _Lines]:
    return _Lines(Path(f"{prefix}.{SOURCE}")), _Lines(Path(f"{prefix}.{TARGET}"))


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _tokens(
    lines: Iterable[str], language: str, rules: Rules, *, workers: int = 1
) -> Iterable[str]:
    parts = tokenized(lines, language, lowercase=False, rules=rules, workers=workers)
    return chain.from_iterable(parts)


def _tokenize(texts: Iterable[Parallel], work: Path, progress: Progress) -> Counter[str]:
    """Write ``train.tok`` and ``valid.tok``, every 100th pair; the words that train, counted."""
    words: Counter[str] = Counter()
    number = 0
    with ExitStack() as stack:
        files = {
            split: [
                stack.enter_context(side.path.open("w", encoding="utf-8", newline="\n"))
                for side in _sides(work / f"{split}.tok")
            ]
            for split in ("train", "valid")
        }
        for text in texts:
            what = f"tokenize {text.names[0].removesuffix(f'.{SOURCE}')}"
            progress(what, 0.0)
            with text.opened() as paths:
                size = sum(path.stat().st_size for path in paths)
                workers = usable_cores() // 2 if size > _LARGE else 1
                sides = [
                    _tokens(_Lines(path), language, "wmt14", workers=workers)
                    for path, language in zip(paths, LANGUAGES, strict=True)
                ]
                done = 0
                for pair in zip_longest(*sides):
                    if None in pair:
                        raise UserError(
                            f"{' and '.join(text.names)} in {paths[0].parent} differ in their "
                            "numbers of lines: the two sides must correspond line by line"
                        )
                    number += 1
                    split = "train" if number % VALIDATION_EVERY else "valid"
                    for file, line in zip(files[split], pair, strict=True):
                        file.write(f"{line}\n")
                        if split == "train":
                            words.update(line.split())
                    done += len(pair[0]) + len(pair[1])
                    if number % CHUNK == 0:
                        progress(what, min(1.0, done / size))
    if number < VALIDATION_EVERY:
        raise UserError(
            f"{number} training pairs are too few: every {VALIDATION_EVERY}th of them validates"
        )
    return words


def _cut(work: Path, split: str, bpe: Bpe, progress: Progress) -> int:
    """Write ``<split>.bpe``, cleaned unless it tests; how many pairs were taken out."""
    progress(f"apply BPE to {split}", 0.0)
    source, target = map(iter, _sides(work / f"{split}.tok"))
    dropped = 0
    with ExitStack() as stack:
        files = [
            stack.enter_context(side.path.open("w", encoding="utf-8", newline="\n"))
            for side in _sides(work / f"{split}.bpe")
        ]
        while sources := bpe.encode(islice(source, CHUNK)):
            for pair in zip(sources, bpe.encode(islice(target, CHUNK)), strict=True):
                if split != "test" and not is_clean(*pair, most=MOST_PIECES):
                    dropped += 1
                    continue
                for file, line in zip(files, pair, strict=True):
                    file.write(f"{line}\n")
    progress(f"apply BPE to {split}", 1.0)
    return dropped


def _training_text(folder: Path, stem: str) -> Parallel:
    try:
        return _located(folder, _named(stem), TRAINING[stem])
    except UserError:
        if stem not in OLDER:
            raise
        older, archive = OLDER[stem]
        with suppress(UserError):
            return _located(folder, _named(older), archive)
        raise


def _named(stem: str) -> tuple[str, str]:
    return f"{stem}.{SOURCE}", f"{stem}.{TARGET}"


def _located(folder: Path, names: tuple[str, str], archive: Archive) -> Parallel:
    """The text in ``folder``; UserError if neither its files nor their archive are there."""
    found = [path for name in names if (path := _file(folder, name))]
    if len(found) == 2:
        return Parallel(names, (found[0], found[1]))
    if packed := _file(folder, archive.name):
        return Parallel(names, (packed,))
    raise UserError(
        f"`from_path` {folder}: no {' and no '.join(names)} in it, and no {archive.name} that has "
        "them"
    )


def _file(folder: Path, name: str) -> Path | None:
    """The file of that name anywhere in ``folder``, plain or packed; None if there is none."""
    for each in (name, f"{name}.gz"):
        for path in sorted(folder.rglob(each)):
            if path.is_file():
                return path
    return None
