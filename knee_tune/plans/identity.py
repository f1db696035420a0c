"""What makes two training runs, or the trunks of two runs, the same.

:func:`run_identity` is the one list of what decides the bits of a result. Keys, checkpoints and
records all go by it, so what was trained under a key is never trained again. A trunk's key leaves
out the budget, the explore fraction and the kind of decay: warmup and explore do not depend on
them, so one trunk serves every fraction and every budget, and step schedules too.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from knee_tune.config.recipe import task_slug
from knee_tune.plans.plan import Replica, Schedule, TaskFacts, TaskOrder, TrainPlan
from knee_tune.schedules import Exploring
from knee_tune.schedules.schedule import as_stored

_DECIDED_ELSEWHERE = (
    *("epochs", "seed_lr", "warmup_steps", "amp"),
    *("decay", "final", "decay_power"),
    *("script", "steps", "evaluate_every"),
)
"""Fields of a recipe that training reads from its schedule, and from its placement; where a script
lies, for its code is what counts."""


def run_identity(plan: TrainPlan) -> dict[str, Any]:
    """Return all that decides the bits of a run, as JSON has it: equal ones, equal results.

    Not in it: where data, logs and checkpoints are, and which of several devices train it.
    """
    identity = _identity(
        plan,
        plan.facts,
        schedule=plan.schedule,
        replicas=plan.replicas,
        steps_per_evaluation=plan.steps_per_evaluation,
    )
    read_back: dict[str, Any] = json.loads(json.dumps(identity))
    return read_back


def run_key(
    order: TaskOrder,
    facts: TaskFacts,
    *,
    schedule: Schedule,
    replicas: Sequence[Replica] = (),
    steps_per_evaluation: int,
) -> str:
    """Name a training run by its identity, before there is a plan of it."""
    identity = _identity(
        order,
        facts,
        schedule=schedule,
        replicas=replicas,
        steps_per_evaluation=steps_per_evaluation,
    )
    return f"{task_slug(order.task)}-{digest_of(identity)}"


def trunk_key(
    order: TaskOrder,
    facts: TaskFacts,
    *,
    schedule: Exploring,
    replicas: Sequence[Replica] = (),
    steps_per_evaluation: int,
) -> str:
    """Name a trunk: runs of equal keys have the same state at every step up to their knees.

    The ``replicas`` of a fused run that has one all follow its schedule.
    """
    parts = _parts(order, facts, steps_per_evaluation) | {
        "seed_lr": schedule.seed_lr,
        "warmup_steps": schedule.warmup_steps,
    }
    if replicas:
        parts["seeds"] = [each.seed for each in replicas]
    return f"{task_slug(order.task)}-{digest_of(parts)}"


def shared_steps(
    schedule: Exploring, knees: Iterable[int], evaluation_steps: Iterable[int], *, every: int
) -> tuple[int, ...]:
    """The steps of ``knees`` up to the schedule's own at which runs of any budget are the same."""
    measured = list(evaluation_steps)
    own = schedule.knee_step
    return tuple(
        step
        for step in sorted({*knees, own})
        if 0 < step <= own and measured_alike(step, measured, every=every)
    )


def measured_alike(last: int, evaluation_steps: Iterable[int], *, every: int) -> bool:
    """Whether these evaluations are those of every budget up to the step ``last``.

    Near its end a budget shifts its evaluations (see ``TrainPlan.evaluation_steps``), and what is
    measured and kept is part of a run's state.
    """
    return [step for step in evaluation_steps if step <= last] == [*range(every, last + 1, every)]


def digest_of(parts: dict[str, Any]) -> str:
    """Return a short name for what JSON can hold: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _identity(
    order: TaskOrder,
    facts: TaskFacts | None,
    *,
    schedule: Schedule,
    replicas: Sequence[Replica],
    steps_per_evaluation: int,
) -> dict[str, Any]:
    parts = _parts(order, facts, steps_per_evaluation) | {"schedule": as_stored(schedule)}
    if replicas:
        parts["replicas"] = [[each.seed, as_stored(each.schedule)] for each in replicas]
    return parts


def _parts(order: TaskOrder, facts: TaskFacts | None, steps_per_evaluation: int) -> dict[str, Any]:
    """Return what is in the identity of a run and of its trunk."""
    recipe = {name: value for name, value in order.recipe.items() if name not in _DECIDED_ELSEWHERE}
    placement = order.placement
    parts = {
        "task": task_slug(order.task),
        "recipe": recipe,
        "seed": order.seed,
        "world_size": placement.world_size,
        "device": placement.device,
        "amp": placement.amp,
        "compile": placement.compile,
        "steps_per_evaluation": steps_per_evaluation,
    }
    if order.trunk_file is not None:
        parts["trunk_file"] = [order.trunk_file.sha256, order.trunk_file.step]
    if facts is not None:
        parts |= {
            "code": facts.code,
            "cpu": facts.cpu if placement.device == "cpu" else "",
            "threads": facts.threads,
            "data": facts.data_fingerprint,
            "steps_per_epoch": facts.steps_per_epoch,
        }
        if facts.mesh:
            parts["mesh"] = list(facts.mesh)
    return parts
