"""What searches at several horizons say together: how the best setting moves with the budget.

Schaipp et al. (2025) and Bergsma et al. (2025) find that the best LR falls with the horizon; how
fast is a question of the task, and one random seed does not answer it.
"""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from pydantic import Field

from knee_tune.config.recipe import Direction, Spec
from knee_tune.config.study import Edge, edges
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Estimate
from knee_tune.stats.estimates import mean_estimate

FEWEST = 3
"""Horizons, and random seeds, that a power law is told from."""


class Horizon(Spec):
    """A search at one budget, and the best it found. Estimates are over its random seeds."""

    study: str
    budget: str = Field(description="with its unit, as in 10ep")
    total_steps: int
    seed_lr: float = Field(description="of the best trial")
    explore_fraction: float
    value: Estimate = Field(description="the metric of the best trial")
    best_lr: Estimate = Field(description="the seed LR that is best for each seed, by ratio")
    best_decay: Estimate = Field(description="share of the steps that decay, of the same trials")
    best_lrs: dict[int, float] = Field(description="by random seed")
    lr_step: float = Field(
        description="ratio of neighbouring seed LRs of the search space, at most"
    )
    edge: Edge | None = Field(
        description="where the best seed LR is an end of the search space; a better may lie beyond"
    )
    trained: int = Field(description="steps, over all attempts")
    independent: int = Field(description="steps of the same trials, each trained alone")


class Horizons(Spec):
    """Searches at several budgets of one recipe, ascending."""

    metric: str
    direction: Direction
    horizons: tuple[Horizon, ...]
    exponent: Estimate | None = Field(
        description="of the power law, best seed LR by total steps, over random seeds; None from "
        f"fewer than {FEWEST} horizons or seeds"
    )

    @property
    def one_lr(self) -> bool:
        """Whether the search space has a single seed LR, so that nothing is asked of it."""
        return all(each.lr_step == 1 for each in self.horizons)

    @property
    def resolved(self) -> bool:
        """Whether the seeds agree that the best seed LR moves with the horizon."""
        return self.exponent is not None and self.exponent.side != 0

    def lr_at(self, total_steps: int) -> float | None:
        """The best seed LR that the power law gives for another budget; None if it is none."""
        if not self.resolved:
            return None
        assert self.exponent is not None, "it is resolved"
        logs = [
            (math.log(each.total_steps), math.log(each.best_lr.value)) for each in self.horizons
        ]
        steps, lrs = (statistics.fmean(column) for column in zip(*logs, strict=True))
        return math.exp(lrs + self.exponent.value * (math.log(total_steps) - steps))


def horizons_of(records: Sequence[StudyRecord], budgets: Sequence[str]) -> Horizons | None:
    """What the searches say together, each with its budget; those without a complete trial nothing.

    None if none of them has one.
    """
    found = [
        _horizon(record, budget)
        for record, budget in zip(records, budgets, strict=True)
        if record.best is not None
    ]
    if not found:
        return None
    return Horizons(
        metric=records[0].metric,
        direction=records[0].direction,
        horizons=tuple(found),
        exponent=_exponent(found),
    )


def _horizon(record: StudyRecord, budget: str) -> Horizon:
    best, steps = record.best, record.steps
    assert best is not None, "the caller has looked"
    total = best.budget // max(1, len(best.replicates))
    warmup = record.spec.recipe["warmup_steps"] / total
    winners = _best_of_seeds(record)
    decays = [max(0.0, 1 - each.explore_fraction - warmup) for each in winners.values()]
    return Horizon(
        study=record.name,
        budget=budget,
        total_steps=total,
        seed_lr=best.seed_lr,
        explore_fraction=best.explore_fraction,
        value=mean_estimate(_values(best)).bounded(percent=record.in_percent(record.metric)),
        best_lr=_by_ratio([each.seed_lr for each in winners.values()]),
        best_decay=_share(mean_estimate(decays)),
        best_lrs={seed: each.seed_lr for seed, each in winners.items()},
        lr_step=max((right / left for left, right in pairwise(record.spec.seed_lrs)), default=1.0),
        edge=next(
            (
                edge
                for edge in edges(
                    record.spec, seed_lr=best.seed_lr, explore_fraction=best.explore_fraction
                )
                if edge.what.endswith("seed LR")
            ),
            None,
        ),
        trained=steps.trained,
        independent=steps.independent,
    )


def _values(trial: TrialRecord) -> list[float]:
    values = [each.value for each in trial.replicates if each.value is not None]
    return values or [trial.value or math.nan]


def _best_of_seeds(record: StudyRecord) -> dict[int, TrialRecord]:
    """For every random seed the complete trial that is best with it."""
    sign = 1 if record.direction == "minimize" else -1
    found: dict[int, tuple[float, TrialRecord]] = {}
    for trial in record.ranked:
        for each in trial.replicates:
            if each.value is None:
                continue
            loss = sign * each.value
            if each.seed not in found or loss < found[each.seed][0]:
                found[each.seed] = (loss, trial)
    return {seed: trial for seed, (_, trial) in sorted(found.items())}


def _share(estimate: Estimate) -> Estimate:
    """With an interval that ends at 0 and at 1."""
    if estimate.low is None or estimate.high is None:
        return estimate
    ends = {"low": max(0.0, estimate.low), "high": min(1.0, estimate.high)}
    return estimate.model_copy(update=ends)


def _by_ratio(values: Sequence[float]) -> Estimate:
    """The geometric mean with its interval."""
    logs = mean_estimate([math.log(value) for value in values])
    ends = {
        name: None if end is None else math.exp(end)
        for name, end in {"low": logs.low, "high": logs.high}.items()
    }
    return Estimate(value=math.exp(logs.value), level=logs.level, **ends)


def _exponent(horizons: Sequence[Horizon]) -> Estimate | None:
    """Slopes of log best LR by log steps, one for every random seed that all horizons have.

    Seeds that agree on a point of the grid know it to half a step. So the interval is wider by what
    half a step at both ends makes of the slope: a move by one step may be none.
    """
    seeds = set[int].intersection(*({*each.best_lrs} for each in horizons))
    one_lr = all(each.lr_step == 1 for each in horizons)
    if one_lr or len(horizons) < FEWEST or len(seeds) < FEWEST:
        return None
    steps = [math.log(each.total_steps) for each in horizons]
    slopes = [
        statistics.linear_regression(
            steps, [math.log(each.best_lrs[seed]) for each in horizons]
        ).slope
        for seed in sorted(seeds)
    ]
    found = mean_estimate(slopes)
    assert found.low is not None, "there are seeds enough"
    assert found.high is not None
    one_step = math.log(max(each.lr_step for each in horizons)) / (steps[-1] - steps[0])
    grid = one_step * (1 + 1e-9)  # rounding must not make a move of it
    return found.model_copy(update={"low": found.low - grid, "high": found.high + grid})
