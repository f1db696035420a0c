"""What training a study's best points again, with fresh random seeds, has shown."""

from typing import Literal, Self

from pydantic import Field

from knee_tune.specs.base import Spec
from knee_tune.specs.estimate import Estimate
from knee_tune.specs.recipe import Direction
from knee_tune.specs.steps import StepCount

Confirmed = Literal["yes", "no", "not tried"]
"""Whether fresh seeds have confirmed a point."""

CLAIMING_SEEDS = 5
"""Seeds from which on a difference may be claimed (design rule; fewer are good for a look)."""


class FreshRun(Spec):
    """One run of a candidate, with a random seed that the search did not use."""

    seed: int
    value: float | None = Field(description="the study's metric; None: failed or diverged")
    reason: str = Field(default="", description="why there is no value")
    failed: bool = Field(default=False, description="it has not diverged: it may be tried again")
    steps: StepCount = StepCount()


class Candidate(Spec):
    """A point that was trained again."""

    seed_lr: float
    explore_fraction: float
    trial: int | None = Field(description="its complete trial in the search; None: it has none")
    default: bool = Field(description="whether it is the paper's default")
    runs: tuple[FreshRun, ...] = ()
    mean: Estimate | None = Field(
        default=None, description="over the seeds; None: a run has no value"
    )
    difference: Estimate | None = Field(
        default=None, description="to the paper's default, seed by seed; None: nothing to compare"
    )

    @property
    def values(self) -> tuple[float, ...]:
        """The values there are, in the order of the seeds."""
        return tuple(run.value for run in self.runs if run.value is not None)

    @property
    def point(self) -> tuple[float, float]:
        """Seed LR and explore fraction."""
        return self.seed_lr, self.explore_fraction


class Confirmation(Spec):
    """The winner over fresh seeds, and whether it is better than the paper's default."""

    metric: str
    direction: Direction
    candidates: tuple[Candidate, ...] = Field(
        description="as the search ranked them; the default last unless it is among the best"
    )
    comparisons: int = Field(ge=0, description="differences that are judged together")
    winner: int | None = Field(description="index of the best mean; None: no candidate has one")
    confirmed: bool
    words: str = Field(description="the verdict in one line")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The random seeds that every candidate was trained with."""
        return tuple(run.seed for run in self.candidates[0].runs)

    @property
    def steps(self) -> StepCount:
        """What all of it cost."""
        runs = (run for candidate in self.candidates for run in candidate.runs)
        return sum((run.steps for run in runs), StepCount())

    @property
    def failed(self) -> int:
        """Runs that failed."""
        return sum(run.failed for candidate in self.candidates for run in candidate.runs)

    @property
    def best(self) -> Candidate | None:
        """The candidate with the best mean."""
        return None if self.winner is None else self.candidates[self.winner]

    def bounded(self, *, percent: bool) -> Self:
        """Itself, the intervals of its means within what a metric in ``percent`` can be."""
        candidates = (
            each.model_copy(update={"mean": each.mean and each.mean.bounded(percent=percent)})
            for each in self.candidates
        )
        return self.model_copy(update={"candidates": tuple(candidates)})

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that it has confirmed."""
        return self.best if self.confirmed else None

    def says(self, point: tuple[float, float]) -> Confirmed:
        """What it has found out about a point (seed LR, explore fraction)."""
        if all(candidate.point != point for candidate in self.candidates):
            return "not tried"
        return "yes" if self.chosen and self.chosen.point == point else "no"
