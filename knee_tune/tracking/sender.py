"""The sender: a thread that carries outboxes to where they belong and never gives up.

It knows files, time and patience, but not MLflow: delivery is handed in.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from knee_tune.errors import first_line, one_line
from knee_tune.records.events import (
    Event,
    Recorded,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from knee_tune.records.values import RunEnd
from knee_tune.tracking.outbox import Outbox, another_driver_lives
from knee_tune.tracking.store import trouble

log = logging.getLogger(__name__)

BATCH = 500
"""Events per delivery."""

MAX_BACK_OFF = 30.0
"""Seconds between two tries while the server is away."""

EXIT_PATIENCE = 10.0
"""Seconds that the end of a command waits for a server, or for anything once it is interrupted."""

STANDSTILL = 600.0
"""Seconds without anything delivered after which a local store counts as stuck; it may be slow."""


class RejectedError(Exception):
    """The server answered and will never take this event: trying again is pointless."""


class DeletedError(Exception):
    """The subject of an event was deleted there; the text says how people bring it back.

    The event is put aside for then, and blocks nothing.
    """


class ForbiddenError(Exception):
    """The server answered, and as things are takes nothing of this study; the text says why.

    Its events wait until people have seen to it, and hold up no other study's.
    """


class Delivery(Protocol):
    """Where events belong. The same events may come twice and must count once."""

    def apply(self, study: StudyStarted, events: Sequence[Recorded]) -> None:
        """Deliver all of ``events``, or raise; :class:`RejectedError` if one is not acceptable,
        :class:`DeletedError` if it is about what was deleted, :class:`ForbiddenError` if the whole
        study is refused.

        Outboxes of several drivers come in any order, so what is older than the newest start or
        end of its run neither opens nor ends that run.
        """
        ...

    def still_running(
        self, study: StudyStarted, began: Mapping[str | None, int]
    ) -> set[str | None]:
        """The runs of ``began`` that nobody has ended, or begun anew, since they began.

        ``began`` is when (ms since 1970) by the key of the trial, or None for the study itself.
        """
        ...


class Sender:
    """Delivers ``outbox`` every ``interval`` seconds, and what dead drivers left behind.

    ``connect`` runs in the thread, so it may be slow. ``folders`` are searched once for
    outboxes to adopt. Those of the same study go first, since they tell what happened before;
    those of other studies make room for ``outbox`` again and again, and one that cannot be
    delivered for the others: refused, it is left to the next command. A ``local`` store is never
    away, at most slow: its end has no deadline while events move. Once the home is ``gone``, and
    the outboxes with it, nothing is sent any more, which could make it anew.
    """

    def __init__(
        self,
        connect: Callable[[], Delivery],
        *,
        outbox: Outbox | None,
        folders: Sequence[Path],
        where: str,
        local: bool = False,
        interval: float = 2.0,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._connect, self._gone = connect, gone
        self._delivery: Delivery | None = None
        self._outbox = outbox
        ours = outbox.path.parent if outbox else None
        self._folders = sorted(folders, key=lambda folder: folder != ours)
        self._orphans: list[Outbox] = []
        self._aside: dict[str, Outbox] = {}
        self._told: set[str] = set()
        self._where, self._local = where, local
        self._interval = interval
        self._changed = threading.Condition()
        self._urgent = False
        self._stopping = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    @property
    def remaining(self) -> int:
        """Events not delivered yet."""
        return sum(box.remaining for box in self._boxes())

    def wake(self) -> None:
        """Deliver now instead of at the next interval; waits for nothing."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> int:
        """Deliver now; what remains after ``timeout`` seconds, or two failures and nothing else.

        Without a ``timeout`` a server has ``EXIT_PATIENCE`` seconds in all, and a local store
        ``STANDSTILL`` seconds since it last took something.
        """
        patient = timeout is None and self._local
        if timeout is None:
            timeout = STANDSTILL if patient else EXIT_PATIENCE
        moved = time.monotonic()
        say_at = moved + EXIT_PATIENCE
        with self._changed:
            failures, todo = self._failures, self._todo()
            while any(todo):
                self._urgent = True
                self._changed.notify_all()
                left = moved + timeout - time.monotonic()
                if left <= 0 or self._failures >= failures + 2 or self._over():
                    break
                self._changed.wait(min(left, EXIT_PATIENCE))
                before, todo = todo, self._todo()
                if patient and todo < before:
                    moved, failures = time.monotonic(), self._failures
                if patient and any(todo) and time.monotonic() > say_at:
                    say_at = math.inf
                    log.warning("%d tracking events still go to %s", self.remaining, self._where)
        return 0 if self._gone() else self.remaining

    def close(self, timeout: float | None = None) -> int:
        """Flush and stop. The thread ends by itself once its last call comes back."""
        remaining = self.flush(timeout)
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        self._thread.join(timeout=0.2)  # longer only if it hangs in a call, reading nothing
        for box in (*self._boxes(), *self._aside.values()):
            box.close()
        return remaining

    def _todo(self) -> tuple[int, int, int]:
        """What is still to be adopted and delivered; smaller the nearer the end is."""
        return len(self._folders), len(self._orphans), self.remaining

    def _over(self) -> bool:
        return self._stopping.is_set() or self._gone()

    def _boxes(self) -> list[Outbox]:
        return [*self._orphans, *([self._outbox] if self._outbox else [])]

    def _run(self) -> None:
        while not self._over():
            try:
                self._deliver_all()
            except Exception as error:  # whatever MLflow raises: training must not notice
                if self._over():
                    return
                self._failed(error)
            else:
                self._succeeded()
            with self._changed:
                self._changed.notify_all()
                if not self._stopping.is_set() and not (self._urgent and self._failures < 2):
                    self._changed.wait(self._pause())
                self._urgent = False

    def _pause(self) -> float:
        if self._failures == 0:
            return self._interval
        return min(2.0 ** (self._failures - 1), MAX_BACK_OFF)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            log.warning(
                "tracking at %s %s; events wait in the outbox and training goes on",
                self._where,
                trouble(error),
            )

    def _succeeded(self) -> None:
        if self._failures:
            log.warning("tracking at %s works again", self._where)
        self._failures = 0

    def _deliver_all(self) -> None:
        while self._folders:
            self._orphans += Outbox.adopt(self._folders[0])
            self._folders = self._folders[1:]
        if not self._boxes():
            return
        if self._delivery is None:
            self._delivery = self._connect()
        while self._orphans:
            orphan = self._orphans[0]
            if self._outbox and orphan.path.parent != self._outbox.path.parent:
                with suppress(ForbiddenError):  # is said after the others had their turn
                    self._deliver(self._outbox)
            try:
                self._deliver(orphan)
                with suppress(DeletedError):  # what is deleted does not run
                    self._end_runs(orphan)
            except ForbiddenError as error:
                said = one_line(first_line(error), longest=200)
                self._warn_once(
                    f"tracking at {self._where} refuses study {orphan.study.name} ({said}); its "
                    "events wait for the next command"
                )
            except Exception:
                self._orphans = [*self._orphans[1:], orphan]  # another one is tried first then
                raise
            self._orphans = self._orphans[1:]
            orphan.close()
        if self._outbox:
            self._deliver(self._outbox)

    def _deliver(self, outbox: Outbox) -> None:
        while not self._over():
            batch = outbox.pending(BATCH)
            if not batch.lines or self._over():  # the home may have gone while they were read
                return
            try:
                self._apply(outbox.study, batch.lines)
            except (RejectedError, DeletedError, ValidationError):
                for line in batch.lines:
                    self._apply_or_keep(outbox, line)
            if self._over():
                return  # the outbox is closed and may have a new owner, or is deleted
            outbox.acknowledge(batch)

    def _apply(self, study: StudyStarted, lines: Sequence[bytes]) -> None:
        assert self._delivery is not None
        self._delivery.apply(study, [Recorded.model_validate_json(line) for line in lines])

    def _apply_or_keep(self, outbox: Outbox, line: bytes) -> None:
        try:
            self._apply(outbox.study, [line])
        except DeletedError as error:
            self._put_aside(outbox, line, f"{error}")
        except (RejectedError, ValidationError) as error:
            kept = outbox.reject(line)
            self._warn_once(f"MLflow refused an event, kept in {kept}: {first_line(error)}")

    def _put_aside(self, outbox: Outbox, line: bytes, reason: str) -> None:
        """Keep a line in an outbox of its own, which the next command adopts."""
        uid = outbox.study.uid
        if uid not in self._aside:
            self._aside[uid] = outbox.beside()
        self._aside[uid].keep(line)
        self._warn_once(f"{reason} (the next command then sends what is tracked meanwhile)")

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)

    def _end_runs(self, orphan: Outbox) -> None:
        """End the runs that still run of a driver that was killed and could not say so.

        They do at the time at which the driver last said something of them, not today: whoever
        took a run over did so later, even if that is yet to be delivered.
        """
        assert self._delivery is not None
        began: dict[str | None, int] = {}
        last: dict[str | None, int] = {}
        for at, event in ((recorded.at, recorded.event) for recorded in orphan.events()):
            key = getattr(event, "key", None)
            last[key] = last[None] = at
            match event:
                case StudyStarted() | TrialStarted():
                    began[key] = at
                case StudyFinished() | TrialFinished():
                    began.pop(key, None)
        since = began.pop(None, None)
        if since is not None and not self._others_drive(orphan):
            began[None] = since  # after its trials
        if not began:
            return
        running = self._delivery.still_running(orphan.study, began)
        ends = [Recorded(at=last[key], event=_killed(key)) for key in began if key in running]
        self._delivery.apply(orphan.study, ends)

    def _others_drive(self, orphan: Outbox) -> bool:
        """Whether a driver that lives, or an orphan that comes later, tells the study's end."""
        waiting = [box for box in self._orphans if box is not orphan]
        if any(box.study.uid == orphan.study.uid for box in waiting):
            return True
        ours = {box.path for box in (*self._boxes(), *self._aside.values())}
        return another_driver_lives(orphan.path.parent, ours=ours)


def _killed(key: str | None) -> Event:
    if key is None:
        return StudyFinished(state="INTERRUPTED")
    return TrialFinished(key=key, state=RunEnd.FAILED, reason="the driver was killed")
