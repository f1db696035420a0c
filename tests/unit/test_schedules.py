"""The schedules, by value."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import TypeAdapter

from knee_tune.plans import plan
from knee_tune.schedules import (
    DECAYS,
    Constant,
    Cosine,
    Decay,
    InverseSquareRoot,
    Knee,
    Linear,
    OneCycle,
    Schedule,
    StepDecay,
    learning_rates,
)


def official_knee_lr(step: int, *, peak_lr: float, warmup: int, explore: int, total: int) -> float:
    """The formula of the authors' scheduler, in their order of operations."""
    if step <= warmup:
        return peak_lr * step / warmup
    if step <= warmup + explore:
        return peak_lr
    slope = -peak_lr / (total - warmup - explore)
    return max(0.0, peak_lr + slope * (step - warmup - explore))


@pytest.mark.parametrize("total", [1, 2, 3, 10, 37])
@pytest.mark.parametrize("seed_lr", [3e-4, 0.1, 7.0])
def test_knee_equals_the_official_formula_at_every_step(total: int, seed_lr: float) -> None:
    for warmup in range(total + 1):
        for explore in range(total - warmup + 1):
            knee = Knee(
                seed_lr=seed_lr, total_steps=total, warmup_steps=warmup, explore_steps=explore
            )
            expected = [
                official_knee_lr(step, peak_lr=seed_lr, warmup=warmup, explore=explore, total=total)
                for step in range(1, total + 1)
            ]
            assert learning_rates(knee) == pytest.approx(expected, rel=1e-12, abs=1e-14 * seed_lr)


def test_knee_by_value() -> None:
    knee = Knee(seed_lr=0.1, total_steps=10, warmup_steps=2, explore_steps=4)
    assert learning_rates(knee) == pytest.approx(
        [0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025, 0.0], abs=1e-15
    )
    assert knee.lr(2) == 0.1  # the warmup ends at the seed LR itself
    assert knee.lr(6) == 0.1  # the knee: the last step of the explore phase
    assert knee.lr(10) == 0.0  # the decay ends at zero itself


def test_knee_without_decay_stays_at_the_seed_lr() -> None:
    assert learning_rates(Knee(seed_lr=1.0, total_steps=3, explore_steps=3)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 3, 20])
def test_knee_without_explore_is_linear_decay(warmup: int) -> None:
    knee = Knee(seed_lr=0.3, total_steps=20, explore_steps=0, warmup_steps=warmup)
    linear = Linear(seed_lr=0.3, total_steps=20, warmup_steps=warmup)
    assert learning_rates(knee) == learning_rates(linear)


def test_linear_by_value() -> None:
    assert learning_rates(Linear(seed_lr=1.0, total_steps=6, warmup_steps=2)) == pytest.approx(
        [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    )


def test_cosine_by_value() -> None:
    half, quarter = 2**-0.5 / 2, 0.5
    assert learning_rates(Cosine(seed_lr=1.0, total_steps=5, warmup_steps=1)) == pytest.approx(
        [1.0, quarter + half, 0.5, quarter + 0.5 - quarter - half, 0.0], abs=1e-15
    )


def test_step_decay_by_value() -> None:
    # "0.1, 0.01 and 0.001" over 100, 50 and 50 epochs, at one step an epoch
    lrs = learning_rates(StepDecay(seed_lr=0.1, total_steps=200, boundaries=(100, 150)))
    assert lrs == pytest.approx([0.1] * 100 + [0.01] * 50 + [0.001] * 50)


def test_step_decay_warms_up() -> None:
    schedule = StepDecay(seed_lr=1.0, total_steps=6, boundaries=(4,), factor=0.5, warmup_steps=2)
    assert learning_rates(schedule) == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.5])


def test_one_cycle_by_value() -> None:
    lrs = learning_rates(OneCycle(seed_lr=1.0, total_steps=20))
    up = [0.1 + 0.1 * step for step in range(1, 10)]
    assert lrs[:9] == pytest.approx(up)
    assert lrs[8] == 1.0  # the top, after 45 % of the budget
    assert lrs[9:18] == pytest.approx([1.0 - 0.1 * step for step in range(1, 10)])
    assert lrs[17] == pytest.approx(0.1)  # back at the start, after 90 %
    assert lrs[18:] == pytest.approx([0.01, 0.01])  # a tenth of it for the rest


def test_one_cycle_drops_after_exactly_90_percent() -> None:
    for tens in range(1, 2000):
        schedule = OneCycle(seed_lr=1.0, total_steps=10 * tens)
        assert schedule.lr(9 * tens) == pytest.approx(0.1)
        assert schedule.lr(9 * tens + 1) == pytest.approx(0.01)


def test_inverse_square_root_by_value() -> None:
    lrs = learning_rates(InverseSquareRoot(seed_lr=1.0, total_steps=16, warmup_steps=4))
    assert lrs[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert lrs[15] == pytest.approx(0.5)  # sqrt(4 / 16)
    assert InverseSquareRoot(seed_lr=1.0, total_steps=9).lr(9) == pytest.approx(1 / 3)


def test_constant_by_value() -> None:
    assert learning_rates(Constant(seed_lr=2.0, total_steps=4, warmup_steps=2)) == [1, 2, 2, 2]


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, InverseSquareRoot])
def test_a_warmup_may_fill_the_budget(kind: Any) -> None:
    schedule = kind(seed_lr=1.0, total_steps=4, warmup_steps=4)
    assert learning_rates(schedule) == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("seed_lr", [0.0, -0.1, float("nan"), float("inf")])
def test_a_seed_lr_is_positive_and_finite(seed_lr: float) -> None:
    with pytest.raises(ValueError, match="seed_lr must be positive and finite"):
        Knee(seed_lr=seed_lr, total_steps=10, explore_steps=5)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ({"total_steps": 0, "explore_steps": 0}, "total_steps must be at least 1"),
        ({"total_steps": 10, "explore_steps": -1}, "must not be negative"),
        ({"total_steps": 10, "explore_steps": 8, "warmup_steps": -2}, "must not be negative"),
        (
            {"total_steps": 10, "explore_steps": 8, "warmup_steps": 3},
            r"warmup_steps \+ explore_steps must not exceed total_steps = 10",
        ),
    ],
)
def test_phases_fit_into_the_budget(phases: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Knee(seed_lr=0.1, **phases)


@pytest.mark.parametrize("boundaries", [(0, 5), (5, 5), (7, 5), (-1,)])
def test_step_boundaries_ascend(boundaries: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="boundaries must be positive and ascend"):
        StepDecay(seed_lr=0.1, total_steps=10, boundaries=boundaries)


def test_a_schedule_is_a_frozen_value() -> None:
    knee = Knee(seed_lr=0.1, total_steps=10, explore_steps=5)
    assert knee == Knee(seed_lr=0.1, total_steps=10, explore_steps=5)
    with pytest.raises(FrozenInstanceError):
        knee.seed_lr = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    "schedule",
    [
        Knee(seed_lr=0.1, total_steps=10, explore_steps=5, warmup_steps=1),
        StepDecay(seed_lr=0.1, total_steps=10, boundaries=(5, 7)),
        Linear(seed_lr=0.1, total_steps=10),
        Cosine(seed_lr=0.1, total_steps=10),
        OneCycle(seed_lr=0.1, total_steps=10),
        InverseSquareRoot(seed_lr=0.1, total_steps=10, warmup_steps=2),
        Constant(seed_lr=0.1, total_steps=10),
    ],
    ids=lambda schedule: schedule.name,
)
def test_a_schedule_crosses_a_pipe_as_json(schedule: Schedule) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(plan.Schedule)
    assert adapter.validate_json(adapter.dump_json(schedule)) == schedule


def test_the_schedules_need_no_torch() -> None:
    code = "import sys, json, knee_tune.schedules; print(json.dumps('torch' in sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(output.stdout) is False


@pytest.mark.parametrize(
    ("decay", "left"),
    [
        ("linear", [0.75, 0.5, 0.25]),
        ("1-sqrt", [0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]),
        ("cosine", [0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5]),
        ("exponential", [2 * 0.5**0.25 - 1, 2**0.5 - 1, 2 * 0.5**0.75 - 1]),
        ("power", [0.5625, 0.25, 0.0625]),
    ],
)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_every_decay_by_value(decay: Decay, left: list[float], final: float) -> None:
    knee = Knee(seed_lr=2.0, total_steps=8, explore_steps=4, decay=decay, final=final)
    decayed = [2.0 * (final + (1 - final) * each) for each in (*left, 0.0)]
    assert learning_rates(knee)[3:] == pytest.approx([2.0, *decayed])
    assert knee.lr(8) == 2.0 * final


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_progress_of_a_decay_is_known_from_its_lr(decay: Decay, final: float) -> None:
    knee = Knee(seed_lr=0.3, total_steps=50, explore_steps=10, decay=decay, final=final)
    for step in range(10, 51):
        assert knee.decay_progress_at(knee.lr(step)) == pytest.approx((step - 10) / 40)
    assert knee.decay_progress_at(0.31) is None
    assert Knee(
        seed_lr=0.3, total_steps=50, explore_steps=10, final=0.1
    ).decay_progress_at(0.02) is None  # fmt: skip


def test_a_linear_decay_to_zero_has_the_bits_it_always_had() -> None:
    for total in range(1, 60):
        for explore in range(total):
            knee = Knee(seed_lr=0.0373, total_steps=total, explore_steps=explore)
            for step in range(explore + 1, total + 1):
                assert knee.lr(step) == 0.0373 * (1 - (step - explore) / (total - explore))


def test_a_power_is_of_its_own() -> None:
    knee = Knee(seed_lr=1.0, total_steps=4, explore_steps=0, decay="power", decay_power=3)
    assert knee.lr(2) == 0.125
    assert knee.decay_progress_at(0.125) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "lineal"}, "decay must be one of linear, 1-sqrt, cosine, exponential, power"),
        ({"final": 1.0}, "final must be at least 0 and below 1"),
        ({"decay": "power", "decay_power": 0}, "decay_power must be positive"),
        ({"decay_power": 3}, "only decay 'power' has one"),
    ],
)
def test_a_decay_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Knee(seed_lr=1.0, total_steps=4, explore_steps=0, **fields)


def test_what_is_usual_of_a_decay_is_not_stored() -> None:
    """So that runs and plans that were kept before keep their names and their JSON."""
    adapter: TypeAdapter[Schedule] = TypeAdapter(plan.Schedule)
    usual = Knee(seed_lr=1.0, total_steps=4, explore_steps=2)
    assert list(adapter.dump_python(usual)) == [
        *("seed_lr", "total_steps", "warmup_steps", "explore_steps", "name"),
    ]
    other = Knee(seed_lr=1.0, total_steps=4, explore_steps=2, decay="cosine", final=0.1)
    assert adapter.validate_json(adapter.dump_json(other)) == other
    assert adapter.validate_json(adapter.dump_json(usual)) == usual
