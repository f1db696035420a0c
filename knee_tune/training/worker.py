"""The entry of every rank: one plan in, one job done."""

from dataclasses import replace

import torch
from safetensors.torch import load_model

from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Channel, Done
from knee_tune.errors import UserError
from knee_tune.planning.plan import DescribePlan, Plan, TaskFacts, TestPlan, TrainPlan
from knee_tune.tasks.registry import task_entry
from knee_tune.training.evaluation import evaluate, non_finite
from knee_tune.training.fingerprint import code_fingerprint
from knee_tune.training.fusable import why_unfusable
from knee_tune.training.loop import TrainingRun


def run_job(plan: Plan, group: Group, channel: Channel) -> Done:
    """Do the plan's job on this rank; the answer of rank 0 becomes the group's outcome."""
    task = task_entry(plan.task).build(plan.recipe, data_dir=plan.data_dir, seed=plan.seed)
    match plan:
        case TrainPlan():
            return TrainingRun(task, plan, group, channel).run()
        case TestPlan():
            model = task.build_model().to(group.device)
            load_model(model, plan.weights)
            watched = replace(group, alive=lambda: channel.progress(0))
            metrics = evaluate(task, model, watched, split="test", final=True)
            if lost := non_finite(metrics):
                raise UserError(
                    f"{plan.weights}: non-finite {lost} with these weights; choose another trial"
                )
            return Done(state="complete", result={"metrics": metrics})
        case DescribePlan():
            fingerprint, examples = task.describe()
            facts = TaskFacts(
                steps_per_epoch=task.steps_per_epoch(group),
                data_fingerprint=fingerprint,
                parameters=sum(p.numel() for p in task.build_model().parameters()),
                examples=examples,
                code=code_fingerprint(task),
                threads=torch.get_num_threads(),
                unfusable=why_unfusable(task),
                gpus=torch.cuda.device_count(),
            )
            return Done(state="complete", result=facts.model_dump())
