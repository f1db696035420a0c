"""Writes what a batch tells while the batch trains on: ranks are not to wait for the storage."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat

from knee_tune.distributed.protocol import Report
from knee_tune.tuning.storage import HEARTBEAT_SECONDS


class Scribe:
    """A thread that keeps trials alive by their heartbeats and has every report written.

    Optuna beats for trials of ``Study.optimize`` alone. What goes wrong in the thread is raised by
    the next :meth:`check`, :meth:`put` or :meth:`flush`.
    """

    def __init__(
        self, storage: BaseStorage, trials: Sequence[int], write: Callable[[Report], None]
    ) -> None:
        self._storage, self._trials, self._write = storage, trials, write
        self._queue = queue.Queue[Report | None]()
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)

    def put(self, report: Report) -> None:
        """Have a report written, after those before."""
        self.check()
        self._queue.put(report)

    def flush(self) -> None:
        """Wait until every report is written."""
        self._queue.join()
        self.check()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # after an interrupt nobody waits for what is not yet written
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        beat = time.monotonic()
        while not self._over.is_set():
            if time.monotonic() >= beat:
                beat = time.monotonic() + HEARTBEAT_SECONDS
                self._try(self._beat)
            try:
                report = self._queue.get(timeout=max(0.0, beat - time.monotonic()))
            except queue.Empty:
                continue
            if report is not None and self._error is None:
                self._try(partial(self._write, report))
            self._queue.task_done()

    def _beat(self) -> None:
        if isinstance(self._storage, BaseHeartbeat):
            for trial in self._trials:
                if self._over.is_set():
                    return
                self._storage.record_heartbeat(trial)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error
