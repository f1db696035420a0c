"""Which runs are the same, which share a trunk, and where a trunk's state may be shared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from knee_tune.plans.identity import digest_of, run_identity, run_key, shared_steps, trunk_key
from knee_tune.plans.plan import Placement, TaskFacts, TaskOrder, TrainPlan, TrunkPlan
from knee_tune.schedules import Cosine, Knee

ORDER = TaskOrder(
    task="digits",
    recipe={"epochs": 2, "seed_lr": 0.1, "warmup_steps": 0, "batch_size": 16},
    seed=1,
    data_dir=Path("data"),
    log_dir=Path("logs"),
)
FACTS = TaskFacts(steps_per_epoch=50, data_fingerprint="d", parameters=1, examples={}, code="c")
KNEE = Knee(seed_lr=0.1, total_steps=100, explore_steps=50, warmup_steps=10)

OTHER_ORDERS: Mapping[str, Mapping[str, Any]] = {
    "seed": {"seed": 2},
    "recipe": {"recipe": ORDER.recipe | {"batch_size": 8}},
    "model": {"recipe": ORDER.recipe | {"model": {"hidden": [8]}}},
    "world size": {"placement": Placement(world_size=2)},
    "device": {"placement": Placement(device="cuda")},
    "arithmetic": {"placement": Placement(device="cuda", amp=True)},
    "compiler": {"placement": Placement(compile=True)},
    "task": {"task": "other"},
}
OTHER_FACTS: Mapping[str, Mapping[str, Any]] = {
    "data": {"data_fingerprint": "e"},
    "code": {"code": "d"},
    "kind of CPU": {"cpu": "AVX2"},
    "threads": {"threads": 2},
    "steps per epoch": {"steps_per_epoch": 51},
}


def trunk(order: TaskOrder = ORDER, facts: TaskFacts = FACTS, schedule: Knee = KNEE) -> str:
    return trunk_key(order, facts, schedule=schedule, steps_per_evaluation=50)


def test_budget_and_explore_fraction_are_not_in_the_key_of_a_trunk() -> None:
    longer = Knee(seed_lr=0.1, total_steps=300, explore_steps=20, warmup_steps=10)
    other_budget = ORDER.model_copy(update={"recipe": ORDER.recipe | {"epochs": 6}})
    assert trunk(other_budget, schedule=longer) == trunk()


def test_what_the_placement_has_decided_is_asked_of_the_placement() -> None:
    """The recipe's wish for bf16 changes nothing on a CPU."""
    wish = ORDER.model_copy(update={"recipe": ORDER.recipe | {"amp": True}})
    assert trunk(wish) == trunk()


def test_a_gpu_computes_the_same_beside_any_cpu() -> None:
    on_gpu = ORDER.model_copy(update={"placement": Placement(device="cuda")})
    assert trunk(on_gpu, facts=FACTS.model_copy(update={"cpu": "AVX2"})) == trunk(on_gpu)


def test_where_things_lie_is_in_no_key() -> None:
    elsewhere = ORDER.model_copy(update={"data_dir": Path("e"), "log_dir": Path("f")})
    assert trunk(elsewhere) == trunk()


@pytest.mark.parametrize("change", OTHER_ORDERS)
def test_another_order_has_another_trunk(change: str) -> None:
    assert trunk(ORDER.model_copy(update=OTHER_ORDERS[change])) != trunk()


@pytest.mark.parametrize("change", OTHER_FACTS)
def test_other_facts_have_another_trunk(change: str) -> None:
    assert trunk(facts=FACTS.model_copy(update=OTHER_FACTS[change])) != trunk()


@pytest.mark.parametrize("change", [{"seed_lr": 0.2}, {"warmup_steps": 11}])
def test_another_way_to_the_knee_has_another_trunk(change: dict[str, Any]) -> None:
    fields = {"seed_lr": 0.1, "total_steps": 100, "explore_steps": 50, "warmup_steps": 10}
    assert trunk(schedule=Knee(**(fields | change))) != trunk()


def test_the_key_of_a_run_tells_schedules_apart() -> None:
    schedules = (
        KNEE,
        Knee(seed_lr=0.1, total_steps=100, explore_steps=51, warmup_steps=10),
        Knee(seed_lr=0.1, total_steps=101, explore_steps=50, warmup_steps=10),
        Cosine(seed_lr=0.1, total_steps=100, warmup_steps=10),
    )
    keys = {run_key(ORDER, FACTS, schedule=one, steps_per_evaluation=50) for one in schedules}
    assert len(keys) == len(schedules)
    assert all(key.startswith("digits-") for key in keys)


@pytest.mark.parametrize("change", [*OTHER_ORDERS, *OTHER_FACTS])
def test_the_key_of_a_run_is_the_identity_of_its_plan(change: str) -> None:
    """What has another key has another identity: of its checkpoints, and of its record."""
    order = ORDER.model_copy(update=OTHER_ORDERS.get(change, {}))
    facts = FACTS.model_copy(update=OTHER_FACTS.get(change, {}))

    def plan(order: TaskOrder, facts: TaskFacts) -> TrainPlan:
        return TrainPlan(
            **dict(order),
            schedule=KNEE,
            steps_per_evaluation=50,
            facts=facts,
            checkpoint_dir=Path("anywhere"),
        )

    key = run_key(order, facts, schedule=KNEE, steps_per_evaluation=50)
    assert key == f"{order.task}-{digest_of(run_identity(plan(order, facts)))}"
    assert run_identity(plan(order, facts)) != run_identity(plan(ORDER, FACTS))


def shared(explore: int, knees: list[int], *, total: int, every: int) -> tuple[int, ...]:
    schedule = Knee(seed_lr=0.1, total_steps=total, explore_steps=explore)
    plan = TrainPlan(
        **dict(ORDER), schedule=schedule, steps_per_evaluation=every, checkpoint_dir=Path("c")
    )
    return shared_steps(schedule, knees, plan.evaluation_steps(), every=every)


def test_a_trunk_is_kept_at_every_knee_that_it_passes() -> None:
    assert shared(70, [0, 20, 50, 70, 90], total=100, every=25) == (20, 50, 70)


def test_a_knee_off_the_grid_is_kept_too() -> None:
    assert shared(33, [20, 50], total=100, every=25) == (20, 33)


def test_without_explore_there_is_no_trunk() -> None:
    assert shared(0, [0, 20], total=100, every=25) == ()


def test_nothing_is_shared_where_a_budget_shifts_its_evaluations() -> None:
    # The evaluation after step 99 is left out, because step 100 is the last one.
    assert shared(100, [66, 98, 99, 100], total=100, every=33) == (66, 98)


def test_a_kept_plan_says_knots_and_is_read_in_both_spellings() -> None:
    trunk = TrunkPlan(key="k", folder=Path("t"), checkpoint_steps=(4, 8))
    kept = trunk.model_dump(mode="json")
    assert kept == {"key": "k", "folder": "t", "knots": [4, 8]}
    other = {"key": "k", "folder": "t", "checkpoint_steps": [4, 8]}
    assert TrunkPlan.model_validate(kept) == TrunkPlan.model_validate(other) == trunk
