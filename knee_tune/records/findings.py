"""What training a study's best points again, with fresh random seeds, has shown."""

import hashlib
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer

from knee_tune.config.recipe import Direction, SearchedDecay, Spec
from knee_tune.records.shown import setting
from knee_tune.records.values import Estimate, Point, RunRecord, StepCount, point_of

Confirmed = Literal["yes", "no", "not tried"]
"""Whether fresh seeds have confirmed a point."""

CLAIMING_SEEDS = 5
"""Seeds from which on a difference may be claimed (design rule; fewer are good for a look)."""


FEWEST_PAIRS = 3
"""In a race: below them nothing is said of a difference, as its interval would mean nothing."""


class AtPoint(Spec):
    """A point of the search space; its subclasses say what there is at it."""

    seed_lr: float
    explore_fraction: float
    decay: SearchedDecay = None

    @property
    def point(self) -> Point:
        """Its place in the search space."""
        return point_of(self.seed_lr, self.explore_fraction, self.decay)

    @property
    def coordinates(self) -> dict[str, Any]:
        """The point's values by their names."""
        return {name: getattr(self, name) for name in AtPoint.model_fields}

    @property
    def setting(self) -> str:
        """``seed LR 0.05, explore 50%``."""
        return setting(*self.point)


def _kept(run: RunRecord) -> dict[str, Any]:
    kept = run.model_dump(mode="json", include={"seed", "value", "reason"})
    # Without the step that it reached, which confirmations never had.
    steps = StepCount(trained=run.steps.trained, reused=run.steps.reused)
    return kept | {"failed": run.state == "failed", "steps": steps.model_dump()}


def _from_kept(run: Any) -> Any:
    if not isinstance(run, dict) or "failed" not in run:
        return run
    ended = "pruned" if run.get("value") is None else "complete"
    fields = {name: value for name, value in run.items() if name != "failed"}
    return fields | {"state": "failed" if run["failed"] else ended}


FreshRun = Annotated[RunRecord, BeforeValidator(_from_kept), PlainSerializer(_kept)]
"""A run of a candidate, with a random seed that the search did not use. Of its state is kept
whether it has failed, so that it may be tried again."""


class Candidate(AtPoint):
    """A point that was trained again."""

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


class Race(Spec):
    """How a race went, whose candidates leave once they are behind."""

    runner_up: int | None = Field(
        description="index of the next best candidate; None: there is none"
    )
    lead: Estimate | None = Field(
        description="the winner's value minus the runner-up's, seed by seed; None: too few pairs"
    )
    ended: str = Field(description="why, in words; empty as long as it goes on")
    words: str = Field(default="", description="who won, and by how much, in one line")


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
    words: str = Field(default="", description="the verdict in one line")
    race: Race | None = Field(
        default=None,
        exclude_if=lambda race: race is None,
        description="None: every candidate was trained with every seed",
    )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The random seeds that the winner was trained with; others may have left a race before."""
        longest = max(self.candidates, key=lambda candidate: len(candidate.runs))
        return tuple(run.seed for run in longest.runs)

    @property
    def steps(self) -> StepCount:
        """What all of it cost."""
        runs = (run for candidate in self.candidates for run in candidate.runs)
        return sum((run.steps for run in runs), StepCount())

    @property
    def failed(self) -> int:
        """Runs that failed."""
        return sum(run.state == "failed" for candidate in self.candidates for run in candidate.runs)

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
        """The candidate to use: the one that it has confirmed, and in any case who wins a race."""
        return self.best if self.confirmed or self.race is not None else None

    def says(self, point: Point) -> Confirmed:
        """What it has found out about a point."""
        if all(candidate.point != point for candidate in self.candidates):
            return "not tried"
        return "yes" if self.confirmed and self.best and self.best.point == point else "no"


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


class PruningVerdict(Spec):
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

    verdicts: tuple[PruningVerdict, ...]
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
) -> PruningVerdict:
    """Where ``value`` would stand among ``complete`` values and itself; equals do not push it down.

    The prune was wrong only if it is better than all of them: equal to the best loses nothing.
    """
    if value is None:
        return PruningVerdict(
            number=number, value=None, rank=None, wrong=False, top=False, top_quarter=False
        )
    sign = 1 if direction == "minimize" else -1
    rank = 1 + sum(sign * other < sign * value for other in complete)
    return PruningVerdict(
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


Verdict = Literal["inverse relation", "no inverse relation", "undecided"]
"""Whether the best explore fraction falls as the seed LR rises (the paper's Table 16)."""


class Surface(Spec):
    """The study's metric over seed LR x explore fraction, means over random seeds.

    Rows are seed LRs, columns explore fractions, both ascending; None where nothing is complete.
    """

    metric: str = Field(description="with its split, as in valid_accuracy")
    direction: Direction
    seed_lrs: tuple[float, ...]
    explore_fractions: tuple[float, ...]
    means: tuple[tuple[float | None, ...], ...]
    errors: tuple[tuple[float | None, ...], ...] = Field(
        description="standard errors of the means; None with fewer than two seeds"
    )
    seeds: int = Field(description="random seeds that every complete point has")
    decay: SearchedDecay = None

    def cell(self, point: Point) -> tuple[int, int] | None:
        """Row and column of a point; None without a mean there."""
        seed_lr, fraction = point[0], point[1]
        if point != point_of(seed_lr, fraction, self.decay):
            return None  # of another decay
        if seed_lr not in self.seed_lrs or fraction not in self.explore_fractions:
            return None
        row, column = self.seed_lrs.index(seed_lr), self.explore_fractions.index(fraction)
        return None if self.means[row][column] is None else (row, column)


class Optimum(Spec):
    """The best explore fraction at one seed LR, found three ways; None where one cannot be."""

    seed_lr: float
    raw: Estimate | None = Field(description="of the mean over seeds, the best fraction tried")
    gp: Estimate | None = Field(description="of a Gaussian process fitted to the surface")
    cubic: Estimate | None = Field(description="of a cubic surface in log seed LR and fraction")
    metric: Estimate | None = Field(description="the mean metric at the raw optimum")


class Crossover(Spec):
    """The crossover test: per random seed, long exploring (fractions .6 to .9) minus short (<= .3).

    ``low_lrs`` and ``high_lrs`` are that difference, in units in which larger is better, at the
    lowest and the highest third of the seed LRs. Two one-sided t-tests over seeds; p is the larger.
    """

    p: float
    lowest: tuple[float, ...] = Field(description="the lowest third of the seed LRs compared")
    highest: tuple[float, ...] = Field(description="the highest third of them")
    low_lrs: Estimate
    high_lrs: Estimate

    @property
    def opposed(self) -> bool:
        """Whether the seeds show the opposite of an inverse relation at one end."""
        return self.low_lrs.side < 0 or self.high_lrs.side > 0


class Recommendation(AtPoint):
    """The setting to use. Its numbers are means of ``metric``, over random seeds to come."""

    metric: str = Field(description="with its split, as in valid_accuracy")
    expected: Estimate = Field(
        description="over fresh seeds, or leave-one-seed-out: not the best mean itself"
    )
    default: Estimate | None = Field(
        default=None, description="the paper's default, the recipe's own seed LR with 50 % explore"
    )
    difference: Estimate | None = Field(
        default=None, description="to the default, seed by seed, with its sign as measured"
    )
    confirmed: Confirmed = Field(default="not tried", description="by fresh seeds")
    evidence: str = Field(default="", description="where the numbers come from, in words")


class Ridge(Spec):
    """What a study says about seed LR and explore fraction together."""

    surface: Surface
    optimal: tuple[Optimum, ...]
    spearman: Estimate | None = Field(
        description="rank correlation of seed LR and raw optimum: description, not evidence"
    )
    crossover: Crossover | None = Field(description="the evidence; None: too few points or seeds")
    verdict: Verdict
    recommended: Recommendation | None


class Importances(Spec):
    """Shares of importance, which add up to 1. Evaluators disagree, so the one used is named."""

    evaluator: str = Field(description="as in fANOVA")
    measures: str = Field(description="what a share is a share of, in words")
    values: dict[str, float] = Field(description="by hyperparameter, the largest first")
    dashboard: dict[str, float] = Field(
        default_factory=dict,
        description="the same of PED-ANOVA, the evaluator of Optuna Dashboard's own chart",
    )
    trials: int = Field(description="complete trials that it is computed from")
