"""How a run ends, and who is told what happens: the tracking records it, a watcher shows it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

from optuna.exceptions import StorageInternalError

from knee_tune.errors import HomeGoneError
from knee_tune.plans.plan import TrainPlan
from knee_tune.records.events import (
    Event,
    RunLink,
    TrialFinished,
    TrialReported,
    TrialStarted,
    final_name,
)
from knee_tune.records.values import Point, RunEnd
from knee_tune.runs.slots import SlotInterruptedError
from knee_tune.schedules import Decay
from knee_tune.study.patience import StorageGoneError
from knee_tune.workers.protocol import Failure, Outcome, Report

End = Literal["complete", "pruned", "failed"]
"""An end as records, screens and ``--json`` spell it."""

STATES: Mapping[RunEnd, End] = MappingProxyType(
    {
        RunEnd.COMPLETE: "complete",
        RunEnd.PRUNED: "pruned",
        RunEnd.DIVERGED: "pruned",
        RunEnd.FAILED: "failed",
    }
)

_OF_RANK = {
    "complete": RunEnd.COMPLETE,
    "stopped": RunEnd.PRUNED,
    "diverged": RunEnd.DIVERGED,
}
"""What a rank says of its run, which a driver alone can stop."""

Origin = Literal["trunk", "record"]
"""Where steps come from that need no training."""


class Recorder(Protocol):
    """Recorder of events; takes them at once, whatever the tracking server does."""

    def record(self, event: Event) -> None:
        """Take an event."""
        ...

    def run_of(self, key: str | None) -> RunLink | None:
        """The tracked run of a trial, if it is known."""
        ...


class Watcher(Protocol):
    """Display of what happens. Called from the thread of every slot."""

    def trial_started(
        self,
        number: int,
        plan: TrainPlan,
        *,
        explore_fraction: float,
        decay: Decay | None = None,
        replicates: int,
    ) -> None:
        """Show that a trial of so many runs begins, or goes on; ``plan`` is the first one's."""
        ...

    def trial_reused(self, number: int, step: int, *, replicate: int, origin: Origin) -> None:
        """Show that a replicate (counted from 0) needs no training up to ``step``."""
        ...

    def trial_progressed(self, number: int, step: int) -> None:
        """Show that a trial reached a step, counted on over its replicates."""
        ...

    def trial_reported(self, number: int, report: Report, *, replicate: int) -> None:
        """Show an evaluation of a replicate."""
        ...

    def trial_finished(self, number: int, end: End, *, value: float | None, reason: str) -> None:
        """Show the end of a trial."""
        ...

    def batch_started(self, points: Mapping[int, Point], plan: TrainPlan) -> None:
        """Show that trials begin, or go on, that train as one batched model.

        ``points``: seed LR and explore fraction of each, by its number.
        """
        ...

    def batch_progressed(self, step: int) -> None:
        """Show that all trials of the batch reached a step."""
        ...

    def batch_reported(self, report: Report) -> None:
        """Show an evaluation of a batch; the metrics are means over all its models."""
        ...

    def line(self, text: str) -> None:
        """Show anything else worth a line."""
        ...


INTERRUPTED = "interrupted; the same command continues it"

TAKEN_OVER = "this driver was silent for so long that another one took over its trial"


class RefusedError(Exception):
    """A trial, and so every other one, cannot be trained before somebody fixes the cause."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


NO_FAULT_OF_ITS_OWN = (
    *(KeyboardInterrupt, SlotInterruptedError, HomeGoneError, RefusedError),
    *(StorageGoneError, StorageInternalError),
)
"""What ends a trial that is to go on: it is put back into the queue."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """End of a run, and what is said of it."""

    end: RunEnd
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Of the final evaluation, if complete."""
    failure: Failure | None = None
    """What its group died of, if that is how it ended."""

    @classmethod
    def of(cls, outcome: Outcome) -> "Ending":
        """Translate what a group said; metrics that are not finite are those of a diverged run."""
        if isinstance(outcome, Failure):
            return cls(end=RunEnd.FAILED, reason=outcome.message, failure=outcome)
        end, why = _OF_RANK[outcome.state], outcome.reason
        metrics: dict[str, float] = outcome.result.get("metrics", {})
        if end is RunEnd.COMPLETE and not all(map(math.isfinite, metrics.values())):
            end, why = RunEnd.DIVERGED, "non-finite metric of the final evaluation"
        match end:
            case RunEnd.COMPLETE:
                return cls(end=end, metrics=metrics)
            case RunEnd.DIVERGED:
                return cls(end=end, reason=f"diverged: {why}")
        return cls(end=end, reason=f"pruned at step {outcome.step}")

    @property
    def state(self) -> End:
        """Its end as records and screens spell it."""
        return STATES[self.end]

    @classmethod
    def of_exception(cls, error: BaseException) -> "Ending":
        """Name what broke a run off, an interrupt or an error of our own."""
        if isinstance(error, RefusedError):
            return cls(end=RunEnd.FAILED, reason=str(error))
        if isinstance(error, NO_FAULT_OF_ITS_OWN):
            return cls(end=RunEnd.FAILED, reason=INTERRUPTED)
        return cls(end=RunEnd.FAILED, reason=f"{type(error).__name__}: {error}")


class RunEvents:
    """Records the events of one run under its key."""

    def __init__(self, recorder: Recorder, key: str) -> None:
        self._recorder, self._key = recorder, key

    @property
    def link(self) -> RunLink | None:
        """Link to where it is tracked, once that is known."""
        return self._recorder.run_of(self._key)

    def started(
        self, plan: TrainPlan, *, name: str, replicates: int | None = None, **facts: Any
    ) -> None:
        """Record that it begins, or goes on. ``facts``: further fields of :class:`TrialStarted`."""
        params = plan.model_dump(mode="json", include={"recipe", "schedule", "seed"})
        params["replicates"] = replicates
        self._recorder.record(TrialStarted(key=self._key, name=name, params=params, **facts))

    def reported(self, report: Report, *, replicate: int = 0) -> dict[str, float]:
        """Record an evaluation of it, or of a replicate; returns the metrics without the LR."""
        metrics = dict(report.metrics)
        lr = metrics.pop("lr")
        self._recorder.record(
            TrialReported(
                key=self._key, step=report.step, lr=lr, metrics=metrics, replicate=replicate
            )
        )
        return metrics

    def finished(self, ending: Ending, **counts: float) -> None:
        """Record its end. ``counts`` become metrics of their names."""
        self._recorder.record(
            TrialFinished(
                key=self._key,
                state=ending.end,
                metrics={final_name(name): value for name, value in ending.metrics.items()}
                | counts,
                reason=ending.reason,
            )
        )
