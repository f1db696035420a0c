"""The driver with a real study in SQLite and real training, ranks replaced by this process."""

import math
import os
import signal
import sqlite3
import subprocess
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import optuna
import pytest
from optuna.pruners import ThresholdPruner
from optuna.trial import TrialState
from sqlalchemy import text

from knee_tune.errors import HomeGoneError, MachineError, UserError
from knee_tune.plans.plan import Plan
from knee_tune.plans.step_note import StepNote, begin_note
from knee_tune.records.events import TrialFinished, TrialReported, TrialStarted
from knee_tune.records.values import RunEnd, StepCount
from knee_tune.runs.locks import _described, process_id
from knee_tune.runs.trainer import MACHINE_STARTS
from knee_tune.study import driver as driving
from knee_tune.study import flat
from knee_tune.study import storage as storages
from knee_tune.study.patience import StorageGoneError
from knee_tune.study.recovery import requeue_failed
from knee_tune.workers.protocol import Channel, Done, Failure, Outcome
from tests.fake_runner import Died, FakeRunner, at, run_here
from tests.integration.workbench import BUDGET, STEPS_PER_EPOCH, Workbench, training_as_a_rank_does
from tests.waiting import awaited, main_thread_is_in


@pytest.fixture(autouse=True)
def _train_as_a_rank_does(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with training_as_a_rank_does(monkeypatch):
        yield


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def assert_nothing_is_left(bench: Workbench) -> None:
    """No trial is running or queued."""
    assert not bench.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def test_a_study_from_its_first_trial_to_its_last(bench: Workbench) -> None:
    runner = bench.drive(trials=3)
    first, *others = bench.record.trials
    assert (first.seed_lr, first.explore_fraction) == (0.05, 0.5)  # the paper's default
    assert bench.states == ["complete"] * 3
    assert {(t.seed_lr, t.explore_fraction) for t in others}.isdisjoint({(0.05, 0.5)})
    for trial, plan in zip(bench.record.trials, runner.plans, strict=True):
        assert plan.schedule.seed_lr == trial.seed_lr
        assert trial.value == trial.metrics["valid_accuracy"] > 5
        assert [evaluation.step for evaluation in trial.curve] == [50, 100, 150]
        assert trial.steps.trained == trial.budget == BUDGET
        assert trial.run_id == f"run-of-{trial.key}"
        assert Path(bench.study.trials[trial.number].user_attrs["weights"]).is_file()
    assert [trial.number for trial in bench.after] == [0, 1, 2]
    assert bench.record.steps.trained == bench.record.steps.independent == 3 * BUDGET


def test_what_is_tracked_of_a_trial(bench: Workbench) -> None:
    bench.drive(trials=1)
    (started,) = bench.recording.of_kind(TrialStarted)
    reports = bench.recording.of_kind(TrialReported)
    (finished,) = bench.recording.of_kind(TrialFinished)
    assert (started.number, started.seed_lr, started.explore_fraction) == (0, 0.05, 0.5)
    assert [report.step for report in reports] == [50, 100, 150]
    assert reports[0].lr == 0.05
    assert {"train_loss", "valid_loss", "valid_accuracy"} == reports[0].metrics.keys()
    assert finished.state == RunEnd.COMPLETE
    assert finished.metrics["final_valid_accuracy"] == bench.record.trials[0].value
    assert started.key == finished.key == "trial-0000"
    assert {report.key for report in reports} == {started.key}


def test_a_pruned_trial_is_told_with_its_reason(bench: Workbench) -> None:
    bench.study.pruner = ThresholdPruner(lower=101, n_warmup_steps=60)
    runner = bench.drive(trials=1)
    (trial,) = bench.record.trials
    assert (trial.state, trial.reason) == ("pruned", "pruned at step 100")
    assert runner.reports == [[50, 100]]
    assert trial.steps.trained == 100
    assert bench.recording.of_kind(TrialFinished)[0].state == RunEnd.PRUNED
    assert bench.watching.ends == [(0, "pruned", "pruned at step 100")]


def test_a_trial_is_never_pruned_by_its_last_evaluation(bench: Workbench) -> None:
    bench.study.pruner = ThresholdPruner(lower=101, n_warmup_steps=BUDGET)
    bench.drive(trials=1)
    assert bench.states == ["complete"]


def test_a_loss_that_is_lost_is_no_failure(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, settings=("space.seed_lr={values: [0.05, 1e9]}",))
    bench.study.enqueue_trial({"seed_lr": 1e9, "explore_fraction": 0.5})
    bench.drive(trials=2)
    trial = bench.record.trials[1]
    assert trial.state == "pruned"
    assert trial.reason.startswith("diverged: non-finite")
    assert bench.recording.of_kind(TrialFinished)[1].reason == trial.reason


def test_a_final_metric_that_is_not_finite_is_no_value(bench: Workbench) -> None:
    def overflow(plan: Plan, channel: Channel) -> Outcome:
        outcome = run_here(plan, channel)
        assert isinstance(outcome, Done)
        metrics = {**outcome.result["metrics"], "valid_loss": float("inf")}
        return outcome.model_copy(update={"result": {**outcome.result, "metrics": metrics}})

    bench.drive(FakeRunner(job=overflow), trials=1)
    (trial,) = bench.record.trials
    assert (trial.state, trial.value) == ("pruned", None)
    assert trial.reason == "diverged: non-finite metric of the final evaluation"


CRASHES = sorted({*get_args(Failure.model_fields["kind"].annotation)} - {"user_error"})


@pytest.mark.parametrize("kind", CRASHES)
def test_a_group_that_dies_is_started_again_from_its_newest_checkpoint(
    bench: Workbench, kind: str
) -> None:
    runner = bench.drive(FakeRunner(at(60, Died(kind)), at(110, Died(kind))), trials=1)
    (trial,) = bench.record.trials
    assert trial.state == "complete"
    assert runner.reports == [[50], [50, 100], [50, 100, 150]]  # history comes again
    assert [evaluation.step for evaluation in trial.curve] == [50, 100, 150]
    assert trial.steps.trained == 60 + 60 + 50  # lost steps are counted
    assert [line.partition(";")[0] for line in bench.watching.lines] == [
        f"trial-0000: died: {kind}"
    ] * 2


def test_what_people_must_put_right_ends_the_search_and_costs_no_trial(bench: Workbench) -> None:
    runner = FakeRunner(at(60, Died("user_error")))
    with pytest.raises(UserError, match=r"^study it: trial 0: died: user_error$"):
        bench.drive(runner, trials=2)
    assert len(runner.plans) == 1
    assert [event.state for event in bench.recording.of_kind(TrialFinished)] == [RunEnd.FAILED]
    bench.drive(runner, trials=2)  # its mistake was corrected
    assert bench.states == ["complete"] * 2
    first = bench.record.trials[0]
    assert (first.key, first.steps.trained) == ("trial-0000", 60 + 100)  # from its checkpoint


def test_a_full_disk_ends_the_search_and_costs_no_trial(bench: Workbench) -> None:
    runner = FakeRunner(*[at(60, Died("disk"))] * (MACHINE_STARTS + 1))
    with pytest.raises(MachineError, match=r"^study it: trial 0: died: disk, 6 times .*continues$"):
        bench.drive(runner, trials=2)
    assert bench.states == ["waiting"]
    bench.drive(trials=2)
    assert bench.states == ["complete"] * 2
    assert [trial.number for trial in bench.record.trials] == [0, 1]


def test_a_home_that_is_gone_ends_the_search_and_costs_no_trial(bench: Workbench) -> None:
    with pytest.raises(HomeGoneError):
        bench.drive(FakeRunner(at(60, HomeGoneError("gone"))), trials=2)
    assert bench.states == ["waiting"]  # where the storage is elsewhere


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_the_next_command_takes_up_what_failed_whatever_the_sampler(
    tmp_path: Path, sampler: str
) -> None:
    bench = Workbench(tmp_path, sampler=sampler)
    bench.drive(FakeRunner(*[at(10, Died("signal"))] * MACHINE_STARTS), trials=2)
    assert bench.states == ["failed", "complete"]
    requeue_failed(bench.study)
    bench.drive(trials=2)
    assert bench.states == ["complete"] * 2
    assert (0.05, 0.5) in {trial.point for trial in bench.record.trials}  # the paper's default


def test_a_trial_that_keeps_dying_fails_with_the_root_cause_and_the_study_goes_on(
    bench: Workbench,
) -> None:
    runner = bench.drive(FakeRunner(*[at(60, Died("exception"))] * 3), trials=2)
    failed, complete = bench.record.trials
    assert (failed.state, failed.reason) == ("failed", "died: exception")
    assert complete.state == "complete"
    assert len(runner.plans) == 4
    assert [event.state for event in bench.recording.of_kind(TrialFinished)] == [
        RunEnd.FAILED,
        RunEnd.COMPLETE,
    ]
    assert_nothing_is_left(bench)


def test_three_failed_trials_in_a_row_stop_the_study(bench: Workbench) -> None:
    runner = FakeRunner(*[at(10, Died("out_of_memory"))] * 99)
    with pytest.raises(MachineError, match=r"^study it: 3 trials in a row failed, .*out_of_memor"):
        bench.drive(runner, trials=20)
    assert bench.states == ["failed"] * 3
    assert_nothing_is_left(bench)


def test_failures_that_are_not_in_a_row_do_not_stop_the_study(bench: Workbench) -> None:
    dies, lives = [at(10, Died("exit"))] * 3, [None]
    bench.drive(FakeRunner(*dies, *dies, *lives, *dies, *dies, *lives), trials=6)
    assert bench.states == ["failed", "failed", "complete"] * 2


def test_a_mistake_of_our_own_is_told_and_raised(bench: Workbench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.drive(FakeRunner(at(60, ZeroDivisionError("by zero"))), trials=2)
    (trial,) = bench.record.trials
    assert (trial.state, trial.reason) == ("failed", "ZeroDivisionError: by zero")
    assert bench.recording.of_kind(TrialFinished)[0].state == RunEnd.FAILED


def test_the_same_parameters_are_not_trained_twice(bench: Workbench) -> None:
    bench.drive(trials=1)
    bench.study.enqueue_trial({"seed_lr": 0.05, "explore_fraction": 0.5})
    again = bench.drive(trials=2)
    first, second = bench.record.trials
    assert again.plans == []
    assert (second.state, second.value, second.curve) == ("complete", first.value, first.curve)
    assert (second.steps.trained, second.reason) == (0, "same as trial 0")
    assert second.key == first.key
    assert bench.record.best == first


def test_what_was_pruned_is_pruned_again_without_training(bench: Workbench) -> None:
    bench.study.pruner = ThresholdPruner(lower=101)
    bench.drive(trials=1)
    bench.study.enqueue_trial({"seed_lr": 0.05, "explore_fraction": 0.5})
    assert bench.drive(trials=2).plans == []
    first, second = bench.record.trials
    assert (second.state, second.curve) == ("pruned", first.curve)


def test_the_same_parameters_are_trained_again_by_other_code(bench: Workbench) -> None:
    bench.drive(trials=1)
    bench.code = "new"
    bench.study.enqueue_trial({"seed_lr": 0.05, "explore_fraction": 0.5})
    assert len(bench.drive(trials=2).plans) == 1
    assert bench.record.trials[1].steps.trained == BUDGET
    assert bench.record.codes == {"": "trial 0", "new": "trial 1"}
    bench.study.enqueue_trial({"seed_lr": 0.05, "explore_fraction": 0.5})
    assert bench.drive(trials=3).plans == []
    assert bench.record.trials[2].reason == "same as trial 1"
    assert bench.record.codes == {"": "trial 0", "new": "trials 1-2"}


def test_trials_are_counted_over_all_commands(bench: Workbench) -> None:
    assert len(bench.drive(trials=2).plans) == 2
    assert len(bench.drive(trials=2).plans) == 0
    assert len(bench.drive(trials=3).plans) == 1
    bench.study.enqueue_trial({"seed_lr": 0.005, "explore_fraction": 0.5})
    assert len(bench.drive(trials=3).plans) == 0
    assert len(bench.drive(trials=4).plans) == 1
    assert bench.record.trials[3].seed_lr == 0.005


def test_a_search_ends_with_the_trial_that_reaches_its_target(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, target=1.0)  # in percent: any model has more
    assert len(bench.drive(trials=5).plans) == 1
    assert bench.watching.lines[-1].startswith("target 1 reached: trial 0 has ")
    assert len(bench.drive(trials=9).plans) == 0


def test_a_search_ends_once_it_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "WORTH", math.inf)  # whatever is left is not worth it
    monkeypatch.setattr(flat, "FEWEST", 2)
    bench = Workbench(tmp_path, sampler="gp", epochs=2, stop_when_flat=True)
    assert len(bench.drive(trials=9).plans) < 9
    assert bench.watching.lines[-1].startswith("flat: the most promising point left, seed LR ")


def test_slots_train_at_the_same_time_and_not_more_than_wanted(bench: Workbench) -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(step: int) -> None:
        if step == 1:
            together.wait()

    runner = bench.drive(FakeRunner(meet, meet), trials=2, slots=2)  # two trials: one for each slot
    assert len({plan.checkpoint_dir for plan in runner.plans}) == 2
    bench.drive(trials=5, slots=2)
    assert bench.states == ["complete"] * 5
    assert len({(trial.seed_lr, trial.explore_fraction) for trial in bench.record.trials}) == 5


def test_no_trial_is_started_after_the_timeout(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def last_a_second(_: int) -> None:
        nonlocal now
        now += 1.0

    monkeypatch.setattr(driving, "time", SimpleNamespace(monotonic=lambda: now))
    bench.driver(FakeRunner(last_a_second)).run(trials=9, timeout=BUDGET - 1.0)
    assert bench.states == ["complete"]
    bench.driver(FakeRunner()).run(trials=9, timeout=0.0)
    assert bench.states == ["complete"]


def test_an_interrupted_trial_is_continued_by_the_next_command(bench: Workbench) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(None, at(60, KeyboardInterrupt)), trials=3)
    assert not bench.study.get_trials(states=(TrialState.RUNNING,))
    told = bench.recording.of_kind(TrialFinished)[-1]
    assert (told.state, told.reason) == (
        RunEnd.FAILED,
        "interrupted; the same command continues it",
    )

    runner = bench.drive(trials=3)
    assert runner.plans[0].checkpoint_dir.name == "trial-0001-1"
    assert runner.reports[0] == [50, 100, 150]
    assert bench.states == ["complete"] * 3
    continued = bench.record.trials[1]
    assert (continued.number, continued.key) == (1, "trial-0001")
    assert continued.steps.trained == 60 + 100
    assert [evaluation.step for evaluation in continued.curve] == [50, 100, 150]
    assert continued.reason == ""
    keys = [event.key for event in bench.recording.of_kind(TrialStarted)]
    assert keys == ["trial-0000", "trial-0001", "trial-0001", "trial-0002"]


@pytest.mark.parametrize("pruned", [False, True])
def test_other_code_trains_an_interrupted_trial_anew(bench: Workbench, pruned: bool) -> None:
    """No checkpoint and no value of before counts, but the steps that it cost do."""
    with pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(at(60, KeyboardInterrupt)), trials=1)
    (waiting,) = bench.study.get_trials(states=(TrialState.WAITING,))
    for step in (50, 100):
        bench.storage.set_trial_intermediate_value(waiting._trial_id, step, 1234.5)

    bench.code = "new"
    if pruned:
        bench.study.pruner = ThresholdPruner(lower=101)
    runner = bench.drive(trials=1)
    (trial,) = bench.record.trials
    assert runner.reports[0] == ([50] if pruned else [50, 100, 150])
    assert any("no good, starting from an earlier checkpoint" in x for x in bench.watching.lines)
    assert 1234.5 not in [evaluation.metrics["valid_accuracy"] for evaluation in trial.curve]
    assert (trial.state, trial.code) == ("pruned" if pruned else "complete", "new")
    assert trial.steps.trained == 60 + (50 if pruned else BUDGET)
    assert trial.steps.reused == 0


def test_no_value_of_other_code_outlives_an_attempt_that_reports_nothing(bench: Workbench) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(at(60, KeyboardInterrupt)), trials=1)
    bench.code = "new"
    with pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(at(10, KeyboardInterrupt)), trials=1)
    assert list(map(math.isnan, bench.study.trials[0].intermediate_values.values())) == [True]
    assert [*bench.record.trials[0].curve] == []
    bench.drive(trials=1)
    assert [evaluation.step for evaluation in bench.record.trials[0].curve] == [50, 100, 150]


def test_a_replicate_that_other_code_completed_is_trained_again(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, replicates=3, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(None, None, at(10, KeyboardInterrupt)), trials=1)
    bench.code = "new"
    with pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(at(10, KeyboardInterrupt)), trials=1)
    assert len(bench.drive(trials=1).plans) == 3


@pytest.mark.parametrize("fused", [False, True])
def test_steps_of_a_killed_attempt_are_counted_though_the_code_changed(
    tmp_path: Path, *, fused: bool
) -> None:
    """Its rank noted them under a name that the code is a part of."""
    bench = Workbench(tmp_path, epochs=1, fused=fused)
    bench.names_have_code = True
    runner = FakeRunner(at(10, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.drive(runner, trials=1)
    (plan,) = runner.plans
    begin_note(plan, StepCount(trained=10, reached=10))
    StepNote(plan, first=0).write(17)
    bench.code = "new"
    bench.drive(trials=1)
    assert bench.record.trials[0].steps.trained == 10 + 17 + STEPS_PER_EPOCH
    assert not list(plan.log_dir.glob("*.steps"))


def test_interrupts_use_up_no_retry(bench: Workbench) -> None:
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            bench.drive(FakeRunner(at(10, KeyboardInterrupt)), trials=1)
    bench.drive(trials=1)
    assert bench.states == ["complete"]
    assert bench.record.trials[0].steps.trained == 4 * 10 + BUDGET


def test_an_interrupt_ends_the_other_slots_as_well(bench: Workbench) -> None:
    """Ctrl-C reaches the main thread, which has trained its last trial and waits for the other."""

    def interrupt_late(step: int) -> None:
        if step == 60 and threading.current_thread() is not threading.main_thread():
            awaited(lambda: main_thread_is_in("_base.py", "wait"))
            os.kill(os.getpid(), signal.SIGINT)
            awaited(lambda: driver._slots.stopped)

    driver = bench.driver(FakeRunner(interrupt_late, interrupt_late), slots=2)
    with pytest.raises(KeyboardInterrupt):
        driver.run(trials=2)
    assert sorted(bench.states) == ["complete", "waiting"]
    bench.drive(trials=2)
    assert bench.states == ["complete"] * 2


def test_the_trial_of_a_killed_driver_is_continued(bench: Workbench) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:  # until nobody writes to it
        leave_running(bench, _described(process.pid))
        assert bench.drive(trials=1).plans == []  # it lives
        process.kill()
    runner = bench.drive(trials=1)
    assert runner.reports == [[50, 100, 150]]
    assert bench.states == ["complete"]
    assert bench.record.trials[0].key == "trial-0000"
    assert [event.reason for event in bench.recording.of_kind(TrialFinished)] == [
        "its driver was killed",
        "",
    ]
    assert bench.watching.lines == ["trial 0: its driver was killed"]


def test_a_driver_on_another_host_is_dead_when_its_heart_stops(bench: Workbench) -> None:
    trial = leave_running(bench, {"host": "another", "pid": 1, "started": 0.0})
    bench.storage.record_heartbeat(trial._trial_id)
    assert bench.drive(trials=1).plans == []  # it beats
    with bench.storage.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'"))
    runner = bench.drive(trials=1)
    assert runner.reports == [[50, 100, 150]]
    assert bench.states == ["complete"]
    assert bench.recording.of_kind(TrialFinished)[0].reason == "its driver was killed"


def leave_running(bench: Workbench, driver: Mapping[str, Any]) -> optuna.Trial:
    """The first trial as a driver leaves it that is killed after an evaluation."""
    with pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(at(60, KeyboardInterrupt)), trials=1)
    bench.recording.events.clear()
    bench.watching.lines.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna: ask alone does not beat
        trial = bench.study.ask()
    trial.set_user_attr("driver", driver)
    return trial


def test_a_driver_whose_storage_stays_away_ends_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "SQLITE_TIMEOUT", 0.01)
    monkeypatch.setenv("KNEE_TUNE_STORAGE_TIMEOUT", "0.1")
    bench = Workbench(tmp_path)
    other = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)

    def lock(step: int) -> None:
        if step == 60:
            other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StorageGoneError, match="database is locked"):
        bench.drive(FakeRunner(None, lock), trials=3)
    other.close()
    for trial in bench.study.get_trials(states=(TrialState.RUNNING,)):  # it has ended by then
        trial_id = trial._trial_id
        bench.storage.set_trial_user_attr(trial_id, "driver", {**process_id(), "ticks": 0})
    runner = bench.drive(trials=3)
    assert runner.reports[0] == [50, 100, 150]
    assert bench.states == ["complete"] * 3
    assert bench.record.trials[1].key == "trial-0001"


def test_an_interrupt_waits_for_no_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storages, "SQLITE_TIMEOUT", 0.01)
    bench = Workbench(tmp_path)
    other = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)

    def lock_and_interrupt(step: int) -> None:
        if step == 60:
            other.execute("BEGIN IMMEDIATE")
            signal.raise_signal(signal.SIGINT)

    with closing(other), pytest.raises(KeyboardInterrupt):
        bench.drive(FakeRunner(lock_and_interrupt), trials=1)
    assert not any("waiting up to" in message for message in caplog.messages)


def test_a_trial_goes_on_when_its_storage_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "SQLITE_TIMEOUT", 0.01)
    bench = Workbench(tmp_path)
    other = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None, check_same_thread=False)

    def lock_for_a_moment(step: int) -> None:
        if step == 60:
            other.execute("BEGIN IMMEDIATE")
            threading.Timer(0.3, other.close).start()

    runner = bench.drive(FakeRunner(lock_for_a_moment), trials=1)
    assert len(runner.plans) == 1
    assert bench.states == ["complete"]


def test_a_trial_asked_for_in_a_lost_turn_is_given_up_if_it_is_one_too_many(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart freed the lock that a driver asks under: another driver took the last trial."""
    bench.drive(trials=1)
    lost = iter([True])

    def retaken(_: object) -> bool:
        if not next(lost, False):
            return False
        bench.study.add_trial(bench.study.trials[0])
        return True

    monkeypatch.setattr("knee_tune.study.driver.retaken", retaken)
    assert bench.drive(trials=2).plans == []
    assert bench.states == ["complete"] * 2
