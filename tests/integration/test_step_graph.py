"""A GPU replays a step, and the run comes out as if every kernel had been launched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from knee_tune.jobs import run_job
from knee_tune.plans.plan import Placement, TrainPlan
from knee_tune.schedules import Knee
from knee_tune.tasks.registry import TASKS
from knee_tune.training import single
from knee_tune.training.single import LAUNCHED_STEPS, StepGraph, replayed
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Done
from tests.integration.odd_tasks import ENTRIES
from tests.integration.runs import Reports, done

STEPS = 24

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("group", "same_shapes"),
    [
        (Group(), True),
        (Group(device=torch.device("cuda", 0)), False),
        (Group(device=torch.device("cuda", 0), world_size=2), True),
    ],
)
def test_graphs_are_for_one_gpu_and_batches_of_one_shape(group: Group, same_shapes: bool) -> None:
    def backward(micro_batches: object) -> Tensor:
        raise AssertionError("not yet")

    assert replayed(backward, group, same_shapes=same_shapes) is backward


def trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, launched: int, accumulate: int
) -> tuple[Done, list[dict[str, float]], dict[str, Tensor]]:
    """A network with BatchNorm and dropout, of which so many steps are launched."""
    monkeypatch.setattr(single, "LAUNCHED_STEPS", launched)
    plan = TrainPlan(
        task="batchnorm",
        recipe={
            "batch_size": 100,
            "accumulate": accumulate,
            "model": {"hidden": [24], "dropout": 0.2},
        },
        seed=5,
        data_dir=folder,
        placement=Placement(device="cuda"),
        log_dir=folder / "logs",
        schedule=Knee(seed_lr=0.2, total_steps=STEPS, warmup_steps=4, explore_steps=10),
        steps_per_evaluation=8,
        checkpoint_dir=folder,
    )
    reports = Reports()
    outcome = done(run_job(plan, Group(device=torch.device("cuda", 0)), reports))
    metrics = [dict(report.metrics) for report in reports]
    return outcome, metrics, load_file(folder / "weights.safetensors")


@needs_gpu
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_replayed_run_is_the_launched_one(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "batchnorm", ENTRIES["batchnorm"])
    replays = 0
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        nonlocal replays
        replays += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    _, told, weights = trained(
        tmp_path / "launched", monkeypatch, launched=STEPS, accumulate=accumulate
    )
    assert replays == 0
    _, told_then, replayed_weights = trained(
        tmp_path / "replayed", monkeypatch, launched=LAUNCHED_STEPS, accumulate=accumulate
    )

    assert replays == STEPS - LAUNCHED_STEPS
    assert told_then == [pytest.approx(metrics, rel=1e-4) for metrics in told]
    for name, weight in weights.items():
        torch.testing.assert_close(replayed_weights[name], weight, rtol=1e-4, atol=1e-5)


@needs_gpu
def test_every_replay_draws_other_random_numbers() -> None:
    kept = torch.zeros(4, device="cuda")

    def backward(micro_batches: Sequence[Any]) -> Tensor:
        return kept.copy_(micro_batches[0] * torch.rand(4, device="cuda"))

    graph = StepGraph(backward)
    drawn = []
    for step in range(LAUNCHED_STEPS + 3):
        torch.cuda.manual_seed(step)
        drawn.append(graph([torch.ones(4, device="cuda")]).tolist())
    expected = []
    for step in range(LAUNCHED_STEPS + 3):
        torch.cuda.manual_seed(step)
        expected.append(torch.rand(4, device="cuda").tolist())
    assert drawn == expected
