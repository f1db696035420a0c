"""The outbox: whatever is to be tracked goes first into a local file, one JSON line per event.

``<home>/outbox/<store>/<study>/<time>-<pid>.jsonl`` belongs to one driver process, which holds a
lock on it; ``.ack`` beside it has the position up to which MLflow has everything. A line is in the
kernel's hands when :meth:`Outbox.append` returns, so a killed driver loses nothing. A file whose
owner is dead has a free lock: the next driver that tracks in the same store adopts it.
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

from pydantic import ValidationError

from knee_tune.errors import first_line
from knee_tune.files import whole, write_whole
from knee_tune.records.events import Event, Recorded, StudyStarted
from knee_tune.tracking.store import is_server
from knee_tune.urls import shown_url, sqlite_file

log = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Bytes read at once; more only for a line that is longer."""


class Batch(NamedTuple):
    """Consecutive lines of an outbox; ``end`` is the position after the last of them."""

    lines: list[bytes]
    end: int


class Outbox:
    """One file of events, locked by this process. Any thread may append; one thread reads."""

    def __init__(self, path: Path, descriptor: int, study: StudyStarted, *, began: int) -> None:
        self.path = path
        self.study = study
        self._began = began
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._torn = False
        self._ack_file = path.with_suffix(".ack")
        self._acknowledged = self._read_ack()
        self._remaining = sum(1 for _ in self._lines(self._acknowledged))

    @classmethod
    def create(cls, root: Path, study: StudyStarted, *, began: int | None = None) -> Self:
        """A new outbox below ``root`` (see :func:`outbox_root`) whose first line is ``study``.

        It began now, or at ``began`` (ms since 1970).
        """
        first = Recorded(at=_now() if began is None else began, event=study)
        folder = study_folder(root, study.name)
        for each in (root.parent, root, folder):
            each.mkdir(exist_ok=True)
        path = folder / f"{time.time_ns()}-{os.getpid()}.jsonl"
        with whole(path) as draft:  # others see it only when it is locked
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, _line(first))
        return cls(path, descriptor, study, began=first.at)

    def beside(self) -> Self:
        """A new outbox of the same study, as if it had begun when this one did."""
        return self.create(self.path.parent.parent, self.study, began=self._began)

    @classmethod
    def adopt(cls, folder: Path) -> list[Self]:
        """The outboxes that dead drivers left in ``folder``, oldest first."""
        found = (cls._take(path) for path in sorted(folder.glob("*.jsonl")))
        return [outbox for outbox in found if outbox is not None]

    @classmethod
    def _take(cls, path: Path) -> Self | None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino != path.stat().st_ino:
                raise FileNotFoundError(path)
            with path.open("rb") as file:
                first = Recorded.model_validate_json(file.readline())
            if not isinstance(first.event, StudyStarted):
                raise ValueError("its first line is not the start of a study")
            return cls(path, descriptor, first.event, began=first.at)
        except (BlockingIOError, FileNotFoundError):
            pass  # its driver is alive, or another adopter was quicker
        except ValueError as error:
            log.warning("leaving %s alone: %s", path, first_line(error))
        os.close(descriptor)
        return None

    def append(self, event: Event) -> None:
        """Write ``event`` down; takes microseconds. A full disk is warned of, not raised."""
        self.keep(_line(Recorded(at=_now(), event=event)))

    def keep(self, data: bytes) -> None:
        """Write a line of another outbox down, as :meth:`append` does."""
        with self._lock:
            if self._torn:
                data = b"\n" + data
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
                self._torn = False
                self._remaining += 1
            except OSError as error:
                self._torn = True
                log.warning("%s: %s; an event is not tracked", self.path, error)

    @property
    def remaining(self) -> int:
        """Events that MLflow does not have yet."""
        return self._remaining

    def pending(self, limit: int) -> Batch:
        """Up to ``limit`` lines after the acknowledged position."""
        lines, end = [], self._acknowledged
        for line in self._lines(self._acknowledged):
            lines.append(line)
            end += len(line)
            if len(lines) == limit:
                break
        return Batch(lines, end)

    def acknowledge(self, batch: Batch) -> None:
        """Note that MLflow has everything up to ``batch.end``."""
        write_whole(self._ack_file, json.dumps(batch.end))
        with self._lock:
            self._acknowledged = batch.end
            self._remaining -= len(batch.lines)

    def reject(self, line: bytes) -> Path:
        """Put aside a line that MLflow will never take, and that would block others; where."""
        path = self.path.parent / "rejected.log"
        with path.open("ab") as file:
            file.write(line)
        return path

    def events(self) -> Iterator[Recorded]:
        """Every event from the start, acknowledged or not, without the unreadable."""
        for line in self._lines(0):
            try:
                yield Recorded.model_validate_json(line)
            except ValidationError:
                continue

    def close(self) -> None:
        """Give up the lock; the files go if MLflow has everything."""
        if self._descriptor < 0:
            return
        if self._remaining == 0:
            self.path.unlink(missing_ok=True)
            self._ack_file.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def _lines(self, position: int) -> Iterator[bytes]:
        """Whole lines from ``position``; a torn last line is not there yet, or never was."""
        size = BLOCK
        while block := os.pread(self._descriptor, size, position):
            whole = block[: block.rfind(b"\n") + 1]
            if whole:
                yield from whole.splitlines(keepends=True)
                position += len(whole)
                size = BLOCK
            elif len(block) < size:
                return
            else:
                size *= 2

    def _read_ack(self) -> int:
        try:
            return int(json.loads(self._ack_file.read_text()))
        except (FileNotFoundError, ValueError):
            return 0


def outbox_root(home: Path, uri: str) -> Path:
    """Return the folder of all that is meant for the tracking URI ``uri``, and for no other.

    A new password does not make it another store, nor does another way to write a file's path.
    """
    file = None if is_server(uri) else sqlite_file(uri)
    store = f"sqlite:///{file}" if file else shown_url(uri).rstrip("/")
    return home / "outbox" / hashlib.sha256(store.encode()).hexdigest()[:12]


def study_folder(root: Path, study_name: str) -> Path:
    """Return the folder of a study's outboxes, below ``root``."""
    return root / quote(study_name, safe="")


def study_folders(root: Path) -> list[Path]:
    """Return the folders of all studies' outboxes, below ``root``."""
    return sorted(path for path in root.glob("*") if path.is_dir())


def another_driver_lives(folder: Path, *, ours: Collection[Path]) -> bool:
    """Whether another process holds an outbox in ``folder``; ``ours`` are held by this one."""
    for path in folder.glob("*.jsonl"):
        if path in ours:
            continue
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            return True
    return False


def _line(recorded: Recorded) -> bytes:
    return recorded.model_dump_json().encode() + b"\n"


def _now() -> int:
    return time.time_ns() // 1_000_000
