"""Searches replayed on a table of learning curves: real samplers and pruners, nothing trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from benchmarks.curve_tables import CurveTable, Floats
from knee_tune.config.recipe import Direction
from knee_tune.pruners import KneePruner

Layout = Literal["behind", "abreast"]
"""Replicates train behind each other (what is told of one is the mean up to it, as knee-tune does
it), or abreast (only their mean is told, at each step)."""

DIRECTIONS: Mapping[str, Direction] = {
    "loss": "minimize",
    "ppl": "minimize",
    "accuracy": "maximize",
}


@dataclass(frozen=True, kw_only=True)
class View:
    """What a search sees of a table: one metric, of the random seeds that are its replicates."""

    table: CurveTable
    metric: str
    seeds: tuple[int, ...]
    """Indices into the table's random seeds; more than one are a trial's replicates."""
    layout: Layout = "behind"

    @property
    def budget(self) -> int:
        """Steps of a whole trial, all its replicates."""
        return len(self.seeds) * self.table.total_steps

    @cached_property
    def means(self) -> Floats:
        """Over the first 1, 2, .. replicates: (replicates, seed LR, fraction, evaluation)."""
        curves = self.table.curves[self.metric][list(self.seeds)]
        counts = np.arange(1, len(self.seeds) + 1).reshape(-1, 1, 1, 1)
        means: Floats = curves.cumsum(axis=0) / counts
        return means

    def reports(self, lr: int, fraction: int) -> list[tuple[int, float, int]]:
        """What a trial tells: step, value, and the steps trained until then."""
        steps, total = self.table.steps, self.table.total_steps
        if self.layout == "abreast":
            values = self.means[-1, lr, fraction].tolist()
            return [
                (step, value, step * len(self.seeds))
                for step, value in zip(steps, values, strict=True)
            ]
        return [
            (replicate * total + step, value, replicate * total + step)
            for replicate, values in enumerate(self.means[:, lr, fraction].tolist())
            for step, value in zip(steps, values, strict=True)
        ]

    @cached_property
    def losses(self) -> Floats:
        """Final values, shape (seed LR, fraction), signed so that lower is better."""
        return self._signed(self.means[-1, ..., -1])

    @cached_property
    def true_losses(self) -> Floats:
        """The same as the mean over all random seeds of the table."""
        return self._signed(self.table.curves[self.metric].mean(axis=0)[..., -1])

    def _signed(self, values: Floats) -> Floats:
        signed = values if DIRECTIONS[self.metric] == "minimize" else -values
        return np.where(np.isnan(signed), np.inf, signed)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One trial of a replay: which point, and how far it was trained."""

    lr: int
    fraction: int
    steps: int
    complete: bool

    @property
    def point(self) -> tuple[int, int]:
        """Index of its seed LR and of its fraction."""
        return self.lr, self.fraction


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A search that was replayed."""

    view: View
    trials: tuple[Asked, ...]

    @property
    def share(self) -> float:
        """Steps trained, of those of the same trials unpruned, no trunk being shared."""
        return float(self.trained.sum()) / (len(self.trials) * self.view.budget)

    @property
    def share_on_trunks(self) -> float:
        """The same, when trunks are shared: still of the steps of unpruned independent trials."""
        return float(self.trained_on_trunks.sum()) / (len(self.trials) * self.view.budget)

    @cached_property
    def trained(self) -> Floats:
        """Steps of each trial, no trunk being shared."""
        return np.array([float(trial.steps) for trial in self.trials])

    @cached_property
    def trained_on_trunks(self) -> Floats:
        """Steps of each trial when every trunk is kept, with a checkpoint at every fraction's knee.

        A point that was trained before costs nothing more than it then went.
        """
        table = self.view.table
        replicates = range(len(self.view.seeds))
        longest: dict[tuple[int, int], int] = {}
        done: dict[tuple[int, int, int], int] = {}
        trained = []
        for trial in self.trials:
            cost = 0
            knee = table.schedules[trial.lr][trial.fraction].knee_step
            for replicate in replicates:
                end = self._end(trial, replicate)
                trunk, run = (trial.lr, replicate), (*trial.point, replicate)
                start = max(min(knee, longest.get(trunk, 0)), done.get(run, 0))
                cost += max(0, end - start)
                leaves = [s.knee_step for s in table.schedules[trial.lr] if s.knee_step <= knee]
                reached = max((step for step in leaves if step <= end), default=0)
                longest[trunk] = max(longest.get(trunk, 0), reached)
                done[run] = max(done.get(run, 0), end)
            trained.append(cost)
        return np.array(trained, dtype=float)

    def _end(self, trial: Asked, replicate: int) -> int:
        """How far the trial's replicate was trained."""
        total = self.view.table.total_steps
        if self.view.layout == "abreast":
            return trial.steps // len(self.view.seeds)
        return min(max(0, trial.steps - replicate * total), total)

    @property
    def recommended(self) -> tuple[int, int]:
        """The complete trial with the best value that the search saw."""
        return self._best([trial for trial in self.trials if trial.complete])

    @property
    def best_asked(self) -> tuple[int, int]:
        """The same, had no trial been pruned."""
        return self._best(self.trials)

    @property
    def lost(self) -> float:
        """What pruning cost: value recommended minus best value asked for, as the search saw it."""
        losses = self.view.losses
        return float(losses[self.recommended] - losses[self.best_asked])

    @property
    def regret(self) -> float:
        """Mean over all random seeds at the recommended point minus the table's best mean."""
        return float(self.view.true_losses[self.recommended] - self.view.true_losses.min())

    @property
    def best_pruned(self) -> bool:
        """Whether the best point that was asked for was pruned."""
        best = self.best_asked
        return not any(trial.complete for trial in self.trials if trial.point == best)

    @property
    def fraction_bias(self) -> float:
        """Explore fraction found minus the best one asked for, mean over the seed LRs."""
        fractions = self.view.table.fractions
        found = []
        for lr in {trial.lr for trial in self.trials}:
            asked = [trial for trial in self.trials if trial.lr == lr]
            complete = [trial for trial in asked if trial.complete]
            if complete:
                best, recommended = self._best(asked)[1], self._best(complete)[1]
                found.append(fractions[recommended] - fractions[best])
        return float(np.mean(found))

    def first(self, trials: int) -> "Replay":
        """Its first trials only."""
        return Replay(view=self.view, trials=self.trials[:trials])

    def within(self, steps: float, *, trunks: bool = False) -> "Replay":
        """Its first trials, as many as train ``steps`` together (one at least)."""
        spent = np.cumsum(self.trained_on_trunks if trunks else self.trained)
        return self.first(max(1, int(np.searchsorted(spent, steps * (1 + 1e-9), side="right"))))

    def _best(self, trials: Sequence[Asked]) -> tuple[int, int]:
        return min((trial.point for trial in trials), key=lambda point: self.view.losses[point])


def replay(
    view: View,
    *,
    trials: int,
    sampler: BaseSampler,
    pruner: BasePruner,
    point: Callable[[optuna.Trial], tuple[int, int]] | None = None,
    queued: Sequence[Mapping[str, float]] = (),
    name: str = "replay",
) -> Replay:
    """Run a study of that many trials on the curves of ``view``; the first ones may be ``queued``.

    ``point`` asks the trial for its parameters and gives their indices; by default it asks for
    points of the table's grid. Diverged curves end as the driver ends them, pruned.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked: list[Asked] = []
    where = point or grid_point(view.table)

    def objective(trial: optuna.Trial) -> float:
        lr, fraction = where(trial)
        replicates = len(view.seeds) if view.layout == "behind" else 1
        KneePruner.describe(trial, view.table.schedules[lr][fraction], replicates=replicates)
        value, trained = float("nan"), 0
        for step, value, trained in view.reports(lr, fraction):
            diverged = np.isnan(value)
            if not diverged:
                trial.report(value, step)
            if diverged or (trained < view.budget and trial.should_prune()):
                asked.append(Asked(lr=lr, fraction=fraction, steps=trained, complete=False))
                raise optuna.TrialPruned
        asked.append(Asked(lr=lr, fraction=fraction, steps=trained, complete=True))
        return value

    study = optuna.create_study(
        study_name=name, direction=DIRECTIONS[view.metric], sampler=sampler, pruner=pruner
    )
    for params in queued:
        study.enqueue_trial(dict(params))
    study.optimize(objective, n_trials=trials)
    return Replay(view=view, trials=tuple(asked))


def grid_point(table: CurveTable) -> Callable[[optuna.Trial], tuple[int, int]]:
    """Asks for a point of the table's grid; one between its points goes to the nearest."""
    lrs, fractions = np.log(table.seed_lrs), np.array(table.fractions)

    def ask(trial: optuna.Trial) -> tuple[int, int]:
        lr = trial.suggest_float("seed_lr", table.seed_lrs[0], table.seed_lrs[-1], log=True)
        fraction = trial.suggest_float("explore_fraction", fractions[0], fractions[-1])
        return (
            int(np.abs(lrs - np.log(lr)).argmin()),
            int(np.abs(fractions - fraction).argmin()),
        )

    return ask


def interval(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float, float]:
    """Mean and its 95 % interval, by resampling."""
    sample = np.asarray(values, dtype=float)
    draw = np.random.default_rng(0).integers(len(sample), size=(draws, len(sample)))
    low, high = np.quantile(sample[draw].mean(axis=1), [0.025, 0.975])
    return float(sample.mean()), float(low), float(high)
