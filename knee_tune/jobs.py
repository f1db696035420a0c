"""The entry of every rank: one plan in, one job done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from knee_tune.analysis.lr_range import lr_range
from knee_tune.analysis.minimum import analyse
from knee_tune.errors import UserError, disk_trouble
from knee_tune.plans.plan import (
    SCRIPT,
    AnalysePlan,
    DescribePlan,
    LRRangePlan,
    Plan,
    TaskFacts,
    TestPlan,
    TrainPlan,
)
from knee_tune.schedules import Phased
from knee_tune.scripts.job import run_script
from knee_tune.scripts.watched import run_watched
from knee_tune.tasks.base import FusableTask, Task
from knee_tune.tasks.registry import task_entry
from knee_tune.training.fused import FusedModels, why_unfusable
from knee_tune.training.learner import Learner, evaluate, non_finite
from knee_tune.training.loop import TrainingRun
from knee_tune.training.optimizer import optimizer_of
from knee_tune.training.sharded import mesh_of
from knee_tune.training.sharded_model import model_of, sharded_by
from knee_tune.training.trunk_file import load_trunk
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Done


def run_job(plan: Plan, group: Group, channel: Channel) -> Done:
    """Do the plan's job on this rank; the answer of rank 0 becomes the group's outcome."""
    if plan.task == SCRIPT:
        return run_script(plan, group, channel)
    task = task_entry(plan.task).build(plan.recipe, data_dir=plan.data_dir, seed=plan.seed)
    watched = replace(group, alive=lambda: channel.progress(0))
    match plan:
        case TrainPlan():
            run = task_run(task, plan, group, channel)
            return run_watched(task, run) if plan.watched else run.run()
        case TestPlan():
            model = finished_model(task, plan.weights, group)
            metrics = evaluate(
                task, model, watched, placement=plan.placement, split="test", final=True
            )
            if lost := non_finite(metrics):
                raise UserError(
                    f"{plan.weights}: non-finite {lost} with these weights; choose another trial"
                )
            return Done(state="complete", result={"metrics": metrics})
        case AnalysePlan():
            model = finished_model(task, plan.weights, group)
            measured = analyse(task, plan, model, group, channel)
            if lost := non_finite(measured):
                raise UserError(
                    f"{plan.weights}: non-finite {lost} with these weights; choose others"
                )
            return Done(state="complete", result={"metrics": measured})
        case LRRangePlan():
            lrs, losses = lr_range(task, plan, group, on_step=channel.progress)
            return Done(state="complete", step=len(losses), result={"lrs": lrs, "losses": losses})
        case DescribePlan():
            fingerprint, examples = task.describe()
            model = task.build_model()
            optimizer = optimizer_of(task, model)  # what it lacks shows before a study is made
            if plan.trunk_file is not None:
                load_trunk(plan.trunk_file, model, optimizer)
            kinds = {type(task), type(task.recipe), *map(type, model.modules())}
            modules = {base.__module__ for kind in kinds for base in kind.__mro__}
            parameters = sum(p.numel() for p in model.parameters())
            if task.shards and group.world_size > 1:
                model = sharded_by(task, model, group)
            facts = TaskFacts(
                steps_per_epoch=task.steps_per_epoch(group),
                data_fingerprint=fingerprint,
                parameters=parameters,
                examples=examples,
                modules=tuple(sorted(modules)),
                cpu=torch.backends.cpu.get_cpu_capability(),
                threads=torch.get_num_threads(),
                unfusable=why_unfusable(task),
                gpus=torch.cuda.device_count(),
                mesh=mesh_of(model),
            )
            return Done(state="complete", result=facts.model_dump())


def task_run(task: Task[Any], plan: TrainPlan, group: Group, channel: Channel) -> TrainingRun:
    """Return the run of ``plan``, where it starts: of a single model, or of the plan's replicas."""
    task.phase_ends = plan.schedule.ends if isinstance(plan.schedule, Phased) else ()

    def learner(group: Group) -> Learner:
        if not plan.replicas:
            return model_of(task, plan, group)
        if not isinstance(task, FusableTask):
            raise TypeError(f"{type(task).__name__} has replicas in its plan, but does not fuse")
        return FusedModels(task, plan, group)

    return TrainingRun(task.recipe, plan, group, channel, learner)


def finished_model(task: Task[Any], weights: Path, group: Group) -> nn.Module:
    """Build the task's model with these weights; UserError if it cannot have them."""
    model = task.build_model().to(group.device)
    try:
        load_model(model, weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        if disk_trouble(error):
            raise
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise UserError(
            f"{weights}: no weights of this task's model ({reason}); "
            "give a file of the same task and recipe"
        ) from error
    return model
