"""Replicas that train as one batched model come out as they would one by one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from knee_tune import jobs
from knee_tune.plans.plan import ENTRY, Placement, Replica, Schedule, TrainPlan, TrunkPlan
from knee_tune.schedules import Cosine, Knee
from knee_tune.tasks.tabular.recipe import DigitsRecipe, MlpSize
from knee_tune.tasks.tabular.task import DigitsTask
from knee_tune.training import loop
from knee_tune.training.fused import why_unfusable
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import QUIET, Channel, Decision, Done, Report
from tests.integration.runs import done

STEPS = 24
EVALUATIONS = [8, 16, 24]
RECIPE: dict[str, Any] = {"batch_size": 100, "model": {"hidden": [24]}}


def knee(seed_lr: float = 0.2, explore: int = 10) -> Knee:
    return Knee(seed_lr=seed_lr, total_steps=STEPS, warmup_steps=4, explore_steps=explore)


GRID = [
    Replica(seed=seed, schedule=knee(seed_lr, explore))
    for seed_lr in (0.05, 0.2)
    for explore in (0, 8, 20)
    for seed in (1, 2, 3)
]
"""Six trunks with three branches each."""


class Line(Channel):
    """A line to a driver in the same process, which answers with ``decide``."""

    def __init__(self, decide: Callable[[Report], Decision]) -> None:
        self._decide = decide
        self.reports: list[Report] = []

    def report(self, report: Report) -> Decision:
        self.reports.append(Report.model_validate_json(report.model_dump_json()))
        return self._decide(report)

    def progress(self, step: int) -> None: ...

    def line(self, text: str) -> None: ...


def go_on(report: Report) -> Decision:
    return Decision(stop=False)


def train(
    plan: TrainPlan, decide: Callable[[Report], Decision] = go_on
) -> tuple[Done, list[Report]]:
    line = Line(decide)
    return done(jobs.run_job(plan, Group(), line)), line.reports


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MakePlan = Callable[..., TrainPlan]


@pytest.fixture
def plan(tmp_path: Path) -> MakePlan:
    def make(
        name: str, replicas: Sequence[Replica], *, fused: bool = True, nproc: int = 1, **recipe: Any
    ) -> TrainPlan:
        return TrainPlan(
            task="digits",
            recipe=DigitsRecipe(**{**RECIPE, **recipe}).model_dump(mode="json"),
            seed=replicas[0].seed,
            data_dir=tmp_path,
            log_dir=tmp_path / f"logs-{name}",
            placement=Placement(world_size=nproc),
            schedule=replicas[0].schedule,
            replicas=tuple(replicas) if fused else (),
            steps_per_evaluation=8,
            checkpoint_dir=tmp_path / name,
        )

    return make


def assert_alike(path: str | None, other: str | Path | None) -> None:
    """Two files with weights, equal up to the rounding of float32."""
    assert path is not None
    assert other is not None
    weights, others = load_file(path), load_file(other)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=1e-5)


RECIPES = [
    {},
    {"optimizer": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}},
    {"optimizer": {"name": "adamw", "weight_decay": 0.1}},
    {"optimizer": {"name": "radam", "weight_decay": 0.1}},
    {"optimizer": {"name": "nadam", "weight_decay": 0.1}},
    {"optimizer": {"name": "adamw", "weight_decay": 0.1, "weight_decay_on": "matrices"}},
    {"clip_norm": 0.5},
    {"accumulate": 3},
    {"keep": "best"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(recipe) or "sgd")
def test_every_replica_is_the_run_of_its_own(plan: MakePlan, recipe: dict[str, Any]) -> None:
    some = GRID[1::2]
    fused, reports = train(plan("fused", some, **recipe))

    assert [report.step for report in reports] == EVALUATIONS
    for index, (replica, ended) in enumerate(zip(some, fused.replicas, strict=True)):
        alone, alone_reports = train(plan(f"alone-{index}", [replica], fused=False, **recipe))
        assert ended.state == "complete"
        assert ended.metrics == pytest.approx(alone.result["metrics"], rel=1e-4, abs=0.12)
        assert_alike(ended.weights, alone.result["weights"])
        for report, other in zip(reports, alone_reports, strict=True):
            mine = {name: values[index] for name, values in report.replicas.items()}
            assert mine == pytest.approx(other.metrics, rel=1e-4, abs=0.12)


def test_ranking_is_the_one_of_runs_one_by_one(plan: MakePlan) -> None:
    fused, _ = train(plan("fused", GRID))
    losses = [each.metrics["valid_loss"] for each in fused.replicas]
    alone = [
        train(plan(f"alone-{i}", [each], fused=False))[0].result["metrics"]["valid_loss"]
        for i, each in enumerate(GRID)
    ]
    assert sorted(range(len(GRID)), key=losses.__getitem__) == sorted(
        range(len(GRID)), key=alone.__getitem__
    )


def test_a_trunk_is_trained_once(plan: MakePlan) -> None:
    fused, _ = train(plan("fused", GRID))
    firsts = {
        (r.seed, r.schedule): each.first_step for r, each in zip(GRID, fused.replicas, strict=True)
    }

    for seed in (1, 2, 3):
        for seed_lr in (0.05, 0.2):
            assert firsts[seed, knee(seed_lr, 20)] == 0
            assert firsts[seed, knee(seed_lr, 8)] == 4 + 8
            assert firsts[seed, knee(seed_lr, 0)] == 4  # they share the warmup


def test_other_schedules_share_what_they_have_in_common(plan: MakePlan) -> None:
    schedules: list[Schedule] = [knee(), Cosine(seed_lr=0.2, total_steps=STEPS, warmup_steps=4)]
    fused, _ = train(plan("fused", [Replica(seed=1, schedule=each) for each in schedules]))
    assert sorted(each.first_step for each in fused.replicas) == [0, 4]


def test_the_report_has_every_replica_and_their_means(plan: MakePlan) -> None:
    _, reports = train(plan("fused", GRID[:3]))
    columns = reports[0].replicas
    assert set(columns) == {"lr", "train_loss", "valid_loss", "valid_accuracy"}
    assert len(columns["valid_loss"]) == 3
    losses = [loss for loss in columns["valid_loss"] if loss is not None]
    assert reports[0].metrics["valid_loss"] == pytest.approx(sum(losses) / 3)


def test_one_that_diverges_leaves_the_others_alone(plan: MakePlan) -> None:
    wild = Replica(seed=1, schedule=knee(1e20))
    fused, reports = train(plan("fused", [GRID[0], wild, GRID[5]]))
    quiet, _ = train(plan("quiet", [GRID[0], GRID[5]]))

    lost = fused.replicas[1]
    assert (lost.state, lost.step) == ("diverged", 8)
    assert lost.reason == "non-finite train_loss, valid_loss"
    assert reports[0].replicas["valid_loss"][1] is None
    assert_alike(fused.replicas[0].weights, quiet.replicas[0].weights)
    assert_alike(fused.replicas[2].weights, quiet.replicas[1].weights)


def test_it_goes_on_from_its_checkpoint(plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole, told = train(plan("whole", GRID, keep="best"))
    broken = plan("broken", GRID, keep="best")

    class Interrupted(Exception): ...

    def die(report: Report) -> Decision:
        if report.step == 16:
            raise Interrupted
        return Decision(stop=False)

    with pytest.raises(Interrupted):
        train(broken, die)
    rest, told_again = train(broken)

    assert rest.first_step == 8
    assert [report.step for report in told_again] == EVALUATIONS
    for first, second in zip(whole.replicas, rest.replicas, strict=True):
        assert second.first_step == first.first_step
        assert_alike(second.weights, first.weights)
    assert told_again[0].replicas == told[0].replicas


def test_replicas_spread_over_ranks(plan: MakePlan) -> None:
    here, _ = train(plan("here", GRID))
    runner = ForkserverRunner(ENTRY, preload=[ENTRY.partition(":")[0]])
    try:
        there = done(runner.run(plan("there", GRID, nproc=2), QUIET))
    finally:
        runner.close()
    assert [each.first_step for each in there.replicas] == [
        each.first_step for each in here.replicas
    ]
    for one, two in zip(here.replicas, there.replicas, strict=True):
        assert two.metrics == pytest.approx(one.metrics, rel=1e-4, abs=0.12)
        assert_alike(two.weights, one.weights)


def test_a_trial_of_several_seeds_branches_from_its_trunk_on_disk(
    plan: MakePlan, tmp_path: Path
) -> None:
    def branch(name: str, explore: int) -> TrainPlan:
        replicas = [Replica(seed=seed, schedule=knee(0.2, explore)) for seed in (1, 2, 3)]
        trunk = TrunkPlan(
            key="t", folder=tmp_path / "trunk", checkpoint_steps=(12,) if explore >= 8 else ()
        )
        return plan(name, replicas).model_copy(update={"trunk": trunk})

    train(branch("long", 16))
    branched, reports = train(branch("short", 8))
    alone, alone_reports = train(branch("alone", 8).model_copy(update={"trunk": None}))

    assert branched.first_step == 12
    assert [report.step for report in reports] == EVALUATIONS
    assert reports[0].replicas == alone_reports[0].replicas
    for one, two in zip(branched.replicas, alone.replicas, strict=True):
        assert_alike(one.weights, two.weights)


class BatchNorm(DigitsTask):
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, self.classes))


class OwnOptimizer(DigitsTask):
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)


class LooksAtItsLoss(DigitsTask):
    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, float]:
        loss, count = super().loss(model, batch)
        return loss * (1 if loss.item() > 1 else 2), count


@pytest.mark.parametrize(
    ("task", "recipe", "reason"),
    [
        (DigitsTask, {}, ""),
        (DigitsTask, {"model": MlpSize(dropout=0.1)}, "Dropout (2) would draw other masks"),
        (BatchNorm, {}, "BatchNorm1d (1) keeps running statistics"),
        (LooksAtItsLoss, {}, "vmap"),
        (DigitsTask, {"optimizer": {"name": "muon"}}, "muon updates whole tensors"),
        (DigitsTask, {"optimizer": {"name": "adafactor"}}, "adafactor updates whole tensors"),
        (OwnOptimizer, {}, "an optimizer of its own"),
    ],
)
def test_what_cannot_be_fused_says_why(
    task: type[DigitsTask], recipe: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    said = why_unfusable(task(DigitsRecipe(**recipe), data_dir=tmp_path, seed=1))
    assert (reason in said) if reason else not said
