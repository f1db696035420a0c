"""Locating and reading the files of a parallel corpus, at whatever stage of preparation."""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Literal

from knee_tune.errors import UserError, disk_trouble, first_line

Kind = Literal["raw", "tok", "bpe", "xml", "binarized"]
"""Plain text, tokenized, cut by BPE, the TED archive's tagged files, fairseq's binary files."""

Sides = tuple[tuple[Path, ...], tuple[Path, ...]]
"""Files of the source side and of the target side."""

SPLITS = ("train", "valid", "test")
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "dev", "val"),
    "test": ("test",),
}
_CODES = ("bpe.codes", "code", "codes")
# The recipe's test set: these five, in this order, of all the sets in the archive.
_RECIPE_TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
_DROPPED_TAGS = ("<url>", "<talkid>", "<keywords>")
_KEPT_TAGS = re.compile(r"</?(?:title|description)>")
_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*')
_SEGMENT_END = re.compile(r"\s*</seg>\s*")
_SNIFFED_LINES = 1000
_HELD_OUT = 23
MOST_TEXT = 8_000_000_000
"""Bytes that a packed text file may hold."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Files of a corpus: those of the source and of the target side, for every split.

    A split may have several files a side (they are joined) or be absent (it is then taken from
    the training text). Text may be packed by gzip.
    """

    folder: Path
    kind: Kind
    source: str
    target: str
    splits: Mapping[str, Sides]
    codes: Path | None = None
    remarks: tuple[str, ...] = ()
    """Which files were taken where their names are not the usual ones."""

    def files(self) -> tuple[Path, ...]:
        """Files that the corpus is read from."""
        sides = chain.from_iterable(chain.from_iterable(self.splits.values()))
        return (*sides, *((self.codes,) if self.codes else ()))


def find_corpus(
    folder: Path,
    *,
    source: str,
    target: str,
    kind: Kind | None = None,
    prefixes: Mapping[str, str] | None = None,
    codes: Path | None = None,
) -> Corpus:
    """Find the corpus of a language pair in ``folder``.

    ``prefixes`` (split -> file name without the language, ``my/train`` for ``my/train.de``) says
    where the splits are; without them the usual names are tried, the most useful kind first.
    UserError if there is nothing, a side is missing, a prefix does not exist, or several files
    could be one split.
    """
    if not folder.is_dir():
        raise UserError(f"`from_path` {folder}: no such folder")
    located = _located(folder, kind, prefixes or {}, source=source, target=target)
    if located is None:
        wanted = f"train{f'.{kind}' if kind else ''}.{source}"
        raise UserError(
            f"`from_path` {folder}: no {wanted} and .{target}, no tagged TED files, no binarized "
            f"data{_hint(folder, wanted)}; name the files with `train_prefix`"
        )
    kind, splits = located
    codes = codes or next((folder / name for name in _CODES if (folder / name).is_file()), None)
    return Corpus(
        folder=folder,
        kind=kind,
        source=source,
        target=target,
        splits=splits,
        codes=codes,
        remarks=tuple(_remarks(splits) if kind in ("raw", "tok", "bpe") and not prefixes else ()),
    )


def _located(
    folder: Path, kind: Kind | None, prefixes: Mapping[str, str], *, source: str, target: str
) -> tuple[Kind, dict[str, Sides]] | None:
    """Kind and files of the most useful text there is."""
    given = {
        split: _sides(folder, prefix, option=f"`{split}_prefix`", source=source, target=target)
        for split, prefix in prefixes.items()
    }
    if "train" in given:
        return kind or _sniff(given["train"][0][0]), given
    if (
        not given
        and kind in (None, "binarized")
        and _binary_prefix(folder, "train", source=source, target=target)
    ):
        return "binarized", _binary_splits(folder, source=source, target=target)
    if not given and kind in (None, "xml"):
        for inner in (folder, folder / f"{source}-{target}", folder / f"{target}-{source}"):
            if any(inner.glob("train.tags.*")):
                return "xml", _archive_splits(inner, source=source, target=target)
    # Tokenized before cut: text that is cut again surely fits the codes.
    kinds: tuple[Kind, ...] = (kind,) if kind else ("tok", "bpe", "raw")
    for named in kinds:
        if splits := _named_splits(folder, f".{named}", given, source=source, target=target):
            return named, splits
    if splits := _named_splits(folder, "", given, source=source, target=target):
        return kind or _sniff(splits["train"][0][0]), splits
    if given:
        raise UserError("`train_prefix` is missing: nothing here is called train")
    return None


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file; only line feeds end a line. UserError if it is not UTF-8 or empty."""
    content = _content(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line} is not UTF-8; convert the file, for example with iconv"
        ) from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    lines = text.removeprefix("\ufeff").split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.rstrip("\r") for line in lines]


def _content(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as stream:
            content = stream.read(MOST_TEXT + 1)
    except (OSError, EOFError, zlib.error) as error:
        if disk_trouble(error):
            raise
        raise UserError(f"{path}: no sound gzip file ({first_line(error)})") from None
    if len(content) > MOST_TEXT:
        raise UserError(f"{path}: unpacks to more than {MOST_TEXT:,} bytes")
    return content


def read_split(corpus: Corpus, split: str) -> tuple[list[str], list[str]]:
    """Lines of both sides; UserError if their numbers differ."""
    sides = corpus.splits[split]
    source, target = ([_read_side(corpus, split, path) for path in paths] for paths in sides)
    for first, second, path, other in zip(source, target, *sides, strict=True):
        if len(first) != len(second):
            raise UserError(
                f"{path} has {len(first)} lines but {other} has {len(second)}: "
                "the two sides must correspond line by line"
            )
    return list(chain.from_iterable(source)), list(chain.from_iterable(target))


def _read_side(corpus: Corpus, split: str, path: Path) -> list[str]:
    lines = read_lines(path)
    if corpus.kind != "xml":
        return lines
    return list(talk_text(lines) if split == "train" else segment_text(lines))


def _sides(folder: Path, prefix: str, *, source: str, target: str, option: str) -> Sides:
    paths = [_text_file(folder, f"{prefix}.{language}") for language in (source, target)]
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == 2:
        where = paths[0].parent
        present = {
            path.name.removesuffix(".gz").removesuffix(f".{language}")
            for language in (source, target)
            for path in (*where.glob(f"*.{language}"), *where.glob(f"*.{language}.gz"))
        }
        near = get_close_matches(paths[0].name.removesuffix(f".{source}"), present, n=1, cutoff=0)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise UserError(
            f"{option} {prefix}: no {prefix}.{source} and {prefix}.{target} in {folder}{nearest}"
        )
    if missing:
        other = next(path for path in paths if path not in missing)
        raise UserError(f"{missing[0]} is missing: {other.name} is there without its other side")
    return (paths[0],), (paths[1],)


def _named_splits(
    folder: Path, suffix: str, given: Mapping[str, Sides], *, source: str, target: str
) -> dict[str, Sides]:
    """The splits ``given`` and those found by their names; empty if no training text is found."""
    splits = dict(given)
    for split, aliases in _ALIASES.items():
        if split in given:
            continue
        usual = [f"{alias}{suffix}" for alias in aliases]
        found = [
            prefix
            for prefix in usual
            if any(_text_file(folder, f"{prefix}.{lang}").is_file() for lang in (source, target))
        ]
        if not found and split == "train":
            return {}
        if not found:
            found = _longer_named(folder, aliases, suffix, source=source, target=target)
            if len(found) > 1:
                raise UserError(
                    f"`from_path` {folder}: several files could be the {split} split "
                    f"({', '.join(found)}); choose one with `{split}_prefix`"
                )
        if found:
            splits[split] = _sides(
                folder, found[0], source=source, target=target, option="`from_path`"
            )
    return splits


def _longer_named(
    folder: Path, aliases: Sequence[str], suffix: str, *, source: str, target: str
) -> list[str]:
    """Prefixes such as ``test_2016_flickr``, of which both sides are there."""
    ending = f"{suffix}.{source}"
    names = {path.name.removesuffix(".gz") for path in folder.iterdir() if path.is_file()}
    prefixes = {name.removesuffix(f".{source}") for name in names if name.endswith(ending)}
    return sorted(
        prefix
        for prefix in prefixes
        if prefix.startswith(tuple(aliases))
        and f"{prefix}.{target}" in names
        and (suffix or Path(prefix).suffix not in (".raw", ".tok", ".bpe"))
    )


def _text_file(folder: Path, name: str) -> Path:
    """The file of that name, plain or packed."""
    plain, packed = folder / name, folder / f"{name}.gz"
    return packed if packed.is_file() and not plain.is_file() else plain


def _remarks(splits: Mapping[str, Sides]) -> Iterator[str]:
    for split, (sources, targets) in splits.items():
        if sources[0].name.partition(".")[0] not in _ALIASES[split]:
            yield f"{split}: taken from {sources[0].name} and {targets[0].name}"


def _binary_prefix(folder: Path, split: str, *, source: str, target: str) -> str | None:
    for pair in (f"{source}-{target}", f"{target}-{source}"):
        if any(folder.glob(f"{split}.{pair}.*.bin")):
            return f"{split}.{pair}"
    return None


def _binary_splits(folder: Path, *, source: str, target: str) -> dict[str, Sides]:
    splits: dict[str, Sides] = {}
    for split in SPLITS:
        prefix = _binary_prefix(folder, split, source=source, target=target)
        if prefix is None:
            raise UserError(f"`from_path` {folder}: the binarized data has no {split} split")
        source_files, target_files = (
            (
                folder / f"{prefix}.{language}.bin",
                folder / f"{prefix}.{language}.idx",
                folder / f"dict.{language}.txt",
            )
            for language in (source, target)
        )
        for path in (*source_files, *target_files):
            if not path.is_file():
                raise UserError(f"{path} is missing: the binarized data is not complete")
        splits[split] = (source_files, target_files)
    return splits


def _archive_splits(folder: Path, *, source: str, target: str) -> dict[str, Sides]:
    pair = f"{source}-{target}"
    if not any(folder.glob(f"train.tags.{pair}.*")):
        pair = f"{target}-{source}"
    train = _sides(folder, f"train.tags.{pair}", source=source, target=target, option="`from_path`")
    found = sorted(folder.glob(f"IWSLT*.{pair}.{source}.xml"), key=_by_year)
    recipe = [
        path for name in _RECIPE_TESTS for path in found if path.name.startswith(f"IWSLT14.{name}.")
    ]
    sources = tuple(recipe if len(recipe) == len(_RECIPE_TESTS) else found)
    targets = tuple(
        path.with_name(path.name.removesuffix(f"{source}.xml") + f"{target}.xml")
        for path in sources
    )
    for path in targets:
        if not path.is_file():
            raise UserError(f"{path} is missing: the archive is not complete")
    return {"train": train} | ({"test": (sources, targets)} if sources else {})


def _by_year(path: Path) -> tuple[str, str]:
    match = re.search(r"(dev|tst)(\d+)", path.name)
    return match.groups() if match else ("", path.name)  # type: ignore[return-value]


def _sniff(path: Path) -> Kind:
    """Kind of plain text: cut by BPE, tokenized (sentence ends stand alone) or raw."""
    lines = read_lines(path)[:_SNIFFED_LINES]
    if any("@@ " in line for line in lines):
        return "bpe"
    ends = [line.rstrip() for line in lines if line.rstrip().endswith((".", "!", "?"))]
    tokenized = sum(end[-2:-1] in ("", " ") for end in ends)
    return "tok" if ends and 2 * tokenized > len(ends) else "raw"


def _hint(folder: Path, wanted: str) -> str:
    near = get_close_matches(wanted, [path.name for path in folder.iterdir()], n=1)
    return f" (nearest: {near[0]})" if near else ""


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


def split_off(
    source: list[str], target: list[str]
) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
    """Split parallel text into (rest, held out): pairs 23, 46, ..., as in fairseq's recipe."""
    held_out = source[_HELD_OUT - 1 :: _HELD_OUT], target[_HELD_OUT - 1 :: _HELD_OUT]
    rest = list(source), list(target)
    for side in rest:
        del side[_HELD_OUT - 1 :: _HELD_OUT]
    return rest, held_out
