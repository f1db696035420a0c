"""``--compile``: the training step's model is compiled, and nothing else of a run changes.

A stand-in wraps the model as ``torch.compile`` does; the compiler itself takes up to a minute.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from knee_tune.jobs import run_job
from knee_tune.plans.plan import Placement, TrainPlan
from knee_tune.schedules import Knee
from knee_tune.tasks.registry import TASKS
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Done
from tests.integration.odd_tasks import ENTRIES
from tests.integration.runs import Reports, done, same

BATCH, STEPS = 100, 24


class Compiler:
    """How often it was asked, and the sizes of the batches that went through what it made."""

    def __init__(self) -> None:
        self.calls = 0
        self.batches: list[int] = []

    def __call__(self, model: nn.Module) -> nn.Module:
        self.calls += 1
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
    assert compiler.calls == 0
    other, told_then, other_weights = trained(tmp_path / "compiled", compiles=True)

    assert compiler.calls == 1
    assert compiler.batches == [BATCH] * STEPS  # evaluations use the bare model
    assert [report.metrics for report in told_then] == [report.metrics for report in told]
    assert other.result["metrics"] == bare.result["metrics"]
    assert same(other_weights, weights)
