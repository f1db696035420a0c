"""A folder of prepared data: written whole or not at all, and known by its files' checksums."""

import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from filelock import FileLock

from knee_tune.config.recipe import DATA_NAME, Spec
from knee_tune.errors import UserError
from knee_tune.files import checksum
from knee_tune.leftovers import claimed, sweep

MANIFEST = "manifest.json"
"""Written last, so a folder without one was never finished."""

FILLING = ".*.filling"
"""The names of folders that are not whole yet."""

_CHECKSUM = "manifest_sha256"

M = TypeVar("M", bound=Spec)


class FileRecord(Spec):
    """Size and checksum of one file."""

    bytes: int
    sha256: str

    def describes(self, path: Path) -> bool:
        """Whether the file at ``path`` is there and still what it was."""
        return (
            path.is_file() and path.stat().st_size == self.bytes and checksum(path) == self.sha256
        )


class SetManifest(Spec):
    """Contents and origin of a prepared set; each kind adds its sizes."""

    format: int = 1
    name: str
    origin: str
    """The file or folder it was made from, or who publishes it."""
    files: dict[str, FileRecord]
    fingerprint: str
    """Changes whenever any file of the set does; independent of where it lies."""


@dataclass(frozen=True, kw_only=True)
class PreparedSet(ABC):
    """Result of a preparation, as commands show it and print it as JSON."""

    folder: Path
    name: str
    fingerprint: str
    seconds: float
    reused: bool
    """The set was there already."""
    warnings: tuple[str, ...] = ()

    @abstractmethod
    def contents(self) -> str:
        """Sizes of the set, in a few words."""


def record_files(folder: Path) -> tuple[dict[str, FileRecord], str]:
    """Checksums of the files in ``folder`` (but the manifest), and the fingerprint of all."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            files[path.name] = FileRecord(bytes=path.stat().st_size, sha256=checksum(path))
    listing = "".join(f"{record.sha256}  {name}\n" for name, record in files.items())
    return files, sha256(listing.encode()).hexdigest()


def check_files(folder: Path, files: Mapping[str, FileRecord], *, again: str) -> None:
    """UserError, which says to prepare them ``again``, if one of ``files`` is not what it was."""
    for name, record in files.items():
        if not record.describes(folder / name):
            raise UserError(f"{folder / name}: missing or changed since it was prepared; {again}")


def write_manifest(folder: Path, manifest: Spec) -> None:
    """Write the manifest, with its own checksum in it: the last act of a preparation."""
    content = json.loads(manifest.model_dump_json())
    text = json.dumps({**content, _CHECKSUM: _digest(content)}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, kind: type[M], *, missing: str, again: str) -> M:
    """The manifest of the set in ``folder``; the set's other files are not looked at.

    UserError: ``missing`` if there is none; if it is no ``kind``, or not what was written, one that
    says to do it ``again``.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = content.pop(_CHECKSUM, None)  # sets of earlier versions have none
        if written not in (None, _digest(content)):
            raise ValueError("damaged")
        return kind.model_validate_json(json.dumps(content))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(missing) from None
    except (ValueError, AttributeError, TypeError, RecursionError, IsADirectoryError):
        raise UserError(f"{path}: damaged or of another version; {again}") from None


def _digest(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def set_folder(data_root: Path, name: str) -> Path:
    """The folder of the prepared set ``name``, which may be there already.

    UserError for an impossible name, and for a folder that is something else.
    """
    if not re.fullmatch(DATA_NAME, name):
        raise UserError(f"`name` {name!r}: at most 64 letters, digits, '.', '_' and '-'")
    folder = data_root / name
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} exists but is no prepared set: remove it or choose `name`")
    return folder


def prepare_once(folder: Path, prepare: Callable[[], object]) -> None:
    """Have a set made that is not there yet: once, however many ranks and drivers ask for it."""
    if (folder / MANIFEST).exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / MANIFEST).exists():
            prepare()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill: it replaces ``folder`` if the block ends well and is gone otherwise."""
    sweep(folder.parent.glob(FILLING))
    partial, claim = claimed(lambda: _made(folder.with_name(f".{folder.name}.{uuid4()}.filling")))
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(claim)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
