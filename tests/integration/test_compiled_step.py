"""``--compile``: the training step's model is compiled, and nothing else of a run changes.

A stand-in wraps the model as ``torch.compile`` does; the compiler itself takes up to a minute.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Decision, Done, Report
from knee_tune.planning.plan import Placement, TrainPlan
from knee_tune.schedules import Knee
from knee_tune.tasks.registry import TASKS
from knee_tune.training.compiled import compiled
from knee_tune.worker.job import run_job
from tests.integration.odd_tasks import ENTRIES
from tests.integration.runs import done, same

BATCH, STEPS = 100, 24
GPU = torch.device("cuda", 0)


class Reports(list[Report]):
    """A line to a driver in the same process."""

    def report(self, report: Report) -> Decision:
        self.append(report)
        return Decision(stop=False)

    def progress(self, step: int) -> None:
        pass

    def line(self, text: str) -> None:
        pass


class Compiler:
    """What it was asked to compile, and the sizes of the batches that went through it."""

    def __init__(self) -> None:
        self.modes: list[str] = []
        self.batches: list[int] = []

    def __call__(self, model: nn.Module, *, mode: str) -> nn.Module:
        self.modes.append(mode)
        return Wrapped(model, self.batches)


class Wrapped(nn.Module):
    """Its parameters have other names than the model's, as those of a compiled model have."""

    def __init__(self, model: nn.Module, batches: list[int]) -> None:
        super().__init__()
        self._orig_mod, self._batches = model, batches

    def forward(self, rows: Tensor) -> Tensor:
        self._batches.append(len(rows))
        scores: Tensor = self._orig_mod(rows)
        return scores


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Stands in for ``torch.compile``."""
    ours = Compiler()
    monkeypatch.setattr(torch, "compile", ours)
    return ours


def trained(folder: Path, *, compiles: bool) -> tuple[Done, Reports, dict[str, Tensor]]:
    """How a network with BatchNorm and dropout trains."""
    plan = TrainPlan(
        task="batchnorm",
        recipe={"batch_size": BATCH, "model": {"hidden": [24], "dropout": 0.2}},
        seed=5,
        data_dir=folder,
        placement=Placement(compile=compiles),
        log_dir=folder / "logs",
        schedule=Knee(seed_lr=0.2, total_steps=STEPS, warmup_steps=4, explore_steps=10),
        steps_per_evaluation=8,
        checkpoint_dir=folder,
    )
    reports = Reports()
    outcome = done(run_job(plan, Group(), reports))
    return outcome, reports, load_file(folder / "weights.safetensors")


def test_a_compiled_run_is_the_bare_one(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "batchnorm", ENTRIES["batchnorm"])
    bare, told, weights = trained(tmp_path / "bare", compiles=False)
    assert compiler.modes == []
    other, told_then, other_weights = trained(tmp_path / "compiled", compiles=True)

    assert compiler.modes == ["default"]
    assert compiler.batches == [BATCH] * STEPS  # evaluations use the bare model
    assert [report.metrics for report in told_then] == [report.metrics for report in told]
    assert other.result["metrics"] == bare.result["metrics"]
    assert same(other_weights, weights)


@pytest.mark.parametrize(
    ("group", "accumulate", "same_shapes", "mode"),
    [
        (Group(device=GPU), 1, True, "reduce-overhead"),
        (Group(device=GPU), 1, False, "default"),
        (Group(device=GPU), 2, True, "default"),
        (Group(device=GPU, world_size=2), 1, True, "default"),
        (Group(), 1, True, "default"),
    ],
)
def test_graphs_are_for_one_gpu_and_one_backward_pass_per_step(
    group: Group, accumulate: int, same_shapes: bool, mode: str, compiler: Compiler
) -> None:
    compiled(nn.Linear(2, 2), group, accumulate=accumulate, same_shapes=same_shapes)
    assert compiler.modes == [mode]
