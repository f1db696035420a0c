"""Smith's LR range test (appendix A, figure 4): which LRs a task can be trained with."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from knee_tune.analysis.range_curve import exploded
from knee_tune.plans.plan import LRRangePlan, TaskOrder, TrainPlan
from knee_tune.schedules.schedule import LRRange
from knee_tune.tasks.base import Task
from knee_tune.training.sharded_model import model_of
from knee_tune.workers.group import Group


def lr_range(
    task: Task[Any], plan: LRRangePlan, group: Group, *, on_step: Callable[[int], None]
) -> tuple[list[float], list[float]]:
    """The LR and the mean training loss of every step, until the last one or an explosion.

    Trains a fresh model as every run does, but for the LR, which grows from step to step. Only
    finite losses are listed.
    """
    schedule = LRRange(seed_lr=plan.low, high=plan.high, total_steps=plan.steps)
    order = TrainPlan(
        **{name: getattr(plan, name) for name in TaskOrder.model_fields},
        schedule=schedule,
        steps_per_evaluation=plan.steps,
        checkpoint_dir=plan.log_dir,  # nothing is kept
    )
    learner = model_of(task, order, replace(group, alive=lambda: on_step(0)))
    learner.model.train()
    lrs: list[float] = []
    losses: list[float] = []
    for step in range(1, plan.steps + 1):
        learner.update(step)
        on_step(step)
        loss = learner.take_train_loss()
        if not math.isfinite(loss):
            break
        lrs.append(schedule.lr(step))
        losses.append(loss)
        if exploded(losses):
            break
    return lrs, losses
