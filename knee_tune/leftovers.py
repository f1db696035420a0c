"""Folders that a process is at work in: claimed, so that those of the dead can be removed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SCRATCH = "knee-tune-scratch-"

OF_TORCHRUN = "torchrun-"
"""How the folders begin that torchrun works in, among the logs of a run."""


def claimed(make: Callable[[], Path]) -> tuple[Path, int]:
    """A folder that ``make`` has just made, and the descriptor that claims it.

    It is claimed until every process that has inherited the descriptor has closed it, or is dead.
    """
    while True:
        folder = make()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # swept before it was claimed
        with suppress(OSError):  # no locks on this file system: nobody can sweep either
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if folder.is_dir():
            return folder, descriptor
        os.close(descriptor)


def sweep(folders: Iterable[Path]) -> None:
    """Remove those of ``folders``, all made to be claimed, that nobody claims any more."""
    for folder in folders:
        with suppress(OSError):  # another one was quicker, or it is another user's
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def scratch(prefix: str, *, within: Path | None = None) -> Iterator[tuple[Path, int]]:
    """An empty folder, its name beginning with ``prefix``, for as long as the block takes.

    In ``within``, or where temporary files go. Comes with the descriptor that claims it; what
    processes that were killed have left there of that name is removed first.
    """
    sweep((within or Path(tempfile.gettempdir())).glob(f"{prefix}*"))
    folder, claim = claimed(lambda: Path(tempfile.mkdtemp(prefix=prefix, dir=within)))
    try:
        yield folder, claim
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder while the block runs. Those that killed processes left go first."""
    with scratch(_SCRATCH) as (folder, _):
        yield folder


def sweep_scratch() -> None:
    """Remove every :func:`scratch_folder` of a process that was killed."""
    sweep(Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"))
