"""A study that compares: a small table on digits, trained for real in this process."""

import io
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from knee_tune.cli.summary import print_comparison
from knee_tune.cli.watch import PlainWatcher
from knee_tune.commands import opened
from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.run import RunSummary, run_study
from knee_tune.commands.workers import GroupOptions
from knee_tune.errors import UserError
from knee_tune.plans.plan import AnalysePlan, Plan, TestPlan, TrainPlan
from knee_tune.records.events import StudyFinished, TrialFinished, TrialStarted
from knee_tune.records.study import ComparedRun, StudyRecord
from knee_tune.workers.protocol import Channel, Failure, Outcome
from tests.fake_runner import FakeRunner
from tests.recording import Recording

TABLE = """\
name: small
task: digits
replicates: 2
analyses: [{name: sharpness, iterations: 2, examples: 64}]
compare:
  table: Table 1
  section: "3"
  rows:
    - {schedule: step, epochs: 10, seed_lr: 0.05, boundaries: [3, 6], metrics: {}}
    - {schedule: step, epochs: 10, seed_lr: 0.05, boundaries: [6, 8], metrics: {}}
    - {schedule: linear, epochs: 5, seed_lr: 0.05, metrics: {test_accuracy: 95.0}}
"""

STEPS = 50
"""Of an epoch."""

POINTS = [(row, seed) for row in range(3) for seed in (1, 2)]


class Ranks(FakeRunner):
    """``before`` may raise, or answer in place of a job."""

    def __init__(self, before: Callable[[Plan], Outcome | None] = lambda plan: None) -> None:
        super().__init__()
        self._before = before

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        return self._before(plan) or super().job(plan, channel)

    def count(self, kind: type[Plan]) -> int:
        """How many jobs there were of a kind."""
        return sum(isinstance(plan, kind) for plan in self.jobs)


class Bench:
    """One home, in which the study is run again and again; its own storage unless told."""

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, *, storage: str | None = None
    ) -> None:
        self.home, self._monkeypatch, self.said = home, monkeypatch, ""
        self._storage = storage

    def run(
        self,
        ranks: Ranks,
        *,
        table: str = TABLE,
        trunk_cache: int = GroupOptions.trunk_cache,
        timeout: float | None = None,
        **asked: Any,
    ) -> RunSummary:
        file = self.home.with_name("small.yaml")
        file.write_text(table)
        self._monkeypatch.setattr(
            "knee_tune.commands.workers.ForkserverRunner", lambda *_, **__: ranks
        )
        output = io.StringIO()
        console = Console(file=output, width=200)
        try:
            return run_study(
                resolve_asked(study=str(file), **{"scale": 0.2} | asked),
                Places.of(Home(self.home), storage=self._storage, tracking_uri="none"),
                GroupOptions(device="cpu", trunk_cache=trunk_cache),
                timeout=timeout,
                register=True,
                watch=lambda start: nullcontext(PlainWatcher(console, start)),
            )
        finally:
            self.said = output.getvalue()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path / "home", monkeypatch)


@dataclass(frozen=True)
class Finished:
    """A comparison that was trained to its end in one go."""

    home: Path
    record: StudyRecord
    ranks: Ranks


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home, ranks = tmp_path_factory.mktemp("finished") / "home", Ranks()
    with pytest.MonkeyPatch.context() as patch:
        return Finished(home, Bench(home, patch).run(ranks).record, ranks)


@pytest.fixture
def after(finished: Finished, bench: Bench) -> Bench:
    """A bench whose home has the finished comparison in it."""
    shutil.copytree(finished.home, bench.home)
    return bench


def by_point(record: StudyRecord) -> dict[tuple[int, int], ComparedRun]:
    return {(run.row, run.seed): run for run in record.compared}


def test_every_row_is_trained_tested_and_analysed_with_every_seed(finished: Finished) -> None:
    record, ranks = finished.record, finished.ranks
    runs = by_point(record)
    assert list(runs) == POINTS
    for run in record.compared:
        assert run.state == "complete"
        assert {"valid_accuracy", "test_accuracy", "train_loss", "sharpness"} <= run.metrics.keys()
    assert (record.name, record.trials, record.best) == ("small-scale0.2", (), None)
    assert [runs[row, 1].budget for row in range(3)] == [2 * STEPS, 2 * STEPS, STEPS]
    assert runs[0, 1].metrics["valid_loss"] != runs[0, 2].metrics["valid_loss"]
    kinds = (TrainPlan, TestPlan, AnalysePlan)
    assert [ranks.count(kind) for kind in kinds] == [6, 6, 6]


def test_rows_of_one_seed_lr_share_their_trunk(finished: Finished) -> None:
    record = finished.record
    runs = by_point(record)
    branch = round(3 * 0.2 * STEPS)  # where the row that explores less leaves it
    for seed in (1, 2):
        assert (runs[0, seed].steps.reused, runs[1, seed].steps.reused) == (branch, 0)
    assert record.steps.independent == 2 * 5 * STEPS
    assert record.steps.trained == record.steps.independent - 2 * branch
    assert record.steps.reused == 2 * branch


def test_a_row_is_the_same_with_and_without_its_trunk(finished: Finished, bench: Bench) -> None:
    shared = by_point(finished.record)
    alone = by_point(bench.run(Ranks(), trunk_cache=0, replicates=1).record)
    assert {point: run.metrics for point, run in alone.items()} == {
        point: shared[point].metrics for point in alone
    }
    assert all(run.steps.reused == 0 for run in alone.values())


def interrupting(kind: type[Plan], *, at: int) -> Callable[[Plan], None]:
    """Ctrl-C before the job of a kind that is the ``at``-th."""
    seen = 0

    def before(plan: Plan) -> None:
        nonlocal seen
        seen += isinstance(plan, kind)
        if isinstance(plan, kind) and seen == at:
            raise KeyboardInterrupt

    return before


@pytest.mark.parametrize("kind", [TrainPlan, TestPlan, AnalysePlan])
def test_an_interrupted_comparison_goes_on_and_measures_nothing_twice(
    bench: Bench, kind: type[Plan]
) -> None:
    interrupted = Ranks(interrupting(kind, at=2))
    with pytest.raises(KeyboardInterrupt):
        bench.run(interrupted, replicates=1)
    rest = Ranks()
    record = bench.run(rest, replicates=1).record
    assert list(by_point(record)) == [(0, 1), (1, 1), (2, 1)]
    assert all(run.state == "complete" for run in record.compared)
    for each in (TrainPlan, TestPlan, AnalysePlan):
        broken_off = 1 if each is kind else 0
        assert interrupted.count(each) + rest.count(each) == 3 + broken_off
    assert record.steps.trained + record.steps.reused == record.steps.independent


@pytest.fixture
def drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Bench]:
    """Two machines that share a storage."""
    storage = f"sqlite:///{tmp_path}/shared.db"
    one, other = (Bench(tmp_path / name, monkeypatch, storage=storage) for name in ("one", "other"))
    return one, other


def meanwhile(kind: type[Plan], act: Callable[[], object]) -> Callable[[Plan], None]:
    """What another driver does while this one is at its first job of a kind."""
    seen = False

    def before(plan: Plan) -> None:
        nonlocal seen
        if isinstance(plan, kind) and not seen:
            seen = True
            act()

    return before


@pytest.mark.parametrize("homes", [1, 2])
def test_two_drivers_train_and_test_every_run_once_between_them(
    drivers: tuple[Bench, Bench], homes: int
) -> None:
    one, other = drivers
    other.home = one.home if homes == 1 else other.home
    theirs = Ranks()
    ours = Ranks(meanwhile(TestPlan, lambda: other.run(theirs)))
    record = one.run(ours).record
    assert list(by_point(record)) == POINTS
    assert {run.state for run in record.compared} == {"complete"}
    for kind in (TrainPlan, TestPlan, AnalysePlan):
        assert (ours.count(kind), theirs.count(kind)) == (1, 5)
    assert "another driver still trains 1 of these runs" in other.said
    assert one.said.count("done by another driver: test_") == 5
    assert record.steps.trained + record.steps.reused == record.steps.independent
    assert record.steps.recorded == 0


def test_a_driver_leaves_the_trunk_of_another_one_for_the_last(
    drivers: tuple[Bench, Bench],
) -> None:
    """Otherwise it would wait for that trunk in the same home, and train it again in another."""
    one, other = drivers
    theirs = Ranks()
    one.run(Ranks(meanwhile(TrainPlan, lambda: other.run(theirs))))
    trained = [plan for plan in theirs.jobs if isinstance(plan, TrainPlan)]
    assert [(plan.schedule.name, plan.seed) for plan in trained] == [
        ("linear", 1),
        ("step", 2),
        ("step", 2),
        ("linear", 2),
        ("step", 1),
    ]


def test_what_another_driver_breaks_off_or_fails_at_is_taken_over(
    drivers: tuple[Bench, Bench],
) -> None:
    one, other = drivers
    theirs = Ranks(failing(TrainPlan, "linear"))
    broken = Ranks(interrupting(TrainPlan, at=1))

    def act() -> None:
        with pytest.raises(KeyboardInterrupt):
            other.run(broken)
        other.run(theirs)

    ours = Ranks(meanwhile(TrainPlan, act))
    record = one.run(ours).record
    assert {run.state for run in record.compared} == {"complete"}
    tried = [(plan.schedule.name, plan.seed) for plan in ours.jobs if isinstance(plan, TrainPlan)]
    assert tried == [("step", 1), ("linear", 1), ("linear", 2)]


def test_a_finished_comparison_is_answered_from_what_is_kept(
    finished: Finished, after: Bench
) -> None:
    again = Ranks()
    assert after.run(again).record.compared == finished.record.compared
    assert [type(plan).__name__ for plan in again.jobs] == ["DescribePlan"]


def test_another_study_with_the_same_rows_trains_nothing(after: Bench, finished: Finished) -> None:
    other = Ranks()
    record = after.run(other, name="other").record
    assert other.count(TrainPlan) == 0
    assert (record.steps.trained, record.steps.recorded) == (0, record.steps.independent)
    assert {point: run.metrics for point, run in by_point(record).items()} == {
        point: run.metrics for point, run in by_point(finished.record).items()
    }


def test_a_timeout_leaves_the_rest_to_the_next_command(bench: Bench) -> None:
    ranks = Ranks()
    assert bench.run(ranks, timeout=0.0, replicates=1).record.compared == ()
    assert ranks.count(TrainPlan) == 0
    assert "runs that are left: 3; --timeout ended the comparison before them" in bench.said


def test_a_row_that_diverges_ends_nobody_else(bench: Bench) -> None:
    table = TABLE.replace("epochs: 5, seed_lr: 0.05", "epochs: 5, seed_lr: 1.0e+9")
    record = bench.run(Ranks(), table=table, replicates=1).record
    runs = by_point(record)
    assert [runs[row, 1].state for row in range(3)] == ["complete", "complete", "pruned"]
    assert runs[2, 1].reason.startswith("diverged")
    again = Ranks()
    assert bench.run(again, table=table, replicates=1).record.compared == record.compared
    assert again.count(TrainPlan) == 0


def shown(record: StudyRecord) -> str:
    """What people see of it."""
    output = io.StringIO()
    print_comparison(Console(file=output, width=200), record)
    return output.getvalue()


def failing(kind: type[Plan], row_schedule: str) -> Callable[[Plan], Outcome | None]:
    """Jobs of a kind fail where people can put it right; train jobs of one schedule only."""

    def before(plan: Plan) -> Outcome | None:
        one = not isinstance(plan, TrainPlan) or plan.schedule.name == row_schedule
        if isinstance(plan, kind) and one:
            return Failure(kind="user_error", rank=0, message="out of luck")
        return None

    return before


@pytest.mark.parametrize(
    ("kind", "state", "reason", "tried"),
    [
        (TrainPlan, "failed", "out of luck", 1),
        (TestPlan, "failed", "test: out of luck", 0),
        (AnalysePlan, "complete", "sharpness: out of luck", 0),
    ],
)
def test_what_failed_is_kept_with_its_reason_and_tried_again(
    bench: Bench, kind: type[Plan], state: str, reason: str, tried: int
) -> None:
    record = bench.run(Ranks(failing(kind, "linear")), replicates=1).record
    linear = by_point(record)[2, 1]
    assert (linear.state, linear.reason) == (state, reason)
    assert len(record.compared) == 3
    assert f"linear 0.05, 5 epochs, seed 1: {reason}" in shown(record)
    again = Ranks()
    record = bench.run(again, replicates=1).record
    assert {(run.state, run.reason) for run in record.compared} == {("complete", "")}
    assert all("sharpness" in run.metrics for run in record.compared)
    assert again.count(TrainPlan) == tried


def test_a_table_that_changed_is_another_study(after: Bench) -> None:
    for table, what in (
        (TABLE.replace("[6, 8]", "[6, 7]"), "other compare.rows"),
        (TABLE.replace("iterations: 2", "iterations: 3"), "analyses"),
    ):
        with pytest.raises(UserError, match=f"it was made with .*{what}.*choose another"):
            after.run(Ranks(), table=table)


def test_rows_that_cannot_be_planned_leave_nothing_behind(bench: Bench) -> None:
    table = TABLE.replace("boundaries: [3, 6], metrics", "boundaries: [3, 4], metrics")
    with pytest.raises(UserError, match="two of its boundaries come to the same step"):
        bench.run(Ranks(), table=table, scale=0.005)
    assert not (bench.home / "optuna.db").exists()


def test_people_see_the_papers_numbers_beside_ours(finished: Finished) -> None:
    text = shown(finished.record)
    assert "Table 1 on digits at 0.2 times the epochs: 6 of 6 runs, 3 rows with 2 random" in text
    header, _, _, linear = text.splitlines()[2:6]
    assert header.split() == [
        "setting",
        "seeds",
        "test_accuracy:",
        "paper",
        "ours",
        "sharpness:",
        "paper",
        "ours",
    ]
    assert linear.split()[:6] == ["linear", "0.05,", "5", "epochs", "2", "95"]


class Tracker(Recording):
    """Takes events and has nothing to send."""

    def flush(self, timeout: float | None = None) -> int:
        return 0

    def close(self, timeout: float | None = None) -> int:
        return 0


def test_the_tracked_run_has_what_was_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker()
    monkeypatch.setattr(opened, "open_tracker", lambda **_: tracker)
    record = bench.run(Ranks(), replicates=1).record
    started = {event.key: event for event in tracker.of_kind(TrialStarted)}
    assert {key: (event.name, event.schedule) for key, event in started.items()} == {
        "row-0-1": ("step 0.05, boundaries 3, 6 of 10 epochs, seed 1", "step"),
        "row-1-1": ("step 0.05, boundaries 6, 8 of 10 epochs, seed 1", "step"),
        "row-2-1": ("linear 0.05, 5 epochs, seed 1", "linear"),
    }
    ended = {event.key: event for event in tracker.of_kind(TrialFinished)}
    assert ended.keys() == started.keys()
    for run in record.compared:
        metrics = ended[f"row-{run.row}-{run.seed}"].metrics
        assert metrics["final_valid_accuracy"] == run.metrics["valid_accuracy"]
        assert metrics["test_accuracy"] == run.metrics["test_accuracy"]
        assert metrics["sharpness"] == run.metrics["sharpness"]
    assert tracker.of_kind(StudyFinished)[-1].metrics["steps_trained"] == record.steps.trained
