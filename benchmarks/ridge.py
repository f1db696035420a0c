"""How well the ridge's statistics do on surfaces whose optimum is known.

    python -m benchmarks.ridge [--surfaces 40] [--nulls 500]

Recovery: random surfaces with an inverse relation (9 seed LRs x 11 fractions), by the number of
random seeds: root mean square error of the recovered fraction, and how often the nominal 95 %
intervals hold the true one. False positives: how often surfaces without an inverse relation show
one, by the crossover test (p < 0.05), and by Spearman's rank correlation of the seed LR and the
optimum of the cubic surface, with SciPy's p-value: what looks natural, and is not evidence.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.ridge_surfaces import (
    SEED_LRS,
    Truth,
    always_long,
    fading,
    flat,
    inverse_relation,
    same_everywhere,
)
from knee_tune.stats.ridge import crossover_of, optima_of, recommendation_of
from knee_tune.stats.surface import Scores, cubic_smoother

ESTIMATORS = ("raw", "gp", "cubic")
SEEDS = (1, 3, 5, 10)
NULLS: tuple[Callable[[], Truth], ...] = (flat, same_everywhere, always_long, fading)
NOMINAL = 0.05


class Recovery:
    """Errors and coverage over surfaces with one number of seeds."""

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = defaultdict(list)
        self.covered: dict[str, list[bool]] = defaultdict(list)
        self.found: list[bool] = []
        """By the crossover test."""
        self.expected: list[bool] = []
        """Whether the recommendation's interval holds the true mean of its point."""

    def add(self, truth: Truth, scores: Scores, *, resamples: int) -> None:
        """Estimate one surface."""
        optima = optima_of(scores, resamples=resamples, rng=np.random.default_rng(0))
        for optimum, best in zip(optima.by_seed_lr, truth.optima, strict=True):
            for name in ESTIMATORS:
                estimate = getattr(optimum, name)
                self.errors[name].append(estimate.value - best)
                if estimate.low is not None:
                    self.covered[name].append(estimate.low <= best <= estimate.high)
        crossover = crossover_of(scores)
        if crossover is None:
            return
        self.found.append(crossover.p < NOMINAL)
        row, column = np.unravel_index(np.nanargmax(scores.means), scores.means.shape)
        best = (float(scores.seed_lrs[row]), float(scores.fractions[column]))
        chosen = recommendation_of(scores, best=best, default_lr=float(SEED_LRS[0]))
        low, high = chosen.expected.low, chosen.expected.high
        if low is not None and high is not None:
            self.expected.append(bool(low <= truth.accuracies[row, column] <= high))

    def rmse(self, name: str) -> float:
        """Root mean square error of the fraction."""
        return float(np.sqrt(np.mean(np.square(self.errors[name]))))

    def coverage(self, name: str) -> float:
        """Share of the intervals that hold the true fraction; NaN with one seed."""
        return float(np.mean(self.covered[name])) if self.covered[name] else float("nan")


def recover(seeds: int, *, surfaces: int, resamples: int = 500) -> Recovery:
    """Random surfaces with an inverse relation; the same ones for every number of seeds."""
    recovery = Recovery()
    for number in range(surfaces):
        truth = inverse_relation(np.random.default_rng(number))
        recovery.add(
            truth,
            truth.scores(seeds, np.random.default_rng([number, seeds])),
            resamples=resamples,
        )
    return recovery


def false_positives(null: Callable[[], Truth], seeds: int, *, studies: int) -> tuple[float, float]:
    """Shares of studies with an inverse relation by the crossover test, and by Spearman."""
    crossed, correlated = [], []
    for number in range(studies):
        scores = null().scores(seeds, np.random.default_rng([number, seeds]))
        crossover, smoother = crossover_of(scores), cubic_smoother(scores)
        if crossover is None or smoother is None:
            raise RuntimeError("a full grid with two seeds has a crossover test and a cubic")
        optima = smoother.optima(scores.means[scores.tried])
        crossed.append(crossover.p < NOMINAL)
        correlated.append(
            bool(np.ptp(optima))
            and spearmanr(scores.seed_lrs, optima, alternative="less").pvalue < NOMINAL
        )
    return float(np.mean(crossed)), float(np.mean(correlated))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--surfaces", type=int, default=40, help="by number of seeds")
    parser.add_argument("--nulls", type=int, default=500, help="studies without a relation")
    options = parser.parse_args()
    console = Console()
    table = Table(title=f"recovered fraction: RMSE (coverage), {options.surfaces} surfaces")
    for name in ("seeds", *ESTIMATORS, "crossover finds it", "expected metric", "s a study"):
        table.add_column(name, justify="right")
    for seeds in SEEDS:
        started = time.perf_counter()
        found = recover(seeds, surfaces=options.surfaces)
        seconds = (time.perf_counter() - started) / options.surfaces
        table.add_row(
            str(seeds),
            *(f"{found.rmse(name):.3f} ({found.coverage(name):.1%})" for name in ESTIMATORS),
            f"{np.mean(found.found):.0%}" if found.found else "",
            f"{np.mean(found.expected):.0%}" if found.expected else "",
            f"{seconds:.2f}",
        )
    console.print(table)
    table = Table(title=f"false positives, crossover / Spearman, {options.nulls} studies")
    table.add_column("surface")
    for seeds in SEEDS[1:]:
        table.add_column(f"{seeds} seeds", justify="right")
    for null in NULLS:
        rates = [false_positives(null, seeds, studies=options.nulls) for seeds in SEEDS[1:]]
        table.add_row(null.__name__, *(f"{ours:.1%} / {theirs:.1%}" for ours, theirs in rates))
    console.print(table)


if __name__ == "__main__":
    main()
