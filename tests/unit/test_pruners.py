"""KneePruner prunes what is worse where the schedules agree, and nothing for exploring longer."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import (
    BasePruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
)
from optuna.trial import FrozenTrial, TrialState

from knee_tune.pruners import KneePruner
from knee_tune.schedules import Knee
from knee_tune.study import pruners
from knee_tune.study.pruners import PruningBrackets, make_pruner, raw_step_warning
from knee_tune.study.samplers import Axis, make_sampler
from knee_tune.study.storage import quiet_optuna

TOTAL, EVERY = 100, 10
MAX_LR = 0.8
SPACE = FloatDistribution(0.01, MAX_LR, log=True)

Curve = Mapping[int, float]
Align = Literal["step", "lr", "progress"]
Direction = Literal["minimize", "maximize"]
ALIGNS: tuple[Align, ...] = ("lr", "progress")


@pytest.fixture(autouse=True)
def _no_log_of_optuna() -> Iterator[None]:
    with quiet_optuna():
        yield


def aligned(align: Align = "lr", **settings: Any) -> KneePruner:
    """A strict pruner without patience."""
    return KneePruner(**{"align": align, "percentile": 10, "patience": 1, **settings})


def knee(explore: int, *, seed_lr: float = MAX_LR, warmup: int = 0, total: int = TOTAL) -> Knee:
    return Knee(
        seed_lr=seed_lr, total_steps=total, warmup_steps=warmup, explore_steps=explore - warmup
    )


def curve(schedule: Knee, *, offset: float = 0.0, every: int = EVERY) -> dict[int, float]:
    """A loss that falls with the LR and depends on nothing else but ``offset``."""
    steps = range(every, schedule.total_steps + 1, every)
    return {step: 1 + schedule.lr(step) + offset for step in steps}


def follow(first: Curve, second: Curve, *, total: int = TOTAL) -> dict[int, float]:
    """Two replicates behind each other."""
    return dict(first) | {total + step: value for step, value in second.items()}


def new_study(pruner: BasePruner | None = None, direction: Direction = "minimize") -> optuna.Study:
    return optuna.create_study(pruner=pruner or aligned(), direction=direction)


def add(
    study: optuna.Study,
    schedule: Knee,
    reports: Curve,
    *,
    state: TrialState = TrialState.COMPLETE,
    distribution: BaseDistribution = SPACE,
    attributes: Mapping[str, Any] | None = None,
    replicates: int = 1,
) -> None:
    """A trial that is in the study already."""
    described = {
        "schedule": {
            "seed_lr": schedule.seed_lr,
            "total_steps": schedule.total_steps,
            "warmup_steps": schedule.warmup_steps,
            "explore_steps": schedule.explore_steps,
        },
        "replicates": replicates,
    }
    complete = state == TrialState.COMPLETE
    study.add_trial(
        optuna.create_trial(
            state=state,
            value=list(reports.values())[-1] if complete else None,
            params={"seed_lr": schedule.seed_lr},
            distributions={"seed_lr": distribution},
            user_attrs=described if attributes is None else dict(attributes),
            intermediate_values=dict(reports),
        )
    )


def add_six(study: optuna.Study, schedule: Knee | None = None, **kwargs: Any) -> None:
    """Six trials that differ by a hair."""
    schedule = schedule or knee(20)
    for number in range(6):
        add(study, schedule, curve(schedule, offset=1e-6 * number), **kwargs)


def pruned_at(
    study: optuna.Study,
    schedule: Knee,
    reports: Curve,
    *,
    replicates: int = 1,
    suggest: Callable[[optuna.Trial], object] = lambda trial: trial.suggest_float(
        "seed_lr", SPACE.low, SPACE.high, log=True
    ),
) -> int | None:
    """Where a new trial with these values is pruned."""
    study.enqueue_trial({"seed_lr": schedule.seed_lr})
    trial = study.ask()
    suggest(trial)
    KneePruner.describe(trial, schedule, replicates=replicates)
    for step, value in reports.items():
        trial.report(value, step)
        if trial.should_prune():
            return step
    return None


def test_a_complete_trial_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study may have ten thousand, and asks at every report of every trial."""
    looked = list[int]()
    describe = pruners._describe

    def look(trial: FrozenTrial) -> object:
        looked.append(trial.number)
        return describe(trial)

    monkeypatch.setattr(pruners, "_describe", look)
    study = new_study(KneePruner())
    add_six(study)
    for number in (6, 7):
        assert pruned_at(study, knee(20), dict.fromkeys((10, 20, 30), 0.5)) is None
        assert looked.count(number) == 3
    assert [looked.count(number) for number in range(6)] == [1] * 6


@pytest.mark.parametrize("explore", [0, 20, 50, 80, 90, 100])
def test_at_equal_steps_nobody_is_pruned_for_a_higher_lr(explore: int) -> None:
    study = new_study(aligned("step", percentile=0))
    for others in (0, 20, 50, 90):
        add_six(study, knee(others))
    assert pruned_at(study, knee(explore), curve(knee(explore))) is None


def test_who_lags_behind_trials_of_higher_lrs_is_pruned_while_it_explores() -> None:
    study = new_study(aligned("step"))
    low = knee(100, seed_lr=0.1, warmup=10)
    add_six(study, knee(20))  # below LR 0.1 from step 91 on
    bad = dict.fromkeys(range(5, 101, 5), 9.0)
    assert pruned_at(study, low, bad) == 15
    assert pruned_at(study, low, {step: 9.0 for step in bad if step > 90}) is None


def test_patience_counts_evaluations_in_a_row() -> None:
    study = new_study(aligned("step", patience=3))
    add_six(study, knee(80))
    good, bad = curve(knee(80)), curve(knee(80), offset=0.5)
    assert pruned_at(study, knee(80), bad) == 30
    assert pruned_at(study, knee(80), bad | {20: good[20], 40: good[40]}) == 70
    assert pruned_at(study, knee(80), bad | {step: good[step] for step in (30, 60, 90)}) is None


def test_patience_does_not_reach_into_the_replicate_before() -> None:
    schedule = knee(80)
    study = new_study(aligned("step", patience=3))
    for _ in range(6):
        add(study, schedule, follow(curve(schedule), curve(schedule)), replicates=2)
    good, bad = curve(schedule), curve(schedule, offset=0.5)
    first = good | {90: bad[90], 100: bad[100]}
    assert pruned_at(study, schedule, follow(first, bad), replicates=2) == TOTAL + 30


@pytest.mark.parametrize("align", ALIGNS)
@pytest.mark.parametrize("explore", [0, 20, 50, 80, 90, 100])
def test_an_equally_good_trial_lives_wherever_its_knee_is(align: Align, explore: int) -> None:
    study = new_study(aligned(align=align, percentile=0))
    add_six(study, knee(20))
    assert pruned_at(study, knee(explore), curve(knee(explore))) is None


def test_a_raw_step_pruner_kills_the_same_trial_for_exploring_longer() -> None:
    study = new_study(MedianPruner())
    add_six(study, knee(20))
    assert pruned_at(study, knee(80), curve(knee(80))) is not None


@pytest.mark.parametrize("seed", range(8))
def test_decays_that_are_the_same_function_of_the_lr_never_prune_each_other(seed: int) -> None:
    draw = random.Random(seed)
    study = new_study(aligned(percentile=0))
    for _ in range(12):
        schedule = knee(draw.randrange(95), seed_lr=draw.uniform(0.1, MAX_LR))
        assert pruned_at(study, schedule, curve(schedule, every=1)) is None
        add(study, schedule, curve(schedule, every=1))


@pytest.mark.parametrize(
    ("align", "explore", "step"),
    [
        ("lr", 20, 80),  # LR 0.2, a quarter of the largest
        ("lr", 60, 90),
        ("progress", 20, 50),  # 0.3 of the decay is at step 44
        ("progress", 60, 80),
    ],
)
def test_a_worse_trial_is_pruned_as_soon_as_the_pruner_acts(
    align: Align, explore: int, step: int
) -> None:
    study = new_study(aligned(align=align))
    add_six(study)
    schedule = knee(explore)
    assert pruned_at(study, schedule, curve(schedule, offset=0.01)) == step


@pytest.mark.parametrize("align", ALIGNS)
def test_warmup_explore_and_the_end_are_never_pruned(align: Align) -> None:
    schedule = knee(80, warmup=10)
    study = new_study(aligned(align=align, max_lr_fraction=1, min_progress=0))
    add_six(study, schedule)
    reports = dict.fromkeys((1, 10, 11, 50, 80), 99.0) | {TOTAL: 99.0}
    assert pruned_at(study, schedule, reports) is None
    assert pruned_at(study, schedule, {80: 99.0, 81: 99.0, TOTAL: 99.0}) == 81


@pytest.mark.parametrize("align", ALIGNS)
def test_a_trial_that_explores_to_the_end_is_neither_pruned_nor_compared_with(align: Align) -> None:
    study = new_study(aligned(align=align))
    add_six(study, knee(100))
    bad = curve(knee(20), offset=9)
    assert pruned_at(study, knee(20), bad) is None
    add_six(study, knee(20))
    assert pruned_at(study, knee(20), bad) is not None
    assert pruned_at(study, knee(100), curve(knee(100), offset=9)) is None


def test_values_are_current_not_the_best_so_far() -> None:
    study = new_study()
    add_six(study)
    reports = curve(knee(20)) | {30: -5.0, 90: 3.0}
    assert pruned_at(study, knee(20), reports) == 90


@pytest.mark.parametrize("align", ALIGNS)
@pytest.mark.parametrize("seed", range(10))
def test_maximising_mirrors_minimising(align: Align, seed: int) -> None:
    draw = random.Random(seed)
    pruner = aligned(align=align, percentile=30)
    low, high = new_study(pruner, "minimize"), new_study(pruner, "maximize")
    ends = []
    for _ in range(30):
        schedule = knee(10 * draw.randrange(10), seed_lr=draw.uniform(0.2, MAX_LR))
        reports = {step: value + draw.gauss(0, 0.05) for step, value in curve(schedule).items()}
        mirrored = {step: -value for step, value in reports.items()}
        end = pruned_at(low, schedule, reports)
        assert pruned_at(high, schedule, mirrored) == end
        ends.append(end)
        if end is None:
            add(low, schedule, reports)
            add(high, schedule, mirrored)
    assert len(set(ends)) > 2


BAD = curve(knee(20), offset=0.5)


@pytest.mark.parametrize(
    "kept_out",
    [
        {"state": TrialState.FAIL},
        {"state": TrialState.RUNNING},
        {"state": TrialState.PRUNED},
        {"schedule": knee(20, total=50)},
        {"schedule": knee(20, total=200)},
        {"replicates": 2},
        {"attributes": {}},
        {"attributes": {"schedule": "cosine"}},
        {"attributes": {"schedule": {"name": "cosine", "seed_lr": 0.8, "total_steps": TOTAL}}},
    ],
    ids=str,
)
def test_who_is_no_comparator(kept_out: dict[str, Any]) -> None:
    study = new_study()
    add_six(study, **kept_out)
    assert pruned_at(study, knee(20), BAD) is None
    add_six(study)
    assert pruned_at(study, knee(20), BAD) == 80


def test_it_waits_for_six_complete_trials() -> None:
    study = new_study()
    for _ in range(5):
        add(study, knee(20), curve(knee(20)))
    assert pruned_at(study, knee(20), BAD) is None
    add(study, knee(20), curve(knee(20)))
    assert pruned_at(study, knee(20), BAD) == 80


def test_it_waits_for_four_that_had_the_same_lr() -> None:
    small = knee(20, seed_lr=0.05)
    study = new_study()
    add_six(study, small)
    for _ in range(3):
        add(study, knee(20), curve(knee(20)))
    # LR 0.1 at step 90, which is more than the small ones ever had
    assert pruned_at(study, knee(20), {90: 9.0}) is None
    add(study, knee(20), curve(knee(20)))
    assert pruned_at(study, knee(20), {90: 9.0}) == 90
    assert pruned_at(study, knee(20), {95: 9.0}) == 95  # 0.05: where the small ones have their knee


@pytest.mark.parametrize("step", [5, 30, 90])
def test_a_trial_that_is_nan_is_lost_wherever_it_is(step: int) -> None:
    schedule = knee(50, warmup=10)
    assert pruned_at(new_study(), schedule, {step: math.nan, TOTAL: 1.0}) == step


def test_nan_at_the_end_is_the_studys_to_tell() -> None:
    assert pruned_at(new_study(), knee(20), {TOTAL: math.nan}) is None


@pytest.mark.parametrize(("direction", "worst"), [("minimize", math.inf), ("maximize", -math.inf)])
def test_infinity_is_a_very_bad_value(direction: Direction, worst: float) -> None:
    study = new_study(direction=direction)
    add_six(study)
    assert pruned_at(study, knee(20), {10: worst, 90: worst}) == 90


def test_comparators_that_are_nan_there_are_left_out() -> None:
    study = new_study()
    for _ in range(3):
        add(study, knee(20), curve(knee(20)))
    for _ in range(3):
        add(study, knee(20), curve(knee(20)) | {90: math.nan})
    assert pruned_at(study, knee(20), {90: 9.0}) is None
    assert pruned_at(study, knee(20), {95: 9.0}) is None
    assert pruned_at(study, knee(20), {80: 9.0}) == 80


def test_evaluations_need_not_be_at_equal_steps() -> None:
    study = new_study()
    add_six(study)
    between = 1 + knee(20).lr(83)
    assert pruned_at(study, knee(20), {83: between}) is None
    assert pruned_at(study, knee(20), {83: between + 0.01}) == 83
    early_end = new_study()
    for _ in range(6):
        add(early_end, knee(20), dict.fromkeys((30, 60, 90), 0.0))
    assert pruned_at(early_end, knee(20), {93: 9.0}) is None
    assert pruned_at(early_end, knee(20), {89: 9.0}) == 89


def test_a_step_of_zero_is_before_the_knee_of_a_linear_decay() -> None:
    study = new_study(aligned(max_lr_fraction=1))
    add_six(study, knee(0))
    assert pruned_at(study, knee(0), {0: 9.0}) is None
    assert pruned_at(study, knee(0), {10: 9.0}) == 10


@pytest.mark.parametrize("align", ALIGNS)
def test_replicates_are_compared_with_the_same_replicates(align: Align) -> None:
    schedule = knee(20)
    study = new_study(aligned(align=align))
    for _ in range(6):
        first, both = curve(schedule, offset=1), curve(schedule)
        add(study, schedule, follow(first, both), replicates=2)
    good = curve(schedule)
    bad = curve(schedule, offset=0.5)
    assert pruned_at(study, schedule, follow(bad, good), replicates=2) is None
    step = {"lr": 180, "progress": 150}[align]
    assert pruned_at(study, schedule, follow(bad, bad), replicates=2) == step
    assert pruned_at(study, schedule, {100: 9.0, 200: 9.0}, replicates=2) == 100
    assert pruned_at(study, schedule, {200: 9.0}, replicates=2) is None


def test_a_continued_trial_is_judged_by_its_newest_value() -> None:
    study = new_study()
    add_six(study)
    reports = {step: value for step, value in BAD.items() if step <= 80}
    add(study, knee(20), reports, state=TrialState.WAITING)
    trial = study.ask()
    assert trial.should_prune()
    trial.report(1 + knee(20).lr(90), 90)
    assert not trial.should_prune()


def suggest_choice(trial: optuna.Trial) -> object:
    return trial.suggest_categorical("seed_lr", [0.4, 0.8, 1.6])


def suggest_other(trial: optuna.Trial) -> object:
    return trial.suggest_float("dropout", 0, 10)


@pytest.mark.parametrize(
    ("pruner", "suggest", "step"),
    [
        (aligned(max_seed_lr=1.6), suggest_other, 60),  # LR 0.4
        (aligned(), suggest_choice, 60),
        (aligned(), suggest_other, 80),  # LR 0.2: the largest seed LR so far is 0.8
        (aligned(param="dropout"), suggest_other, 80),  # which is no seed LR
        (aligned(param="lr"), lambda trial: trial.suggest_float("lr", 0.8, 0.8), 80),
        (aligned(max_lr_fraction=0.5), suggest_other, 60),
    ],
)
def test_what_the_largest_seed_lr_is(
    pruner: BasePruner, suggest: Callable[[optuna.Trial], object], step: int
) -> None:
    study = new_study(pruner)
    add_six(study, distribution=CategoricalDistribution([0.4, 0.8, 1.6]))
    schedule = knee(20)
    bad = curve(schedule, offset=0.5)
    assert pruned_at(study, schedule, bad, suggest=suggest) == step


@pytest.mark.parametrize(("percentile", "kept"), [(0, 1), (10, 1), (50, 3), (90, 5), (100, 6)])
def test_percentile_is_the_share_that_is_kept(percentile: float, kept: int) -> None:
    study = new_study(aligned(percentile=percentile))
    for offset in range(6):
        add(study, knee(20), curve(knee(20), offset=offset))
    ends = [pruned_at(study, knee(20), curve(knee(20), offset=offset)) for offset in range(7)]
    assert ends == [None] * kept + [80] * (7 - kept)


def test_a_trial_without_a_schedule_is_not_pruned_and_says_so() -> None:
    study = new_study()
    add_six(study)
    trial = study.ask()
    trial.report(99.0, 90)
    with pytest.warns(UserWarning, match=r"trial 6 .* call KneePruner.describe"):
        assert not trial.should_prune()


def test_a_trial_without_reports_is_not_pruned() -> None:
    assert not new_study().ask().should_prune()


def test_several_objectives_are_refused_as_optuna_does() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], pruner=aligned())
    trial = study.ask()
    with pytest.raises(NotImplementedError, match="multi-objective"):
        trial.should_prune()
    study.tell(trial, [1.0, 2.0])
    with pytest.raises(RuntimeError, match="multi-objective"):
        study.pruner.prune(study, study.trials[0])


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("align", "epoch"),
        ("patience", 0),
        ("percentile", -1),
        ("percentile", 100.1),
        ("percentile", math.nan),
        ("n_startup_trials", -1),
        ("n_min_trials", 0),
        ("max_lr_fraction", 0),
        ("max_lr_fraction", 1.1),
        ("min_progress", 1),
        ("min_progress", -0.1),
        ("max_seed_lr", 0),
        ("max_seed_lr", math.inf),
    ],
)
def test_a_wrong_argument_is_named(argument: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} must be .*, got {wrong!r}$"):
        KneePruner(**{argument: wrong})


def test_replicates_must_be_at_least_one() -> None:
    with pytest.raises(ValueError, match="replicates must be at least 1, got 0"):
        KneePruner.describe(new_study().ask(), knee(20), replicates=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("knee", KneePruner),
        ("median", MedianPruner),
        ("percentile", PercentilePruner),
        ("hyperband", PruningBrackets),
        ("none", NopPruner),
    ],
)
def test_pruners_by_name_and_what_is_said_of_them(name: str, kind: type[BasePruner]) -> None:
    assert type(make_pruner(name, total_steps=TOTAL, replicates=3)) is kind
    warning = raw_step_warning(name)
    assert (warning is None) == (name in ("knee", "none"))
    assert warning is None or f"pruner {name} compares trials at equal steps" in warning


def test_an_unknown_pruner_is_named() -> None:
    with pytest.raises(
        ValueError, match="knee, median, percentile, hyperband or none, got 'medain'"
    ):
        make_pruner("medain", total_steps=TOTAL)


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_raw_step_pruners_stay_out_of_the_first_half(name: str) -> None:
    study = new_study(make_pruner(name, total_steps=TOTAL))
    add_six(study)
    assert pruned_at(study, knee(80), curve(knee(80), offset=0.5)) == 50


@pytest.mark.parametrize("total_steps", [1, 5, 30, 10_000])
@pytest.mark.parametrize("replicates", [1, 3])
def test_hyperband_takes_every_budget(total_steps: int, replicates: int) -> None:
    study = new_study(make_pruner("hyperband", total_steps=total_steps, replicates=replicates))
    steps = range(1, total_steps * replicates + 1, max(1, total_steps // 10))
    ends = {
        pruned_at(study, knee(0, total=total_steps), dict.fromkeys(steps, 1.0 * number))
        for number in range(40)
    }
    assert None in ends
    assert len(ends) > 1 or total_steps == 1


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_samplers_see_the_trials_of_every_bracket(sampler: str) -> None:
    axes = {
        "seed_lr": Axis((0.1, 0.2, 0.4), log=True),
        "explore_fraction": Axis((0.0, 0.3, 0.6, 0.9)),
    }
    study = new_study(make_pruner("hyperband", total_steps=TOTAL))
    study.sampler = make_sampler(sampler, seed=1, axes=axes)

    def objective(trial: optuna.Trial) -> float:
        for name, axis in axes.items():
            span = axis.distribution()
            trial.suggest_float(name, span.low, span.high, log=span.log)
        return 1.0

    study.optimize(objective, n_trials=12)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 12
