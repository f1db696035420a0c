"""Who is told what happens in a study: the tracking records it, a watcher shows it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

from knee_tune.distributed.protocol import Report
from knee_tune.planning.plan import TrainPlan
from knee_tune.specs.tracking import Event, RunLink

End = Literal["complete", "pruned", "failed"]

Origin = Literal["trunk", "record"]
"""Where steps come from that need no training."""

TOLD: Mapping[str, Literal["COMPLETE", "PRUNED", "FAIL"]] = MappingProxyType(
    {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
)
"""Each :data:`End` as the tracking is told it."""


class Recorder(Protocol):
    """Where events are recorded; takes them at once, whatever the tracking server does."""

    def record(self, event: Event) -> None:
        """Take an event."""
        ...

    def run_of(self, key: str | None, *, wait: float = 0.0) -> RunLink | None:
        """The tracked run of a trial, if it is known."""
        ...


class Watcher(Protocol):
    """Who is told what happens, to show it. Called from the thread of every slot."""

    def trial_started(
        self, number: int, plan: TrainPlan, *, explore_fraction: float, replicates: int
    ) -> None:
        """A trial begins, or goes on: ``replicates`` runs, ``plan`` is the first one's."""
        ...

    def trial_reused(self, number: int, step: int, *, replicate: int, origin: Origin) -> None:
        """A replicate (counted from 0) needs no training up to ``step``."""
        ...

    def trial_progressed(self, number: int, step: int) -> None:
        """A trial reached a step, counted on over its replicates."""
        ...

    def trial_reported(self, number: int, report: Report, *, replicate: int) -> None:
        """A replicate was evaluated."""
        ...

    def trial_finished(self, number: int, end: End, *, value: float | None, reason: str) -> None:
        """A trial came to its end."""
        ...

    def batch_started(self, points: Mapping[int, tuple[float, float]], plan: TrainPlan) -> None:
        """Trials begin, or go on, that train as one batched model.

        ``points``: seed LR and explore fraction of each, by its number.
        """
        ...

    def batch_progressed(self, step: int) -> None:
        """All trials of the batch reached a step."""
        ...

    def batch_reported(self, report: Report) -> None:
        """All trials of the batch were evaluated; the metrics are means over all their models."""
        ...

    def line(self, text: str) -> None:
        """Anything else worth a line."""
        ...
