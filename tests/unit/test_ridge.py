"""The ridge of a study: surface, optima, crossover test, verdict and recommendation."""

from typing import Any

import numpy as np
import pytest

from benchmarks.ridge_surfaces import FRACTIONS, SEED_LRS, Truth, always_long, flat
from knee_tune.config.recipe import Direction, ExploreFractionSpace, SearchSpace, SeedLRSpace
from knee_tune.config.study import StudySpec
from knee_tune.records.findings import Ridge
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import RunRecord
from knee_tune.report.wording import ridge_words
from knee_tune.stats.estimates import Floats
from knee_tune.stats.ridge import ridge_of
from knee_tune.stats.surface import fence_of, gp_smoother, scores_of

LRS = tuple(SEED_LRS.tolist())
SHARES = tuple(FRACTIONS.tolist())
OPTIMA = np.array([0.9, 0.8, 0.75, 0.6, 0.5, 0.35, 0.2, 0.1, 0.0])
FALLING = Truth(optima=OPTIMA, accuracies=93 - 6 * (FRACTIONS - OPTIMA[:, None]) ** 2)


def record(
    values: Floats,
    *,
    seed_lrs: tuple[float, ...] = LRS,
    fractions: tuple[float, ...] = SHARES,
    direction: Direction = "maximize",
    default_lr: float = 0.05,
    percent: tuple[str, ...] = (),
) -> StudyRecord:
    """A study with these values (seeds, seed LRs, fractions); no trial where they are NaN."""
    trials = [
        TrialRecord(
            number=number,
            seed=1,
            seed_lr=seed_lrs[row],
            explore_fraction=fractions[column],
            state="complete",
            value=float(values[:, row, column].mean()),
            replicates=tuple(
                RunRecord(seed=seed, state="complete", value=float(value))
                for seed, value in enumerate(values[:, row, column], start=1)
            ),
        )
        for number, (row, column) in enumerate(np.ndindex(values.shape[1:]))
        if np.isfinite(values[:, row, column]).all()
    ]
    spec = StudySpec(
        name="ridge",
        task="toy",
        preset="full",
        recipe={"seed_lr": default_lr},
        space=SearchSpace(
            seed_lr=SeedLRSpace(values=seed_lrs),
            explore_fraction=ExploreFractionSpace(values=fractions),
        ),
    )
    return StudyRecord(
        name="ridge",
        task="toy",
        metric="valid_accuracy",
        direction=direction,
        trials=tuple(trials),
        spec=spec,
        percent=percent,
    )


def measured(truth: Truth, seeds: int, seed: int = 0) -> Floats:
    return truth.scores(seeds, np.random.default_rng(seed)).values


def ridge(values: Floats, **facts: Any) -> Ridge:
    found = ridge_of(record(values, **facts), resamples=200)
    assert found is not None
    return found


def test_percentages_have_no_interval_beyond_100() -> None:
    values = np.array([[[99.0, 97.0]], [[99.9, 96.0]], [[99.5, 98.0]]])
    found = ridge(values, seed_lrs=(0.05,), fractions=(0.2, 0.5), percent=("accuracy",))
    assert found.recommended is not None
    assert found.optimal[0].metric is not None
    assert found.recommended.expected.high == found.optimal[0].metric.high == 100
    unbounded = ridge(values, seed_lrs=(0.05,), fractions=(0.2, 0.5)).recommended
    assert unbounded is not None
    assert unbounded.expected.high is not None
    assert unbounded.expected.high > 100


def test_a_study_without_a_complete_trial_has_no_ridge() -> None:
    assert ridge_of(record(np.full((1, 9, 11), np.nan))) is None


def test_means_and_standard_errors() -> None:
    surface = ridge(
        np.array([[[1.0, np.nan]], [[3.0, np.nan]], [[8.0, np.nan]]]),
        seed_lrs=(0.1,),
        fractions=(0.2, 0.5),
    ).surface
    assert surface.explore_fractions == (0.2,)
    assert surface.means == ((4.0,),)
    assert surface.errors[0][0] == pytest.approx(np.std([1, 3, 8], ddof=1) / np.sqrt(3))


def test_points_are_compared_on_the_seeds_that_all_of_them_have() -> None:
    study = record(np.array([[[1.0, 5.0]], [[3.0, 6.0]]]), seed_lrs=(0.1,), fractions=(0.2, 0.5))
    longer = (*study.trials[0].replicates, RunRecord(seed=9, state="complete", value=99.0))
    trials = (study.trials[0].model_copy(update={"replicates": longer}), study.trials[1])
    found = ridge_of(study.model_copy(update={"trials": trials}))
    assert found is not None
    assert (found.surface.seeds, found.surface.means) == (2, ((2.0, 5.5),))


def test_the_optima_of_a_falling_ridge_are_found_and_used() -> None:
    found = ridge(measured(FALLING, 10))
    gp = [each.gp.value for each in found.optimal if each.gp]
    cubic = [each.cubic.value for each in found.optimal if each.cubic]
    assert gp == pytest.approx(OPTIMA, abs=0.12)
    assert cubic == pytest.approx(OPTIMA, abs=0.2)
    assert found.spearman is not None
    assert found.spearman.value < -0.8
    assert found.crossover is not None
    assert found.crossover.p < 0.001
    assert found.verdict == "inverse relation"
    assert "p < 0.001, 10 random seeds" in ridge_words(found)


def test_one_run_that_went_wrong_does_not_move_the_surfaces() -> None:
    values = measured(FALLING, 5)
    values[:, 0, 0] = -500.0
    found = ridge(values)
    gp = [each.gp.value for each in found.optimal if each.gp]
    assert np.abs(gp - OPTIMA).mean() < 0.12  # without the rule 0.42, without that run 0.03
    assert found.surface.means[0][0] == -500.0


@pytest.mark.parametrize(
    ("values", "direction", "fence"),
    [
        ((1.6, 2.0, 4.0, 8.0, 103.7), "minimize", 26.0),
        ((1.6, 2.0, 4.0, 8.0, 103.7), "maximize", None),  # the best is no outlier
        ((1.6, 2.0, 4.0, 8.0), "minimize", None),
        ((5.0, 5.0, 5.0, 5.0, 9.0), "minimize", None),  # no spread to measure by
        ((1.0, 2.0, 900.0), "minimize", None),
    ],
)
def test_the_fence_is_three_interquartile_ranges_on_the_worse_side(
    values: tuple[float, ...], direction: Direction, fence: float | None
) -> None:
    assert fence_of(values, direction) == fence


def test_a_metric_to_be_minimised_has_the_same_ridge() -> None:
    values = measured(FALLING, 5)
    up, down = ridge(values), ridge(-values, direction="minimize")
    assert down.optimal[0].gp == up.optimal[0].gp
    assert (down.spearman, down.crossover) == (up.spearman, up.crossover)
    assert ridge_words(down) == ridge_words(up)
    assert up.recommended is not None
    assert down.recommended is not None
    assert down.recommended.expected.value == pytest.approx(-up.recommended.expected.value)


def test_the_same_record_gives_the_same_numbers() -> None:
    values = measured(FALLING, 3)
    assert ridge(values) == ridge(values)


def test_where_long_exploring_always_wins_there_is_no_inverse_relation() -> None:
    found = ridge(measured(always_long(), 10))
    assert found.crossover is not None
    assert found.crossover.p > 0.05
    assert found.verdict == "no inverse relation"
    assert "long exploring is better at small and at large seed LRs" in ridge_words(found)


def test_where_nothing_makes_a_difference_nothing_is_decided() -> None:
    assert ridge(measured(flat(), 5)).verdict == "undecided"


def test_what_many_seeds_do_not_show_is_nothing_to_go_by() -> None:
    found = ridge(measured(flat(), 10))
    assert found.verdict == "no inverse relation"
    assert "long and short exploring are not shown to differ" in ridge_words(found)


def test_one_seed_has_values_without_intervals() -> None:
    found = ridge(measured(FALLING, 1))
    estimates = [found.optimal[0].raw, found.optimal[0].gp, found.optimal[0].cubic]
    assert all(each is not None and each.low is None for each in estimates)
    assert found.crossover is None
    assert found.verdict == "undecided"
    assert ridge_words(found).startswith("Undecided: one random seed")
    assert found.recommended is not None
    assert found.recommended.expected.low is None


def test_differences_that_are_the_same_for_both_seeds_are_no_evidence() -> None:
    values = np.repeat(FALLING.accuracies[None], 2, axis=0)
    found = ridge(values)
    assert found.crossover is not None
    assert found.crossover.p == 1.0


def test_scattered_points_are_enough_for_a_surface() -> None:
    values = measured(FALLING, 5)
    values[:, np.random.default_rng(3).random(values.shape[1:]) < 0.6] = np.nan
    found = ridge(values)
    gp = [each.gp.value for each in found.optimal if each.gp]
    assert len(gp) == len(found.optimal)
    assert np.corrcoef(gp, OPTIMA)[0, 1] > 0.9


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 1, 5), (3, 5, 1), (3, 4, 4)]
)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_any_study_has_a_ridge(shape: tuple[int, int, int], scale: float) -> None:
    seeds, rows, columns = shape
    values = scale * measured(FALLING, seeds)[:, :rows, :columns]
    found = ridge(values, seed_lrs=LRS[:rows], fractions=SHARES[:columns])
    assert len(found.optimal) == rows
    assert found.verdict == "undecided"
    assert (found.optimal[0].raw is None) == (columns == 1)


def test_the_recommendation_expects_less_than_the_lucky_best_mean() -> None:
    for seed in range(3):
        values = measured(flat(), 3, seed)
        chosen = ridge(values).recommended
        assert chosen is not None
        assert chosen.expected.value < values.mean(axis=0).max()


def test_the_recommendation_is_compared_with_the_default_seed_by_seed() -> None:
    values = measured(FALLING, 10)
    chosen = ridge(values, default_lr=LRS[0] * (1 + 1e-6)).recommended
    assert chosen is not None
    assert chosen.default is not None
    assert chosen.default.value == pytest.approx(values[:, 0, SHARES.index(0.5)].mean())
    assert chosen.difference is not None
    assert chosen.difference.value == pytest.approx(chosen.expected.value - chosen.default.value)


def test_a_default_that_the_grid_does_not_hold_is_not_replaced_by_its_neighbour() -> None:
    chosen = ridge(measured(FALLING, 3), default_lr=LRS[4] * 1.1).recommended
    assert chosen is not None
    assert (chosen.default, chosen.difference) == (None, None)


def test_a_gaussian_process_through_some_of_many_points_finds_the_same_ridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its cost grows with the third power of the points, and a study may have thousands."""
    scores = scores_of(record(FALLING.accuracies[None]))
    assert scores is not None
    whole = gp_smoother(scores)
    monkeypatch.setattr("knee_tune.stats.surface.MOST_POINTS", 60)
    part = gp_smoother(scores)
    assert whole is not None
    assert part is not None
    assert (part.reading.sum(), whole.reading.sum()) == (60, scores.tried.sum())
    means = scores.means[scores.tried]
    assert np.abs(part.optima(means) - whole.optima(means)).max() <= 0.1
