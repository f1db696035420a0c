"""Waiting for what other processes and threads do: for a condition, never for a time to pass."""

import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

SOON = 60.0
"""Seconds after which a test gives up; what it waits for takes a fraction of one."""

COMMAND = 170.0
"""Seconds that a command may take: all that a test has (``--timeout``), but for time to tell."""


def awaited(
    look: Callable[[], Found | None], *, seconds: float = SOON, pause: float = 0.01
) -> Found:
    """What ``look`` finds, as soon as that is something true; ``pause`` between two looks.

    AssertionError if it finds nothing in ``seconds``; what it raises propagates.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing came in {seconds:g} s; last seen: {found!r}"
        time.sleep(pause)
    return found


def main_thread_is_in(file: str, function: str) -> bool:
    """Whether the main thread is inside a call of a function, by its file's name and its own."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    stack = traceback.extract_stack(frame)
    return any(each.name == function and Path(each.filename).name == file for each in stack)


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:
        return False


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 for a server, which takes no connections until that listens on it.

    It stays bound meanwhile, so nobody else is given it; who binds it must reuse the address, as
    servers do.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
