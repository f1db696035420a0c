"""Files and folders that appear whole or not at all, whoever is killed while they are written."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the draft of a file or of a folder, to be made; it becomes ``path`` with the block.

    The draft lies beside ``path``, in a folder that must be there: a home that was deleted is not
    made anew. If the block fails, or ``path`` is a folder already (OSError), nothing is left of it.
    ``durable`` waits for the disk; what is not may be damaged by a crash of the machine.
    """
    draft = draft_of(path)
    try:
        yield draft
        if durable:
            for each in (*(draft.iterdir() if draft.is_dir() else ()), draft):
                _sync(each)
        draft.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        remove(draft)  # it is still there if it was a link of the file at ``path``


def write_whole(path: Path, text: str) -> None:
    """Write a text file, the whole of it or nothing; OSError if that is impossible."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def draft_of(path: Path) -> Path:
    """A free name beside ``path`` for what is to become it: :func:`drafts` knows it by that."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")


def drafts(folder: Path) -> list[Path]:
    """Drafts in ``folder``: being written, or left by whoever was killed."""
    earlier = folder.glob(".draft-*")  # as checkpoints were called
    return [*folder.glob("*.draft"), *earlier]


def link_or_copy(source: Path, target: Path) -> Path:
    """Make ``target``, which is new, the same file as ``source``; without links a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def remove(path: Path) -> None:
    """Delete a file, or a folder and what is in it, as far as that is possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
