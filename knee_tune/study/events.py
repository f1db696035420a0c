"""How a run ends, and who is told what happens: the tracking records it, a watcher shows it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

from optuna.exceptions import StorageInternalError

from knee_tune.errors import HomeGoneError
from knee_tune.plans.plan import TrainPlan
from knee_tune.records.events import Event, RunLink, TrialFinished, TrialReported, TrialStarted
from knee_tune.records.values import RunEnd
from knee_tune.runs.slots import SlotInterruptedError
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
    """Where events are recorded; takes them at once, whatever the tracking server does."""

    def record(self, event: Event) -> None:
        """Take an event."""
        ...

    def run_of(self, key: str | None) -> RunLink | None:
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
    """How a run ended, and what is said of it."""

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
        """A run that an interrupt or an error of our own broke off."""
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
        """Where it is tracked, once that is known."""
        return self._recorder.run_of(self._key)

    def started(
        self, plan: TrainPlan, *, name: str, replicates: int | None = None, **facts: Any
    ) -> None:
        """It begins, or goes on. ``facts`` are further fields of :class:`TrialStarted`."""
        params = plan.model_dump(mode="json", include={"recipe", "schedule", "seed"})
        params["replicates"] = replicates
        self._recorder.record(TrialStarted(key=self._key, name=name, params=params, **facts))

    def reported(self, report: Report, *, replicate: int = 0) -> dict[str, float]:
        """It, or a further replicate of it, was evaluated; returns the metrics without the LR."""
        metrics = dict(report.metrics)
        lr = metrics.pop("lr")
        self._recorder.record(
            TrialReported(
                key=self._key, step=report.step, lr=lr, metrics=metrics, replicate=replicate
            )
        )
        return metrics

    def finished(self, ending: Ending, **counts: float) -> None:
        """It came to its end. ``counts`` become metrics of their names."""
        self._recorder.record(
            TrialFinished(
                key=self._key,
                state=ending.end,
                metrics={f"final_{name}": value for name, value in ending.metrics.items()} | counts,
                reason=ending.reason,
            )
        )
