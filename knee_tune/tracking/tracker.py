"""The tracker: what the driver talks to. It takes events, at once, and never waits for MLflow."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from knee_tune.records.events import Event, RunLink, StudyStarted, TrialStarted
from knee_tune.tracking.outbox import Outbox, outbox_root, study_folders
from knee_tune.tracking.sender import Sender
from knee_tune.tracking.store import (
    MAX_PATIENCE,
    connect,
    follow_home,
    is_local,
    patience,
    run_link,
)
from knee_tune.urls import shown_url

if TYPE_CHECKING:
    from knee_tune.tracking.runs import RunWriter


class Tracker(Protocol):
    """Takes the events of one study. Methods may be called from any thread."""

    def record(self, event: Event) -> None:
        """Take ``event``; returns in well under a millisecond, whatever the server does.

        The first one must be :class:`StudyStarted` (ValueError otherwise).
        """
        ...

    def run_of(self, key: str | None) -> RunLink | None:
        """The MLflow run of a trial, or of the study (None), if it is known by now."""
        ...

    def flush(self, timeout: float | None = None) -> int:
        """Send everything now; the number of events that remain after ``timeout`` seconds.

        Without one, a server has 10 s; a local store takes the time it needs.
        """
        ...

    def close(self, timeout: float | None = None) -> int:
        """Flush and stop. What remains is sent by the next run; see :func:`unsent_notice`."""
        ...


class NullTracker:
    """Tracks nothing (``tracking_uri`` none)."""

    def record(self, event: Event) -> None:
        """Forget the event."""

    def run_of(self, key: str | None) -> RunLink | None:
        """Return None: there are no runs."""
        return None

    def flush(self, timeout: float | None = None) -> int:
        """Return 0: there is nothing to send."""
        return 0

    def close(self, timeout: float | None = None) -> int:
        """Return 0: there is nothing to send."""
        return 0


class MlflowTracker:
    """Tracks one study in MLflow, through an outbox in ``home`` and a sender thread."""

    def __init__(
        self,
        *,
        home: Path,
        uri: str,
        interval: float = 2.0,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._home, self._uri, self._interval, self._gone = home, uri, interval, gone
        self._study: StudyStarted | None = None
        self._outbox: Outbox | None = None
        self._sender: Sender | None = None
        self._writer: RunWriter | None = None

    def record(self, event: Event) -> None:
        """See :class:`Tracker`."""
        if self._outbox is not None and self._sender is not None:
            self._outbox.append(event)
            if isinstance(event, TrialStarted):  # its link is asked for; reports go in batches
                self._sender.wake()
        elif isinstance(event, StudyStarted):
            self._study = event
            root = outbox_root(self._home, self._uri)
            self._outbox = Outbox.create(root, event)
            self._sender = Sender(
                self._connect,
                outbox=self._outbox,
                folders=study_folders(root),
                where=shown_url(self._uri),
                local=is_local(self._uri),
                interval=self._interval,
                gone=self._gone,
            )
        else:
            raise ValueError("the first event of a tracker is StudyStarted")

    def run_of(self, key: str | None) -> RunLink | None:
        """See :class:`Tracker`."""
        if self._study is None or self._writer is None:
            return None
        from knee_tune.tracking.runs import run_key_of

        return self._writer.link(run_key_of(self._study.uid, key))

    def flush(self, timeout: float | None = None) -> int:
        """See :class:`Tracker`."""
        return self._sender.flush(timeout) if self._sender else 0

    def close(self, timeout: float | None = None) -> int:
        """See :class:`Tracker`."""
        return self._sender.close(timeout) if self._sender else 0

    def _connect(self) -> "RunWriter":
        self._writer = _connect_writer(self._uri, self._home)
        return self._writer


def open_tracker(
    *, home: Path, uri: str | None, gone: Callable[[], bool] = lambda: False
) -> Tracker:
    """The tracker for a resolved tracking URI (see ``resolve_tracking_uri``); None tracks not.

    ``gone`` tells whether the home was deleted meanwhile: then nothing more is sent.
    """
    return NullTracker() if uri is None else MlflowTracker(home=home, uri=uri, gone=gone)


def send_leftovers(*, home: Path, uri: str, timeout: float | None = None) -> int:
    """Send what earlier commands could not send to ``uri``, of all studies; what still remains.

    Imports no MLflow when nothing is left over. Outboxes of living drivers are left alone.
    """
    folders = study_folders(outbox_root(home, uri))
    if not any(next(folder.glob("*.jsonl"), None) for folder in folders):
        return 0
    sender = Sender(
        lambda: _connect_writer(uri, home),
        outbox=None,
        folders=folders,
        where=shown_url(uri),
        local=is_local(uri),
    )
    return sender.close(timeout)


def unsent_notice(remaining: int, uri: str) -> str | None:
    """The line to show when :meth:`Tracker.close` left something; None if it did not."""
    if not remaining:
        return None
    where = shown_url(uri)
    return f"{remaining} tracking events could not be sent to {where}; the next run sends them"


def _connect_writer(uri: str, home: Path) -> "RunWriter":
    follow_home(home, uri)
    client = connect(uri)
    from knee_tune.tracking.runs import RunWriter

    return RunWriter(client, uri=uri, home=home)


# What is measured of a run long after it ended: further metrics of an MLflow run there is.


def add_metrics(
    metrics: Mapping[str, float],
    *,
    tags: Mapping[str, str],
    study_uid: str,
    key: str,
    experiment: str,
    home: Path,
    uri: str,
) -> RunLink | None:
    """Add ``metrics`` to the run of a trial, or of a row, ``key``; None if it has none there.

    Raises what MLflow raises when it does not answer, DeletedError if the run was deleted.
    """
    with patience(MAX_PATIENCE):
        send_leftovers(home=home, uri=uri)  # the run may still wait in an outbox
        client = connect(uri)
        from mlflow.entities import Metric

        from knee_tune.tracking.runs import known_run, log_entries

        run = known_run(client, uri=uri, experiment=experiment, study_uid=study_uid, key=key)
        if run is None:
            return None
        run_id = str(run.info.run_id)
        now = time.time_ns() // 1_000_000
        measured = [Metric(name, value, now, 0) for name, value in metrics.items()]
        log_entries(client, run_id, metrics=measured, tags=tags)
        return run_link(uri, experiment_id=run.info.experiment_id, run_id=run_id)
