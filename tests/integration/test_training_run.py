"""One training run from plan to weights: resumed, measured, stopped, lost. With 1 and 2 ranks."""

import errno
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from knee_tune import jobs
from knee_tune.errors import UserError
from knee_tune.plans.plan import (
    ENTRY,
    DescribePlan,
    Placement,
    Plan,
    Schedule,
    TaskFacts,
    TestPlan,
    TrainPlan,
    checkpoint_paths,
)
from knee_tune.schedules import Constant, Cosine, Knee, learning_rates
from knee_tune.tasks.registry import TASKS, task_entry
from knee_tune.training import loop
from knee_tune.training.checkpoint import WEIGHTS, load_checkpoint, run_fingerprint
from knee_tune.training.learner import evaluate
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Callbacks, Channel, Decision, Failure, Outcome, Report
from tests.integration import odd_tasks
from tests.integration.runs import done, living_ranks, same

STEPS = 24
RECIPE: dict[str, Any] = {"batch_size": 100, "model": {"hidden": [24], "dropout": 0.2}}
KNEE = Knee(seed_lr=0.2, total_steps=STEPS, warmup_steps=4, explore_steps=10)
EVALUATIONS = [8, 16, 24]

OnReport = Callable[[Report], bool]
"""What the driver does with a report; True to stop."""


def never(_: Report) -> bool:
    return False


def stop_at(step: int) -> OnReport:
    return lambda report: report.step == step


# Two ways to run a plan


class DirectLine(Channel):
    """A line to a driver in the same process."""

    def __init__(self, on_report: OnReport) -> None:
        self.on_report = on_report
        self.said: list[str] = []

    def report(self, report: Report) -> Decision:
        return Decision(stop=self.on_report(Report.model_validate_json(report.model_dump_json())))

    def progress(self, step: int) -> None:
        pass

    def line(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def forkserver() -> Iterator[ForkserverRunner]:
    runner = ForkserverRunner(
        "tests.integration.odd_tasks:run_job",
        preload=["tests.integration.odd_tasks", "sklearn.datasets"],
    )
    yield runner
    runner.close()


@pytest.fixture(autouse=True)
def _as_in_a_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, entry in odd_tasks.ENTRIES.items():
        monkeypatch.setitem(TASKS, name, entry)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RunPlan = Callable[..., tuple[Outcome, list[Report]]]
"""Runs a plan; its outcome and what was reported."""


@pytest.fixture
def run(request: pytest.FixtureRequest) -> RunPlan:
    """One rank in this process, or two forked ones, as the plan wants it."""

    def run_plan(plan: Plan, on_report: OnReport = never) -> tuple[Outcome, list[Report]]:
        reports: list[Report] = []

        def listen(report: Report) -> bool:
            reports.append(report)
            return on_report(report)

        if plan.placement.world_size == 1:
            return jobs.run_job(plan, Group(), DirectLine(listen)), reports
        runner: ForkserverRunner = request.getfixturevalue("forkserver")
        callbacks = Callbacks(on_report=lambda report: Decision(stop=listen(report)))
        outcome = runner.run(plan, callbacks)
        return outcome, reports

    return run_plan


MakePlan = Callable[..., TrainPlan]


@pytest.fixture
def plan(tmp_path: Path) -> MakePlan:
    """A plan of :data:`STEPS` steps in a folder of its own; keywords change its recipe."""

    def make(
        folder: str = "run",
        *,
        task: str = "digits",
        ranks: int = 1,
        schedule: Schedule = KNEE,
        every: int = 8,
        amp: bool = False,
        stall_timeout: float = 60,
        **recipe: Any,
    ) -> TrainPlan:
        return TrainPlan(
            task=task,
            recipe={**RECIPE, **recipe},
            seed=5,
            data_dir=tmp_path,
            placement=Placement(world_size=ranks, stall_timeout=stall_timeout, amp=amp),
            log_dir=tmp_path / f"logs-{folder}",
            schedule=schedule,
            steps_per_evaluation=every,
            checkpoint_dir=tmp_path / folder,
        )

    return make


def end_of(plan: TrainPlan) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """All that a finished run leaves behind: step, model and optimizer, kept weights."""
    newest = checkpoint_paths(plan.checkpoint_dir)[0]
    found = load_checkpoint(newest, run=run_fingerprint(plan))
    state = {name: found.state[name] for name in found.state.keys() - {"history"}}
    return found.step, state, load_file(plan.checkpoint_dir / WEIGHTS)


def measured(reports: Sequence[Report]) -> dict[int, Mapping[str, float]]:
    """Metrics by step. A step that is told twice is told the same."""
    metrics: dict[int, Mapping[str, float]] = {}
    for report in reports:
        assert metrics.setdefault(report.step, report.metrics) == report.metrics
    return metrics


# Resuming

VARIANTS = pytest.mark.parametrize(
    "variant",
    [
        pytest.param({}, id="1 rank"),
        pytest.param({"task": "batchnorm", "keep": "best"}, id="1 rank, BatchNorm"),
        pytest.param({"optimizer": {"name": "adam"}, "accumulate": 2}, id="1 rank, Adam"),
        pytest.param({"optimizer": {"name": "radam"}, "clip_norm": 1.0}, id="1 rank, RAdam"),
        pytest.param({"ranks": 2, "accumulate": 2}, id="2 ranks"),
        pytest.param({"ranks": 2, "task": "batchnorm", "keep": "best"}, id="2 ranks, BatchNorm"),
    ],
)


@VARIANTS
def test_a_resumed_run_is_the_uninterrupted_one(
    variant: dict[str, Any], plan: MakePlan, run: RunPlan
) -> None:
    whole, broken = plan("whole", **variant), plan("broken", **variant)
    outcome, reports = run(whole)

    first, told = run(broken, stop_at(8))
    assert done(first).model_dump(exclude={"result", "replicas"}) == {
        "type": "done",
        "state": "stopped",
        "step": 8,
        "first_step": 0,
        "reason": "",
    }
    second, told_then = run(broken)

    assert (done(second).step, done(second).steps_trained) == (STEPS, STEPS - 8)
    assert done(second).state == done(outcome).state == "complete"
    assert done(second).result["metrics"] == done(outcome).result["metrics"]
    assert measured(told + told_then) == measured(reports)
    assert list(measured(reports)) == EVALUATIONS
    assert same(end_of(broken), end_of(whole))


class InterruptedLine(DirectLine):
    """A line to a driver that is interrupted while the run is at some step."""

    def __init__(self, at: int) -> None:
        super().__init__(never)
        self._at, self._step = at, 0

    def progress(self, step: int) -> None:
        self._step = step

    @property
    def interrupted(self) -> bool:
        return self._step >= self._at


def test_an_interrupted_run_loses_no_step(plan: MakePlan, run: RunPlan) -> None:
    whole, broken = plan("whole"), plan("broken")
    outcome, reports = run(whole)

    first = jobs.run_job(broken, Group(), InterruptedLine(at=11))
    assert (first.state, first.step) == ("stopped", 11)  # in the midst between two evaluations
    second, told = run(broken)

    assert (done(second).first_step, done(second).step) == (11, STEPS)
    assert done(second).result["metrics"] == done(outcome).result["metrics"]
    assert measured(told) == measured(reports)
    assert same(end_of(broken), end_of(whole))


def test_ranks_save_their_state_when_the_driver_is_interrupted(
    plan: MakePlan, run: RunPlan
) -> None:
    ours = plan(ranks=2)

    def interrupt(report: Report) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ours, interrupt)
    assert [path.name for path in checkpoint_paths(ours.checkpoint_dir)] == ["step-00000008"]


def test_buffers_are_in_the_state(plan: MakePlan, run: RunPlan) -> None:
    ours = plan(task="batchnorm")
    run(ours)

    _, state, weights = end_of(ours)
    assert state["learner"]["model"]["1.num_batches_tracked"] == STEPS
    assert weights["1.running_mean"].abs().sum() > 0


def test_a_killed_group_goes_on_from_its_checkpoint(plan: MakePlan, run: RunPlan) -> None:
    whole, broken = plan("whole", ranks=2), plan("broken", ranks=2)
    _, reports = run(whole)
    _, told = run(broken, stop_at(8))

    def kill(report: Report) -> bool:
        if report.step == 16:
            living_ranks()[-1].kill()
        return False

    outcome, told_then = run(broken, kill)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.rank) == ("signal", 1)

    outcome, told_last = run(broken)
    assert done(outcome).steps_trained == STEPS - 8  # what came after step 8 was not saved
    assert [report.step for report in told_last] == EVALUATIONS
    assert measured(told + told_then + told_last) == measured(reports)
    assert same(end_of(broken), end_of(whole))


def test_a_damaged_checkpoint_costs_time_only(plan: MakePlan, run: RunPlan) -> None:
    whole, broken = plan("whole"), plan("broken")
    run(whole)
    for step in (8, 16):
        run(broken, stop_at(step))
    (broken.checkpoint_dir / "step-00000016" / "manifest.json").write_text("")

    line = DirectLine(never)
    outcome = jobs.run_job(broken, Group(), line)

    assert done(outcome).steps_trained == STEPS - 8
    (said,) = line.said
    assert "step-00000016: no good, starting from an earlier checkpoint" in said
    assert same(end_of(broken), end_of(whole))


def test_a_checkpoint_that_could_not_be_read_costs_time_only(
    plan: MakePlan, run: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = plan("whole"), plan("broken")
    run(whole)
    run(broken, stop_at(8))
    load = torch.load

    def stale(path: Path, **options: Any) -> Any:
        if path.parent.name == "step-00000008":
            raise OSError(errno.ESTALE, "Stale file handle")
        return load(path, **options)

    monkeypatch.setattr(torch, "load", stale)
    line = DirectLine(never)
    outcome = jobs.run_job(broken, Group(), line)
    assert done(outcome).steps_trained == STEPS
    (said,) = line.said
    assert said.endswith("Stale file handle")
    assert same(end_of(broken), end_of(whole))


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": 2},
        {"batch_size": 80},
        {"schedule": Cosine(seed_lr=0.2, total_steps=STEPS)},
    ],
    ids=["world size", "recipe", "schedule"],
)
def test_another_run_in_the_same_folder_starts_afresh(
    changes: dict[str, Any], plan: MakePlan, run: RunPlan
) -> None:
    alone, after = plan("alone", **changes), plan("shared", **changes)
    outcome, reports = run(alone)
    run(plan("shared"))

    _, told = run(after, stop_at(8))
    assert [path.name for path in after.checkpoint_dir.glob("step-*")] == ["step-00000008"]
    resumed, told_then = run(after)

    assert done(resumed).steps_trained == STEPS - 8
    assert done(resumed).result["metrics"] == done(outcome).result["metrics"]
    assert measured(told + told_then) == measured(reports)
    assert same(end_of(after), end_of(alone))


def test_a_finished_run_is_measured_again_only(plan: MakePlan, run: RunPlan) -> None:
    outcome, reports = run(plan())
    again, told = run(plan())

    assert told == reports
    assert done(again).steps_trained == 0
    assert done(again).result == done(outcome).result


@pytest.mark.parametrize(
    ("seconds", "saved"), [(0.0, ["step-00000008"]), (math.inf, [])], ids=["old", "young"]
)
def test_checkpoints_while_it_goes_on(
    seconds: float,
    saved: list[str],
    plan: MakePlan,
    run: RunPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that goes on is saved only where the last checkpoint is old enough."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    ours = plan()
    found: list[list[str]] = []

    def look(_: Report) -> bool:
        found.append([path.name for path in ours.checkpoint_dir.glob("step-*")])
        return False

    run(ours, look)

    assert found[:2] == [[], saved]
    assert end_of(ours)[0] == STEPS


def test_ranks_must_see_the_same_checkpoints(plan: MakePlan, run: RunPlan) -> None:
    class Elsewhere(Group):
        """As if another rank, on another machine, did not see the files of this one."""

        def gather(self, value: Any) -> list[Any]:
            return [value, ("No such file or directory", False)]

    run(plan(), stop_at(8))

    with pytest.raises(UserError, match="file system that all their machines share"):
        jobs.run_job(plan(), Elsewhere(), DirectLine(never))


# The arithmetic of a step


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"accumulate": 3}, {"ranks": 2}], ids=str)
def test_how_a_batch_is_cut_does_not_matter(
    changes: dict[str, Any], plan: MakePlan, run: RunPlan
) -> None:
    model = {"hidden": [24], "dropout": 0.0}
    whole = plan("whole", clip_norm=0.5, model=model)
    cut = plan("cut", clip_norm=0.5, model=model, **changes)
    _, reports = run(whole)
    _, told = run(cut)

    for ours, theirs in zip(measured(told).values(), measured(reports).values(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, weights in end_of(whole)[2].items():
        torch.testing.assert_close(end_of(cut)[2][name], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("schedule", [KNEE, Cosine(seed_lr=0.1, total_steps=STEPS)])
def test_every_step_has_the_lr_of_the_schedule(
    schedule: Schedule, plan: MakePlan, run: RunPlan
) -> None:
    written: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: written.extend(group["lr"] for group in optimizer.param_groups)
    )
    try:
        run(plan(schedule=schedule), stop_at(16))
        _, told = run(plan(schedule=schedule))
    finally:
        hook.remove()

    assert written == learning_rates(schedule)
    assert [report.metrics["lr"] for report in told] == [schedule.lr(step) for step in EVALUATIONS]


def test_bf16_is_for_the_forward_pass_alone(plan: MakePlan, run: RunPlan) -> None:
    """Weights and metrics stay float32, near those of a run without."""
    _, reports = run(plan("full"))
    _, told = run(plan("half", amp=True))

    assert all(
        weight.dtype == torch.float32 for weight in end_of(plan("half", amp=True))[2].values()
    )
    ours, theirs = told[0].metrics["train_loss"], reports[0].metrics["train_loss"]
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.05)


# What is measured and kept


@pytest.mark.parametrize(("every", "steps"), [(10, [10, 24]), (8, [8, 16, 24]), (100, [24])])
def test_the_last_step_is_evaluated(
    every: int, steps: list[int], plan: MakePlan, run: RunPlan
) -> None:
    outcome, reports = run(plan(every=every))

    assert [report.step for report in reports] == steps
    assert {report.total_steps for report in reports} == {STEPS}
    assert reports[-1].metrics.keys() == {"lr", "train_loss", "valid_loss", "valid_accuracy"}
    assert done(outcome).result["metrics"].keys() == {"valid_loss", "valid_accuracy"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_final_metrics_are_those_of_the_kept_weights(
    keep: str, ranks: int, plan: MakePlan, run: RunPlan
) -> None:
    rough = Constant(seed_lr=2.0, total_steps=STEPS)
    ours = plan(task="batchnorm", keep=keep, ranks=ranks, schedule=rough, every=1)
    outcome, reports = run(ours)
    best = max(reports, key=lambda report: report.metrics["valid_accuracy"])
    assert best.step < STEPS  # or this test would show nothing

    kept = best if keep == "best" else reports[-1]
    final = done(outcome).result["metrics"]
    assert final == {name: kept.metrics[name] for name in final}
    assert done(outcome).result["weights"] == str(ours.checkpoint_dir / WEIGHTS)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_mean_of_the_last_evaluations_is_kept(ranks: int, plan: MakePlan, run: RunPlan) -> None:
    def asked(folder: str, keep: str = "average-3") -> TrainPlan:
        return plan(folder, task="batchnorm", keep=keep, ranks=ranks, every=6)

    whole = asked("whole")
    final = done(run(whole)[0]).result["metrics"]

    models = []
    for step in (12, 18, 24):
        stopped = asked(f"at-{step}", keep="last")
        run(stopped, stop_at(step))
        newest = load_checkpoint(
            checkpoint_paths(stopped.checkpoint_dir)[0], run=run_fingerprint(stopped)
        )
        models.append(newest.state["learner"]["model"])
    kept = load_file(whole.checkpoint_dir / WEIGHTS)
    for name in ("0.weight", "1.running_var"):
        torch.testing.assert_close(kept[name], sum(model[name] for model in models) / 3)
    assert kept["1.num_batches_tracked"] == models[-1]["1.num_batches_tracked"]

    broken = asked("broken")
    run(broken, stop_at(18))
    assert done(run(broken)[0]).result["metrics"] == final
    assert same(end_of(broken), end_of(whole))


def test_a_resumed_run_knows_its_best(plan: MakePlan, run: RunPlan) -> None:
    rough = Constant(seed_lr=2.0, total_steps=STEPS)
    whole, broken = (
        plan(folder, keep="best", schedule=rough, every=1) for folder in ("whole", "broken")
    )
    outcome, reports = run(whole)
    best = max(reports, key=lambda report: report.metrics["valid_accuracy"])
    assert best.step < STEPS - 1

    run(broken, stop_at(best.step))
    resumed, _ = run(broken)

    assert done(resumed).result["metrics"] == done(outcome).result["metrics"]
    assert same(end_of(broken), end_of(whole))


def test_a_stopped_run_has_no_result(plan: MakePlan, run: RunPlan) -> None:
    outcome, reports = run(plan(ranks=2), stop_at(16))

    assert (done(outcome).state, done(outcome).step) == ("stopped", 16)
    assert done(outcome).result == {}
    assert [report.step for report in reports] == [8, 16]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("every", "ends"), [(8, 8), (1000, loop.FINITE_CHECK_STEPS)])
def test_a_lost_loss_ends_the_run(
    every: int, ends: int, ranks: int, plan: MakePlan, run: RunPlan
) -> None:
    wild = Constant(seed_lr=1e20, total_steps=1000)
    outcome, reports = run(plan(ranks=ranks, schedule=wild, every=every))

    assert (done(outcome).state, done(outcome).step) == ("diverged", ends)
    assert "non-finite" in done(outcome).reason
    assert reports == []


def test_a_run_with_a_lost_final_metric_has_diverged(plan: MakePlan, run: RunPlan) -> None:
    outcome, reports = run(plan(task="lost", ranks=2))

    assert (done(outcome).state, done(outcome).step) == ("diverged", STEPS)
    assert done(outcome).reason == "non-finite valid_loss of the final evaluation"
    assert [report.step for report in reports] == EVALUATIONS


def test_a_long_evaluation_is_no_stall(plan: MakePlan, run: RunPlan) -> None:
    outcome, _ = run(plan(task="slow", ranks=2, stall_timeout=3))

    assert done(outcome).state == "complete"


# The other jobs


def test_the_entry_is_the_job() -> None:
    module, _, function = ENTRY.partition(":")

    assert getattr(importlib.import_module(module), function) is jobs.run_job


@pytest.mark.parametrize("ranks", [1, 2])
def test_describe(ranks: int, plan: MakePlan, run: RunPlan) -> None:
    ours = plan(ranks=ranks)
    order = DescribePlan(**ours.model_dump(include=set(DescribePlan.model_fields) - {"job"}))
    outcome, _ = run(order)

    facts = TaskFacts.model_validate(done(outcome).result)
    assert facts.steps_per_epoch == 8
    assert facts.parameters == 64 * 24 + 24 + 24 * 10 + 10
    assert facts.examples == {"train": 800, "valid": 900, "test": 97}
    assert facts.data_fingerprint
    assert {"knee_tune.tasks.tabular.task", "knee_tune.tasks.tabular.recipe"} <= set(facts.modules)
    assert facts.threads == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_test(ranks: int, plan: MakePlan, run: RunPlan) -> None:
    ours = plan(task="batchnorm", ranks=ranks)
    outcome, _ = run(ours)
    weights = Path(done(outcome).result["weights"])
    shared = set(TestPlan.model_fields) - {"job", "weights"}
    order = TestPlan(**ours.model_dump(include=shared), weights=weights)
    outcome, reports = run(order)

    task = task_entry("batchnorm").build(ours.recipe, data_dir=ours.data_dir, seed=0)
    model = task.build_model()
    load_model(model, weights)
    expected = evaluate(task, model, Group(), placement=order.placement, split="test", final=True)
    assert done(outcome).result == {"metrics": pytest.approx(expected, rel=1e-6)}
    assert reports == []


def test_test_of_weights_that_are_no_good(plan: MakePlan, run: RunPlan) -> None:
    ours = plan(task="digits")
    outcome, _ = run(ours)
    weights = Path(done(outcome).result["weights"])
    shared = set(TestPlan.model_fields) - {"job", "weights", "task"}
    order = TestPlan(**ours.model_dump(include=shared), task="lost", weights=weights)

    with pytest.raises(UserError, match=r"weights\.safetensors: non-finite test_loss"):
        run(order)
