"""What the replays of searches count, on a table small enough to count by hand."""

import numpy as np
import pytest
from optuna.pruners import MedianPruner, NopPruner

from benchmarks.curve_tables import CurveTable
from benchmarks.pruners import axes
from benchmarks.replays import Asked, Layout, Replay, View, interval, replay
from benchmarks.whole import COSTS, steps_at_equal_regret
from knee_tune.schedules import Knee
from knee_tune.study.samplers import make_sampler

LRS, FRACTIONS, STEPS = (0.1, 0.2), (0.0, 0.5), (5, 10)


def table(*finals: list[list[float]]) -> CurveTable:
    """One random seed for each of ``finals`` (seed LR, fraction); half-way all are 9."""
    ends = np.array(finals, dtype=float)
    curves = np.stack([np.full_like(ends, 9), ends], axis=-1)
    schedules = tuple(
        tuple(Knee(seed_lr=lr, total_steps=10, explore_steps=round(10 * f)) for f in FRACTIONS)
        for lr in LRS
    )
    return CurveTable(
        name="small",
        seed_lrs=LRS,
        fractions=FRACTIONS,
        steps=STEPS,
        schedules=schedules,
        curves={"loss": curves, "accuracy": -curves},
    )


FIRST, SECOND = [[4.0, 3.0], [2.0, 1.0]], [[4.0, 3.0], [0.0, 5.0]]


def view(*, seeds: tuple[int, ...] = (0,), metric: str = "loss", layout: Layout = "behind") -> View:
    return View(table=table(FIRST, SECOND), metric=metric, seeds=seeds, layout=layout)


def ended(*trials: tuple[int, int, int], seen: View) -> Replay:
    return Replay(
        view=seen,
        trials=tuple(
            Asked(lr=lr, fraction=fraction, steps=steps, complete=steps == seen.budget)
            for lr, fraction, steps in trials
        ),
    )


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_what_pruning_the_best_costs(metric: str) -> None:
    search = ended((1, 1, 5), (0, 1, 10), (1, 0, 10), seen=view(metric=metric))
    assert search.best_pruned
    assert search.recommended == (1, 0)
    assert search.best_asked == (1, 1)
    assert search.lost == 1.0  # 2 instead of 1
    assert search.regret == 0.0  # the mean over both random seeds is best where it is recommended
    assert search.fraction_bias == -0.25  # of two seed LRs, one lost its best fraction of 0.5
    assert search.share == 25 / 30


def test_a_pruned_trial_that_was_not_the_best_costs_nothing() -> None:
    search = ended((1, 1, 10), (0, 0, 5), seen=view())
    assert (search.best_pruned, search.lost, search.share) == (False, 0.0, 0.75)


def test_trunks_are_paid_for_once() -> None:
    search = ended((0, 0, 10), (0, 1, 10), (0, 1, 10), (1, 1, 10), (1, 0, 5), seen=view())
    assert search.trained_on_trunks.tolist() == [10, 10, 0, 10, 5]
    deepest_first = ended((0, 1, 5), (0, 1, 10), (0, 0, 10), seen=view())
    assert deepest_first.trained_on_trunks.tolist() == [5, 5, 10]


@pytest.mark.parametrize(
    ("layout", "half"), [("behind", [9.0, 4.0, 9.0, 4.0]), ("abreast", [9, 4])]
)
def test_replicates_tell_the_mean_so_far(layout: Layout, half: list[float]) -> None:
    seen = view(seeds=(0, 1), layout=layout)
    told = seen.reports(0, 0)
    assert [value for _, value, _ in told] == half
    assert told[-1][2] == seen.budget == 20
    assert seen.losses.tolist() == [[4, 3], [1, 3]]


def test_every_replicate_has_a_trunk_of_its_own() -> None:
    search = ended((0, 1, 15), (0, 1, 20), seen=view(seeds=(0, 1)))
    assert search.trained_on_trunks.tolist() == [15, 5]


def test_a_search_within_a_budget_of_steps() -> None:
    search = ended((0, 0, 10), (1, 1, 5), (1, 0, 10), seen=view())
    assert [len(search.within(steps).trials) for steps in (1, 10, 14, 15, 25, 99)] == [
        1, 1, 1, 2, 3, 3,
    ]  # fmt: skip


def test_a_replay_asks_for_every_point_and_reads_its_curve() -> None:
    seen = view()
    sampler = make_sampler("random", seed=1, axes=axes(seen.table))
    search = replay(seen, trials=4, sampler=sampler, pruner=NopPruner())
    assert {trial.point for trial in search.trials} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert search.share == 1
    assert search.recommended == (1, 1)
    pruner = MedianPruner(n_startup_trials=1)
    pruned = replay(seen, trials=4, sampler=sampler, pruner=pruner)
    assert pruned.share == 1  # half-way all are the same


def test_an_interval_holds_its_mean() -> None:
    mean, low, high = interval([0.0, 1.0, 2.0])
    assert low < mean == 1 < high


def test_steps_at_equal_regret() -> None:
    plain = np.tile(np.linspace(1, 0, len(COSTS)), (2, 1))
    assert steps_at_equal_regret(plain, plain, 8) == 1
    assert steps_at_equal_regret(plain / 2, plain, 1) == 1
    assert steps_at_equal_regret(plain * 0, plain, 8) == 1 / 8
    assert steps_at_equal_regret(plain + 1, plain, 8) == float("inf")
