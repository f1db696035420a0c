"""Samplers propose points of the grid, and every point once."""

from collections.abc import Callable, Iterator, Sequence

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
)
from optuna.trial import TrialState

from knee_tune.study.recovery import requeue, requeue_failed
from knee_tune.study.samplers import (
    Axis,
    GridSnappingSampler,
    PrunedAsBadGPSampler,
    make_sampler,
    reaching,
    untried,
    wanted,
)
from knee_tune.study.storage import quiet_optuna

AXES = {
    "seed_lr": Axis((0.001, 0.003, 0.01, 0.03, 0.1), log=True),
    "explore_fraction": Axis((0.0, 0.3, 0.5, 0.6, 0.9)),
}
GRID = {(lr, fraction) for lr in AXES["seed_lr"].points for fraction in (0.0, 0.3, 0.5, 0.6, 0.9)}

Point = tuple[float, float]


@pytest.fixture(autouse=True, scope="module")
def _sample_as_a_driver_does() -> Iterator[None]:
    """One thread is fastest for the small matrices of a Gaussian process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def suggest(trial: optuna.Trial) -> Point:
    lr, fraction = (
        trial.suggest_float(name, axis.points[0], axis.points[-1], log=axis.log)
        for name, axis in AXES.items()
    )
    return lr, fraction


def study(name: str, *, seed: int = 1, known: Sequence[Point] = ()) -> optuna.Study:
    """A study that knows the values of some points: the nearer to (0.01, 0.6), the better."""
    study = optuna.create_study(sampler=make_sampler(name, seed=seed, axes=AXES))
    for lr, fraction in known:
        study.add_trial(
            optuna.create_trial(
                params={"seed_lr": lr, "explore_fraction": fraction},
                distributions={name: axis.distribution() for name, axis in AXES.items()},
                value=value_at((lr, fraction)),
            )
        )
    return study


def value_at(point: Point) -> float:
    lr, fraction = (axis.position(at) for axis, at in zip(AXES.values(), point, strict=True))
    return (lr - 0.5) ** 2 + (fraction - 0.67) ** 2


@pytest.mark.parametrize("name", ["gp", "tpe", "grid", "random"])
def test_every_proposal_is_a_grid_point_not_yet_tried(name: str) -> None:
    asked = study(name)
    seen: list[Point] = []

    def objective(trial: optuna.Trial) -> float:
        point = suggest(trial)
        seen.append(point)
        if len(seen) % 3 == 0:
            raise optuna.TrialPruned  # of which a Gaussian process learns nothing
        return value_at(point)

    with quiet_optuna():
        asked.optimize(objective, n_trials=len(GRID))
    assert set(seen) == GRID  # so none came twice, past the random start of the models too
    assert [tuple(trial.params.values()) for trial in asked.trials] == seen  # and that is stored


@pytest.mark.parametrize("name", ["gp", "tpe"])
def test_a_model_proposes_the_neighbours_of_the_best_points(name: str) -> None:
    known = [(0.001, 0.0), (0.1, 0.9), (0.01, 0.9), (0.001, 0.9), (0.01, 0.3), (0.1, 0.0)]
    with quiet_optuna():
        proposed = [suggest(study(name, seed=seed, known=known).ask()) for seed in range(5)]
    values = sorted(value_at(point) for point in proposed)
    every = sorted(value_at(point) for point in GRID - set(known))
    assert values[len(values) // 2] < every[len(every) // 3]


@pytest.mark.parametrize(
    "make", [lambda seed: QMCSampler(seed=seed), lambda seed: NSGAIISampler(seed=seed)]
)
def test_any_sampler_of_optuna_can_be_wrapped(make: Callable[[int], BaseSampler]) -> None:
    asked = optuna.create_study(sampler=GridSnappingSampler(make, seed=1, axes=AXES))
    with quiet_optuna():
        asked.optimize(lambda trial: value_at(suggest(trial)), n_trials=len(GRID))
    assert {tuple(trial.params.values()) for trial in asked.trials} == GRID


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
@pytest.mark.parametrize(
    ("proposed", "tried", "taken"),
    [
        (0.41, [], 0.5),  # the nearest
        (0.41, [0.9], 0.5),  # 0.6 is too far
        (0.41, [0.5], 0.6),  # which trains half of a run, the nearer 0.3 would train 70 %
        (0.41, [0.5, 0.6], 0.3),
        (0.32, [0.9], 0.3),  # a proposal next to a point means that point
    ],
)
def test_of_points_about_as_near_the_one_that_branches_off_the_latest_is_taken(
    proposed: float, tried: list[float], taken: float
) -> None:
    proposal = {"seed_lr": 0.01, "explore_fraction": proposed}
    asked = study("random", known=[(0.01, fraction) for fraction in tried])
    asked.sampler = GridSnappingSampler(
        lambda seed: PartialFixedSampler(proposal, RandomSampler(seed)), seed=1, axes=AXES
    )
    assert suggest(asked.ask()) == (0.01, taken)


@pytest.mark.parametrize("name", ["gp", "tpe"])
def test_trials_that_run_at_the_same_time_are_spread(name: str) -> None:
    """A model that took no notice of running trials would propose one neighbourhood four times."""
    known = [(0.001, 0.0), (0.1, 0.9), (0.01, 0.9), (0.001, 0.9), (0.01, 0.3), (0.1, 0.0)]
    with quiet_optuna():
        asked = study(name, known=known)
        points = [suggest(asked.ask()) for _ in range(4)]
    assert len(set(points)) == 4
    assert len({lr for lr, _ in points}) > 1


def test_a_gaussian_process_keeps_away_from_where_trials_were_pruned() -> None:
    """The larger the seed LR the better, but the upper three of eight diverge."""
    axes = {
        "seed_lr": Axis(tuple(0.001 * 2**i for i in range(8)), log=True),
        "explore_fraction": Axis((0.0, 0.2, 0.4, 0.6, 0.8)),
    }

    def diverged(sampler: type[GPSampler], *, seed: int) -> int:
        def objective(trial: optuna.Trial) -> float:
            lr = trial.suggest_float("seed_lr", 0.001, 0.128, log=True)
            fraction = trial.suggest_float("explore_fraction", 0.0, 0.8)
            if lr > 0.02:
                raise optuna.TrialPruned
            return 0.1 * fraction**2 - axes["seed_lr"].position(lr)

        wrapped = GridSnappingSampler(
            lambda seed: sampler(seed=seed, n_startup_trials=6, warn_independent_sampling=False),
            seed=seed,
            axes=axes,
        )
        searched = optuna.create_study(sampler=wrapped)
        searched.enqueue_trial({"seed_lr": 0.001, "explore_fraction": 0.0})
        searched.optimize(objective, n_trials=16)
        return len(searched.get_trials(states=(TrialState.PRUNED,)))

    with quiet_optuna():
        plain, told = (
            sum(diverged(sampler, seed=seed) for seed in range(2))
            for sampler in (GPSampler, PrunedAsBadGPSampler)
        )
    assert told < 0.8 * plain


def test_a_far_out_value_does_not_move_a_gaussian_process() -> None:
    """Perplexities of 2 to 4, and one of a run that went wrong but is finite."""

    def proposed(outlier: float) -> dict[str, float]:
        asked = optuna.create_study(sampler=PrunedAsBadGPSampler(seed=1, n_startup_trials=4))
        for number in range(9):
            x, y = number % 3 / 2, number // 3 / 2
            value = outlier if number == 8 else 2 + (x - 0.4) ** 2 + (y - 0.7) ** 2
            asked.add_trial(
                optuna.create_trial(
                    params={"x": x, "y": y},
                    distributions={name: FloatDistribution(0.0, 1.0) for name in ("x", "y")},
                    value=value,
                )
            )
        trial = asked.ask({name: FloatDistribution(0.0, 1.0) for name in ("x", "y")})
        return trial.params

    with quiet_optuna():
        assert proposed(103.7) == proposed(1e6)


def test_a_grid_comes_seed_lr_by_seed_lr_and_the_longest_explore_first() -> None:
    asked = study("grid")
    points = []
    for _ in range(len(GRID)):
        trial = asked.ask()
        points.append(suggest(trial))
        asked.tell(trial, 0.0)
    assert points == sorted(GRID, key=lambda point: (point[0], -point[1]))


def test_a_seed_lr_in_training_is_left_alone_while_there_are_others() -> None:
    asked = study("grid", known=[(0.003, fraction) for fraction in (0.0, 0.3, 0.5, 0.6, 0.9)])
    trials = [asked.ask() for _ in range(6)]
    points = [suggest(trial) for trial in trials]
    assert points == [
        *((lr, 0.9) for lr in (0.001, 0.01, 0.03, 0.1)),  # 0.003 has no point left
        *((lr, 0.6) for lr in (0.001, 0.01)),  # all are in training: one more each
    ]
    asked.tell(trials[2], 0.0)
    assert suggest(asked.ask()) == (0.03, 0.6)


def test_a_continued_grid_goes_on_with_the_points_that_are_missing() -> None:
    missing = {(0.003, 0.5), (0.1, 0.9)}
    asked = study("grid", known=sorted(GRID - missing))
    assert {suggest(asked.ask()) for _ in missing} == missing
    assert not wanted(asked, AXES, trials=None)


def test_a_search_wants_no_trial_once_its_target_is_reached() -> None:
    asked = study("random", known=[(0.01, 0.6), (0.001, 0.0)])
    best = min(asked.trials, key=lambda trial: trial.value or 0.0)
    assert best.value is not None
    assert wanted(asked, AXES, trials=9, target=best.value / 2)
    assert not wanted(asked, AXES, trials=9, target=best.value)
    assert reaching(asked, asked.trials, best.value) == best


def test_a_search_wants_trials_until_it_has_them_or_no_point_is_left() -> None:
    asked = study("random", known=sorted(GRID)[2:])
    left = len(GRID) - 2
    assert not wanted(asked, AXES, trials=left)
    assert wanted(asked, AXES, trials=left + 1)
    for _ in range(2):
        suggest(asked.ask())
    assert not wanted(asked, AXES, trials=1000)
    assert not wanted(asked, AXES, trials=None)


def test_a_grid_tries_a_failed_point_again_whenever_it_is_continued() -> None:
    asked = study("grid", known=sorted(GRID)[1:])
    for _ in range(4):
        trial = asked.ask()
        assert suggest(trial) == min(GRID)
        asked.tell(trial, state=TrialState.FAIL)
        assert not wanted(asked, AXES, trials=None)
        requeue_failed(asked)
        assert wanted(asked, AXES, trials=None)
    suggest(asked.ask())
    assert not wanted(asked, AXES, trials=len(GRID))  # all attempts are one trial


def test_a_queued_point_that_failed_before_it_began_is_not_lost() -> None:
    asked = study("random")
    asked.enqueue_trial({"seed_lr": 0.01, "explore_fraction": 0.6})
    asked.tell(asked.ask(), state=TrialState.FAIL)
    assert (0.01, 0.6) not in untried(asked.trials, AXES)
    assert not wanted(asked, AXES, trials=1)  # nor is it tried again by the command that lost it
    requeue_failed(asked)
    assert suggest(asked.ask()) == (0.01, 0.6)


def test_a_point_comes_again_once_none_is_left() -> None:
    proposed = suggest(study("random", known=sorted(GRID)).ask())
    assert proposed in GRID


def test_points_that_run_or_wait_or_failed_are_not_proposed() -> None:
    left = (0.03, 0.3)
    others = sorted(GRID - {left})
    asked = study("random", known=others[3:])
    for (lr, fraction), state in zip(
        others, (TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL), strict=False
    ):
        asked.add_trial(
            optuna.create_trial(
                state=state,
                params={"seed_lr": lr, "explore_fraction": fraction},
                distributions={name: axis.distribution() for name, axis in AXES.items()},
            )
        )
    asked.sampler = make_sampler("random", seed=7, axes=AXES)
    trial = optuna.Trial(asked, asked._storage.create_new_trial(asked._study_id))
    assert suggest(trial) == left


@pytest.mark.parametrize("begun", [False, True], ids=["while it was asked for", "in training"])
def test_drivers_that_are_killed_change_no_proposal(*, begun: bool) -> None:
    peace, broken = study("random"), study("random")
    points = [suggest(peace.ask()) for _ in range(5)]
    for at in range(5):
        for _ in range(at % 3):  # so often is its driver killed
            killed = broken.ask()
            if begun:
                suggest(killed)
            broken.tell(killed, state=TrialState.FAIL)
            requeue(broken, broken.trials[killed.number])
        assert suggest(broken.ask()) == points[at]


def test_a_trial_that_came_to_nothing_changes_no_proposal() -> None:
    peace, broken = study("random"), study("random")
    broken.tell(broken.ask(), state=TrialState.FAIL)
    for _ in range(3):
        assert suggest(broken.ask()) == suggest(peace.ask())


def test_a_proposal_depends_on_the_seed_and_the_trials_so_far_only() -> None:
    first, again, other = (study("random", seed=seed) for seed in (1, 1, 2))
    points = [suggest(first.ask()) for _ in range(6)]
    assert [suggest(again.ask()) for _ in range(3)] == points[:3]
    again.sampler = make_sampler("random", seed=1, axes=AXES)  # another process continues
    assert [suggest(again.ask()) for _ in range(3)] == points[3:]
    assert [suggest(other.ask()) for _ in range(6)] != points
