"""A trunk that was trained elsewhere: its branches, and files that are no such trunk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from knee_tune import save_trunk
from knee_tune.commands.horizons import read_trunk
from knee_tune.config.study import TrunkFile
from knee_tune.errors import UserError
from knee_tune.jobs import task_run
from knee_tune.plans.plan import TaskFacts, TaskOrder, TrainPlan
from knee_tune.plans.planner import knee_schedule, train_plan
from knee_tune.tasks.registry import task_entry
from knee_tune.training.loop import TrainingRun
from knee_tune.training.single import SingleModel
from knee_tune.training.trunk_file import load_trunk
from knee_tune.workers.group import Group
from tests.integration.runs import Reports, done, same

RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 3, "batch_size": 100, "model": {"hidden": [16], "dropout": 0.2}},
    "gpt": {
        "epochs": 3,
        "steps_per_epoch": 8,
        "warmup_steps": 2,
        "batch_size": 8,
        "valid_bytes": 400,
        "model": {"layers": 1, "width": 16, "heads": 2, "context": 16, "dropout": 0.1},
    },
}
TRUNK = 8
"""Steps of the trunk: an epoch of either."""


class Place:
    """Runs of one task below a folder, each alone."""

    def __init__(self, task: str, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.recipe = task_entry(task).recipe_type().model_validate(RECIPES[task])

    def run(self, name: str, *, begins: TrunkFile | None = None) -> TrainingRun:
        """Half of the budget explores."""
        order = TaskOrder(
            task=self.task,
            recipe=self.recipe.model_dump(mode="json"),
            seed=1,
            data_dir=self.folder / "data",
            log_dir=self.folder,
            trunk_file=begins,
        )
        facts = TaskFacts(steps_per_epoch=8, data_fingerprint="", parameters=0, examples={})
        knee = knee_schedule(self.recipe, facts, seed_lr=0.05, explore_fraction=0.5)
        plan: TrainPlan = train_plan(
            order, self.recipe, facts, schedule=knee, checkpoint_dir=self.folder / name
        )
        plan.checkpoint_dir.mkdir()
        task = task_entry(self.task).build(plan.recipe, data_dir=plan.data_dir, seed=plan.seed)
        return task_run(task, plan, Group(), Reports())

    def weights(self, name: str) -> Any:
        return load_file(self.folder / name / "weights.safetensors")


@pytest.mark.parametrize("task", RECIPES)
def test_a_branch_of_a_saved_trunk_is_the_uninterrupted_run(task: str, tmp_path: Path) -> None:
    place, file = Place(task, tmp_path), tmp_path / "stable.safetensors"
    whole = place.run("whole")
    assert isinstance(whole.learner, SingleModel)
    for step in whole.steps():
        whole.learner.update(step)
        if step == TRUNK:
            save_trunk(file, whole.learner.model, whole.learner.optimizer)
    uninterrupted = done(whole.finish())

    branch = done(place.run("branch", begins=read_trunk(f"{file}@{TRUNK}")).run())
    assert branch.first_step == TRUNK
    assert branch.result["metrics"] == uninterrupted.result["metrics"]
    assert same(place.weights("branch"), place.weights("whole"))


def small(kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> Any:
    """A model and its optimizer, trained for a step."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def refusal(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    with pytest.raises(UserError) as error:
        load_trunk(read_trunk(f"{path}@8"), model, optimizer)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_alone_are_a_trunk_too(tmp_path: Path) -> None:
    model, _ = small()
    other, fresh = small()
    fresh.state.clear()
    save_trunk(tmp_path / "f", model)
    load_trunk(read_trunk(f"{tmp_path / 'f'}@8"), other, fresh)
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert not fresh.state


def test_what_is_no_trunk_of_a_model_is_said_in_one_line(tmp_path: Path) -> None:
    model, adamw = small()
    path = tmp_path / "f"
    torch.save(model.state_dict(), path)
    assert "no safetensors file" in refusal(path, model, adamw)
    path.write_bytes(b"")
    assert "no safetensors file" in refusal(path, model, adamw)
    save_trunk(path, model[0])
    assert "it has no '0.weight' (and 3 more)" in refusal(path, model, adamw)
    save_file({**model.state_dict(), "ema": torch.ones(1)}, path)
    assert "it has 'ema', which the model has not" in refusal(path, model, adamw)
    save_file({**model.state_dict(), "0.weight": torch.ones(2, 5)}, path)
    assert "'0.weight': 2x5, not 2x3" in refusal(path, model, adamw)
    save_trunk(path, *small(torch.optim.RAdam))
    assert "its optimizer is RAdam, this one AdamW" in refusal(path, model, adamw)


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    model, adamw = small()
    path = tmp_path / "f"
    save_trunk(path, model)
    before = read_trunk(f"{path}@8")
    save_trunk(path, small()[0])
    assert read_trunk(f"{path}@8").sha256 != before.sha256
    with pytest.raises(UserError, match="has changed since"):
        load_trunk(before, model, adamw)
    path.unlink()
    with pytest.raises(UserError, match="is gone"):
        load_trunk(before, model, adamw)


@pytest.mark.parametrize("text", ["f", "f@", "@5", "f@0", "f@1.5", "f@last"])
def test_a_trunk_is_named_with_its_step(text: str) -> None:
    with pytest.raises(UserError, match="expected FILE@STEP"):
        read_trunk(text)
