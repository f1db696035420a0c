"""Locks between slots, drivers and commands: a file each, freed by the system with its holder."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL_SECONDS = 0.2


def file_lock(path: Path) -> FileLock:
    """A lock that excludes every other one on ``path``, those of this process's threads too."""
    path.parent.mkdir(exist_ok=True)
    return FileLock(path, thread_local=False, is_singleton=False)


def try_lock(lock: FileLock) -> bool:
    """Take ``lock`` if nobody holds it."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


@contextmanager
def held_once(
    lock: FileLock, *, unless: Callable[[], bool], meanwhile: Callable[[], None]
) -> Iterator[FileLock]:
    """Wait until ``unless()`` or until ``lock`` is ours, and let go of it on the way out at last.

    ``meanwhile`` is called whenever there is nothing yet; what it raises ends the wait.
    """
    try:
        while not (unless() or try_lock(lock)):
            meanwhile()
            time.sleep(POLL_SECONDS)
        yield lock
    finally:
        lock.release()
