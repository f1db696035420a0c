"""The ridge of a study: the best explore fraction at every seed LR, and how sure that is."""

from typing import Literal

from pydantic import Field

from knee_tune.specs.base import Spec
from knee_tune.specs.estimate import Estimate
from knee_tune.specs.recipe import Direction

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

    def cell(self, point: tuple[float, float]) -> tuple[int, int] | None:
        """Row and column of a point (seed LR, explore fraction); None without a mean there."""
        seed_lr, fraction = point
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


class Recommendation(Spec):
    """The search's best setting, and what to expect of it."""

    seed_lr: float
    explore_fraction: float
    expected: Estimate = Field(
        description="mean of its metric over new random seeds: leave-one-seed-out, not the best one"
    )
    default: Estimate | None = Field(
        default=None, description="the paper's default, the recipe's own seed LR with 50 % explore"
    )
    difference: Estimate | None = Field(
        default=None, description="to the default, seed by seed, leave-one-seed-out"
    )


class Ridge(Spec):
    """What a study says about seed LR and explore fraction together."""

    surface: Surface
    optimal: tuple[Optimum, ...]
    spearman: Estimate | None = Field(
        description="rank correlation of seed LR and raw optimum: description, not evidence"
    )
    crossover: Crossover | None = Field(description="the evidence; None: too few points or seeds")
    verdict: Verdict
    words: str = Field(description="the verdict, in a sentence or two for a practitioner")
    recommended: Recommendation | None
