"""What findings are made of: an estimate over random seeds; runs, their ends and their cost."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import AliasChoices, Field

from knee_tune.config.recipe import Direction, Spec
from knee_tune.schedules import Decay

Point = tuple[float, float] | tuple[float, float, Decay]
"""Of a search space: seed LR and explore fraction, and the decay where several are searched."""


def point_of(seed_lr: float, explore_fraction: float, decay: Decay | None) -> Point:
    """The point of these parameters."""
    return (seed_lr, explore_fraction) if decay is None else (seed_lr, explore_fraction, decay)


class Estimate(Spec):
    """A number and its interval over random seeds (without one: fewer than two seeds).

    Of a mean it is Student's t interval, of anything else a bootstrap that resamples seeds.
    """

    # Confirmations that were stored earlier have a ``mean``.
    value: float = Field(validation_alias=AliasChoices("value", "mean"))
    low: float | None = None
    high: float | None = None
    level: float = Field(
        default=0.95, gt=0, lt=1, description="probability that the interval holds the true number"
    )

    def bounded(self, *, percent: bool) -> Self:
        """Itself; of a metric in ``percent`` the interval ends at 0 and at 100."""
        if not percent or self.low is None or self.high is None:
            return self
        return self.model_copy(update={"low": max(0.0, self.low), "high": min(100.0, self.high)})

    @property
    def side(self) -> int:
        """1 where all of the interval is above zero, -1 where it is below; 0: it may be chance."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)

    def is_better(self, direction: Direction) -> bool:
        """Whether, as a difference, all of it is on the better side of zero."""
        return self.side == (-1 if direction == "minimize" else 1)


class RunEnd(StrEnum):
    """How a training run ended, from the driver to MLflow.

    Each border has its own words for it, in one table: ranks, records and screens
    (``study/events.py``), Optuna (``study/study.py``), the outbox (``records/events.py``), MLflow
    (``tracking/runs.py``). To all of them a run that diverged is a pruned one: a normal outcome of
    a search, not a crash.
    """

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"


class StepCount(Spec):
    """What one or several runs cost, counted over all attempts.

    Without crashes ``trained + reused`` is ``reached``; steps that an attempt lost and another
    trained again count twice in ``trained``.
    """

    trained: int = Field(default=0, ge=0, description="by this trial itself")
    reused: int = Field(default=0, ge=0, description="from a trunk, or from a run's record")
    reached: int = Field(default=0, ge=0, description="the last step whose state is known")

    def after(self, *, first: int, last: int) -> Self:
        """With another attempt of the same run, which started from ``first`` and got to ``last``.

        What it did not have to train although no attempt before had reached it was reused.
        """
        return self.model_copy(
            update={
                "trained": self.trained + last - first,
                "reused": self.reused + max(0, first - self.reached),
                "reached": max(last, self.reached),
            }
        )

    def of_replica(self, *, first: int, last: int) -> Self:
        """What one replica of a fused run of this count cost, whose last step was ``last``.

        Up to the step ``first`` another replica was trained for it as well. What the run lost and
        trained again, every replica did.
        """
        reused = min(max(self.reused, first), last)
        lost = max(0, self.trained + self.reused - self.reached)
        return self.model_copy(
            update={"trained": last - reused + lost, "reused": reused, "reached": last}
        )

    def __add__(self, other: Self) -> Self:
        """Of two different runs together."""
        return self.model_copy(
            update={
                "trained": self.trained + other.trained,
                "reused": self.reused + other.reused,
                "reached": self.reached + other.reached,
            }
        )


RunState = Literal["complete", "pruned", "failed", "running", "waiting"]


class Evaluation(Spec):
    """The metrics on the validation split after one step."""

    step: int = Field(ge=0)
    metrics: dict[str, float]


class RunRecord(Spec):
    """One training run with one random seed, whatever it was for, and what became of it.

    It is a replicate of a trial, or lies outside the search; each kind is kept in its own form.
    """

    seed: int
    state: RunState = "waiting"
    reason: str = Field(default="", description="why it was pruned or failed, one line")
    value: float | None = Field(default=None, description="the study's metric, if complete")
    metrics: dict[str, float] = Field(
        default_factory=dict, description="of the final evaluation, named as in valid_ppl"
    )
    curve: tuple[Evaluation, ...] = Field(default=(), description="ascending in the step")
    steps: StepCount = StepCount()
    budget: int = Field(default=0, ge=0, description="steps of its schedule; 0: unknown")
    answered: bool = Field(default=False, description="by the record of the same run")
    started: float | None = Field(default=None, description="seconds since 1970, UTC")
    seconds: float | None = Field(default=None, ge=0, description="from start to end")
    checkpoint: str | None = None
    code: str = Field(default="", description="fingerprint of what trained it; empty: not noted")
