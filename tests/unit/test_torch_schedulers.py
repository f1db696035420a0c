"""The schedules as drop-in torch LR schedulers."""

import copy
import gc
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from knee_tune.schedules import (
    Constant,
    ConstantLR,
    Cosine,
    CosineLR,
    InverseSquareRoot,
    InverseSquareRootLR,
    Knee,
    KneeLR,
    Linear,
    LinearLR,
    OneCycle,
    OneCycleLR,
    ScheduleLR,
    StepDecay,
    StepDecayLR,
    learning_rates,
)

TOTAL = 12


def sgd(*seed_lrs: float | torch.Tensor) -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in seed_lrs])


def lrs_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def train(optimizer: Optimizer, scheduler: ScheduleLR, steps: int) -> list[list[float]]:
    """The LRs that ``steps`` updates are made with, per parameter group."""
    used = []
    for _ in range(steps):
        used.append(lrs_of(optimizer))
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [
        (
            partial(KneeLR, explore_steps=5, warmup_steps=3),
            partial(Knee, explore_steps=5, warmup_steps=3),
        ),
        (partial(StepDecayLR, boundaries=(4, 8)), partial(StepDecay, boundaries=(4, 8))),
        (partial(LinearLR, warmup_steps=2), partial(Linear, warmup_steps=2)),
        (partial(CosineLR, warmup_steps=2), partial(Cosine, warmup_steps=2)),
        (OneCycleLR, OneCycle),
        (
            partial(InverseSquareRootLR, warmup_steps=2),
            partial(InverseSquareRoot, warmup_steps=2),
        ),
        (partial(ConstantLR, warmup_steps=2), partial(Constant, warmup_steps=2)),
    ],
)
def test_every_update_has_the_lr_of_the_pure_schedule(
    scheduler: Callable[..., ScheduleLR], schedule: Callable[..., Any]
) -> None:
    optimizer = sgd(0.1, 0.02)
    used = train(optimizer, scheduler(optimizer, total_steps=TOTAL), TOTAL)
    for group, seed_lr in enumerate((0.1, 0.02)):
        expected = learning_rates(schedule(seed_lr=seed_lr, total_steps=TOTAL))
        assert [lrs[group] for lrs in used] == expected


def test_the_first_lr_is_there_at_construction() -> None:
    optimizer = sgd(0.1)
    scheduler = KneeLR(optimizer, total_steps=TOTAL, explore_steps=4, warmup_steps=4)
    assert lrs_of(optimizer) == scheduler.get_last_lr() == [0.1 / 4]


def test_a_frozen_group_stays_frozen() -> None:
    optimizer = sgd(0.1, 0.0)
    used = train(optimizer, KneeLR(optimizer, total_steps=TOTAL, explore_steps=4), TOTAL)
    assert {lrs[1] for lrs in used} == {0.0}


def test_an_lr_tensor_is_written_in_place() -> None:
    lr = torch.tensor(0.5)
    optimizer = Adam([torch.nn.Parameter(torch.ones(1))], lr=lr)
    scheduler = KneeLR(optimizer, total_steps=4, explore_steps=2)
    used = train(optimizer, scheduler, 4)
    assert used == [[0.5], [0.5], [0.25], [0.0]]
    scheduler.load_state_dict({"last_epoch": 2})
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25


@pytest.mark.parametrize("explore_steps", [0, 4, TOTAL])
def test_beyond_the_budget_the_last_lr_stays(explore_steps: int) -> None:
    optimizer = sgd(0.1)
    scheduler = KneeLR(optimizer, total_steps=TOTAL, explore_steps=explore_steps)
    last = train(optimizer, scheduler, TOTAL)[-1]
    assert train(optimizer, scheduler, 2) == [last, last]


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_branch_keeps_its_own_knee(optimizer_first: bool) -> None:
    """The trap: torch's schedulers restore the schedule itself along with the position."""
    optimizer = sgd(0.1, 0.02)
    trunk = KneeLR(optimizer, total_steps=TOTAL, explore_steps=TOTAL)
    train(optimizer, trunk, 4)
    saved = copy.deepcopy((optimizer.state_dict(), trunk.state_dict()))

    optimizer = sgd(0.1, 0.02)
    branch = KneeLR(optimizer, total_steps=TOTAL, explore_steps=4)
    if optimizer_first:
        optimizer.load_state_dict(saved[0])
        branch.load_state_dict(saved[1])
    else:
        branch.load_state_dict(saved[1])
        optimizer.load_state_dict(saved[0])

    assert branch.get_last_lr() == lrs_of(optimizer)
    used = train(optimizer, branch, TOTAL - 4)
    for group, seed_lr in enumerate((0.1, 0.02)):
        knee = Knee(seed_lr=seed_lr, total_steps=TOTAL, explore_steps=4)
        assert [lrs[group] for lrs in used] == learning_rates(knee)[4:]


def test_a_state_of_another_scheduler_brings_the_position_only() -> None:
    other = LambdaLR(sgd(0.7), lambda epoch: 1.0)
    other.last_epoch = 9
    optimizer = sgd(0.1)
    scheduler = KneeLR(optimizer, total_steps=TOTAL, explore_steps=4)
    scheduler.load_state_dict(other.state_dict())
    knee = Knee(seed_lr=0.1, total_steps=TOTAL, explore_steps=4)
    assert lrs_of(optimizer) == [knee.lr(10)]


def test_last_epoch_resumes_as_torch_does() -> None:
    optimizer = sgd(0.1)
    train(optimizer, KneeLR(optimizer, total_steps=TOTAL, explore_steps=4), 6)
    KneeLR(optimizer, total_steps=TOTAL, explore_steps=4, last_epoch=5)
    assert lrs_of(optimizer) == [Knee(seed_lr=0.1, total_steps=TOTAL, explore_steps=4).lr(7)]


def test_a_dropped_scheduler_does_not_write_any_more() -> None:
    optimizer = sgd(0.1)
    scheduler = KneeLR(optimizer, total_steps=TOTAL, explore_steps=4)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.07
    del scheduler
    gc.collect()
    optimizer.load_state_dict(state)
    assert lrs_of(optimizer) == [0.07]


def test_the_state_is_small_and_loads_as_weights_only(tmp_path: Any) -> None:
    scheduler = KneeLR(sgd(0.1), total_steps=TOTAL, explore_steps=4)
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt")
    assert torch.load(tmp_path / "scheduler.pt", weights_only=True) == {"last_epoch": 0}
    pickle.dumps(scheduler._schedule)


def test_a_bad_budget_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="must not exceed total_steps"):
        KneeLR(sgd(0.1), total_steps=10, explore_steps=8, warmup_steps=4)


def test_a_copied_pair_goes_on_by_itself() -> None:
    optimizer = sgd(0.1, 0.02)
    scheduler = KneeLR(optimizer, total_steps=TOTAL, explore_steps=4)
    train(optimizer, scheduler, 6)
    state = copy.deepcopy(optimizer.state_dict())
    copied_optimizer, copied = copy.deepcopy((optimizer, scheduler))
    rest = train(optimizer, scheduler, TOTAL - 6)
    assert train(copied_optimizer, copied, TOTAL - 6) == rest

    copied.load_state_dict({"last_epoch": 6})
    copied_optimizer.load_state_dict(state)  # hooks of the copy: its LRs are rewritten
    assert lrs_of(copied_optimizer) == rest[0]
    assert lrs_of(optimizer) == [0.0, 0.0]


def test_a_copy_before_the_first_step_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    optimizer = sgd(0.1)
    pair = copy.deepcopy((optimizer, KneeLR(optimizer, total_steps=TOTAL, explore_steps=4)))
    train(*pair, TOTAL)
    assert not recwarn.list


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_group_that_is_added_follows_the_schedule_from_its_first_update(
    optimizer_first: bool,
) -> None:
    def with_new_group() -> tuple[SGD, KneeLR]:
        optimizer = sgd(0.1)
        scheduler = KneeLR(optimizer, total_steps=TOTAL, explore_steps=4)
        train(optimizer, scheduler, 6)
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.02})
        return optimizer, scheduler

    optimizer, scheduler = with_new_group()
    optimizer.step()
    assert lrs_of(optimizer) == [
        Knee(seed_lr=lr, total_steps=TOTAL, explore_steps=4).lr(7) for lr in (0.1, 0.02)
    ]
    scheduler.step()
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    rest = train(optimizer, scheduler, 5)

    optimizer, scheduler = with_new_group()
    for restore in sorted((0, 1), reverse=not optimizer_first):
        (optimizer, scheduler)[restore].load_state_dict(saved[restore])
    assert train(optimizer, scheduler, 5) == rest


def test_fractions_are_steps_of_the_budget() -> None:
    by_fraction, by_steps = sgd(0.1), sgd(0.1)
    fractions = KneeLR(by_fraction, total_steps=40, explore_fraction=0.5, warmup_fraction=0.1)
    steps = KneeLR(by_steps, total_steps=40, explore_steps=20, warmup_steps=4)
    assert train(by_fraction, fractions, 40) == train(by_steps, steps, 40)
    with pytest.raises(ValueError, match="either explore_steps or explore_fraction"):
        KneeLR(sgd(0.1), total_steps=40)
    with pytest.raises(ValueError, match="either warmup_steps or warmup_fraction"):
        KneeLR(sgd(0.1), total_steps=4, explore_steps=1, warmup_steps=1, warmup_fraction=0.1)
    with pytest.raises(ValueError, match="explore_fraction must lie between"):
        KneeLR(sgd(0.1), total_steps=40, explore_fraction=20)


def test_a_decay_has_a_shape_and_an_end() -> None:
    optimizer = sgd(0.1)
    scheduler = KneeLR(optimizer, total_steps=12, explore_steps=4, decay="1-sqrt", final=0.1)
    knee = Knee(seed_lr=0.1, total_steps=12, explore_steps=4, decay="1-sqrt", final=0.1)
    assert train(optimizer, scheduler, 12) == [[lr] for lr in learning_rates(knee)]


@pytest.mark.parametrize(("scale", "knee"), [(0.5, 8), (1.0, 4), (1.25, 2), (9.0, 1)])
def test_a_group_may_decay_over_fewer_or_more_steps(scale: float, knee: int) -> None:
    optimizer = sgd(0.1, 0.02)
    optimizer.param_groups[1]["decay_scale"] = scale
    scheduler = KneeLR(optimizer, total_steps=12, explore_steps=3, warmup_steps=1)
    used = train(optimizer, scheduler, 12)
    for group, (seed_lr, steps) in enumerate([(0.1, 4), (0.02, knee)]):
        own = Knee(seed_lr=seed_lr, total_steps=12, explore_steps=steps - 1, warmup_steps=1)
        assert [lrs[group] for lrs in used] == learning_rates(own)
    assert scheduler.knee_step == min(4, knee)


def test_a_decay_scale_outlives_the_state_of_a_trunk_without_one() -> None:
    plain = sgd(0.1)
    trunk = KneeLR(plain, total_steps=12, explore_steps=4)
    train(plain, trunk, 4)
    optimizer = sgd(0.1)
    optimizer.param_groups[0]["decay_scale"] = 0.5
    branch = KneeLR(optimizer, total_steps=12, explore_steps=4)
    branch.load_state_dict(trunk.state_dict())
    optimizer.load_state_dict(plain.state_dict())
    assert train(optimizer, branch, 8)[:5] == [[0.1]] * 4 + [[0.1 * 0.75]]
