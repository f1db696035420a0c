"""The audit of a study's pruning: pruned trials trained to their end, and what that says."""

import hashlib
import math
import statistics
from collections.abc import Iterable, Sequence

from pydantic import Field

from knee_tune.specs.base import Spec
from knee_tune.specs.recipe import Direction
from knee_tune.specs.steps import StepCount

TOP = 3
"""Places that people look at when they choose among trials by hand."""

CONFIDENCE = 0.95


class AuditedTrial(Spec):
    """A pruned trial that was trained to its end. The trial itself stays as it is."""

    number: int = Field(ge=0)
    values: tuple[float | None, ...] = Field(
        min_length=1, description="one per replicate; None: it diverged after all"
    )
    steps: StepCount = Field(default=StepCount(), description="what finishing it cost")

    @property
    def value(self) -> float | None:
        """What it would have been told as: the mean over its replicates, None if one diverged."""
        finite = [value for value in self.values if value is not None]
        return statistics.fmean(finite) if len(finite) == len(self.values) else None


class Verdict(Spec):
    """What the pruning of one audited trial comes to, beside the study's complete trials."""

    number: int
    value: float | None
    rank: int | None = Field(description="1: it would have been the best; None: it diverged")
    wrong: bool = Field(description="better than every complete trial")
    top: bool = Field(description=f"would have been among the best {TOP}")
    top_quarter: bool = Field(description="would have been in the best quarter")


class Rate(Spec):
    """A share of the audited trials, with its 95 % interval (Wilson)."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.count / self.of

    @property
    def words(self) -> str:
        """``1 of 3 (33%, 95% interval 6% to 79%)``."""
        return (
            f"{self.count} of {self.of} ({self.share:.0%}, 95% interval {self.low:.0%} to "
            f"{self.high:.0%})"
        )


class AuditReport(Spec):
    """What an audit found out about a study as it is now."""

    verdicts: tuple[Verdict, ...]
    pruned: int = Field(description="trials of the study that were pruned, not diverged")
    wrong: Rate
    top: Rate
    top_quarter: Rate
    steps_trained: int = Field(description="what the audit cost")
    steps_saved: int = Field(description="what pruning saved in the whole study")


class Audit(Spec):
    """The audited trials of a study, in the order of their numbers."""

    trials: tuple[AuditedTrial, ...] = ()

    @property
    def steps(self) -> StepCount:
        """What finishing all of them cost."""
        return sum((trial.steps for trial in self.trials), StepCount())

    def report(
        self, complete: Sequence[float], *, direction: Direction, pruned: int, steps_saved: int
    ) -> AuditReport:
        """The audit beside ``complete``, the values of the study's complete trials.

        ValueError if nothing was audited.
        """
        verdicts = tuple(
            verdict(trial.number, trial.value, complete, direction=direction)
            for trial in self.trials
        )
        return AuditReport(
            verdicts=verdicts,
            pruned=pruned,
            wrong=_rate(each.wrong for each in verdicts),
            top=_rate(each.top for each in verdicts),
            top_quarter=_rate(each.top_quarter for each in verdicts),
            steps_trained=self.steps.trained,
            steps_saved=steps_saved,
        )


def verdict(
    number: int, value: float | None, complete: Sequence[float], *, direction: Direction
) -> Verdict:
    """Where ``value`` would stand among ``complete`` values and itself; equals do not push it down.

    The prune was wrong only if it is better than all of them: equal to the best loses nothing.
    """
    if value is None:
        return Verdict(
            number=number, value=None, rank=None, wrong=False, top=False, top_quarter=False
        )
    sign = 1 if direction == "minimize" else -1
    rank = 1 + sum(sign * other < sign * value for other in complete)
    return Verdict(
        number=number,
        value=value,
        rank=rank,
        wrong=all(sign * value < sign * other for other in complete),
        top=rank <= TOP,
        top_quarter=rank <= math.ceil((len(complete) + 1) / 4),
    )


def choose(
    candidates: Iterable[int], *, audited: Iterable[int], finish: int, seed: int
) -> list[int]:
    """The pruned trials to finish so that ``finish`` of them are audited, ``audited`` counted.

    Random, but the order of ``seed`` is the same at every call: three now and two more later are
    the five that one call would have chosen. Fewer than asked if there are no more.
    """
    done = set(audited)

    def place(number: int) -> str:
        return hashlib.sha256(f"{seed}:{number}".encode()).hexdigest()

    left = sorted(set(candidates) - done, key=place)
    return left[: max(0, finish - len(done))]


def wilson_interval(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score method; sound for few trials and for 0 or all.

    ValueError unless ``0 <= count <= of`` and ``of > 0``.
    """
    if not 0 <= count <= of or of < 1:
        raise ValueError(f"{count} of {of} is no share")
    from scipy.stats import binomtest

    interval = binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _rate(hits: Iterable[bool]) -> Rate:
    found = list(hits)
    low, high = wilson_interval(sum(found), len(found))
    return Rate(count=sum(found), of=len(found), low=low, high=high)
