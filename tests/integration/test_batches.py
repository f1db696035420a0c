"""A grid in which nothing is pruned: all its points train at once, as one batched model."""

import math
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from knee_tune.errors import MachineError, UserError
from knee_tune.plans.plan import Replica
from knee_tune.plans.step_note import StepNote, begin_note
from knee_tune.records.events import TrialFinished, TrialReported, TrialStarted
from knee_tune.records.values import RunEnd, StepCount
from knee_tune.runs.locks import process_id
from knee_tune.runs.trainer import OWN_STARTS
from knee_tune.study import batches
from knee_tune.study.batches import BatchTraining
from knee_tune.study.patience import StorageGoneError
from knee_tune.study.recovery import requeue_failed
from tests.fake_runner import Died, at
from tests.integration.fused_ranks import FusedRanks, rising
from tests.integration.workbench import BUDGET, Workbench

SEED_LRS, FRACTIONS = (0.05, 0.1), (0.2, 0.4, 0.8)
POINTS = [(lr, fraction) for lr in SEED_LRS for fraction in FRACTIONS]

SHARE = (0.8 + 0.8 + 0.6 + 0.2) / 3
"""Of every seed LR: its trunk once, and three decays."""


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return table(tmp_path)


def table(home: Path, *, replicates: int = 2) -> Workbench:
    return Workbench(
        home,
        batched=True,
        sampler="grid",
        goal="ridge",
        replicates=replicates,
        settings=(
            f"space.seed_lr={{values: {list(SEED_LRS)}}}",
            f"space.explore_fraction={{values: {list(FRACTIONS)}}}",
        ),
    )


def drive(
    bench: Workbench, runner: FusedRanks | None = None, *, trials: int | None = None
) -> FusedRanks:
    runner = runner or FusedRanks()
    bench.driver(runner).run(trials=trials)
    return runner


def test_a_table_is_one_run_of_every_point_and_random_seed(bench: Workbench) -> None:
    runner = drive(bench)
    (plan,) = runner.plans
    assert [(each.schedule.seed_lr, each.seed) for each in plan.replicas] == [
        (lr, seed) for lr, _ in POINTS for seed in (1, 2)
    ]
    assert plan.trunk is None  # trunks are shared in the run itself
    assert [trial.point for trial in bench.record.trials] == POINTS
    assert bench.states == ["complete"] * 6
    assert [trial.number for trial in bench.after] == [*range(6)]
    for place, trial in enumerate(bench.record.trials):
        explore = round(trial.explore_fraction * BUDGET)
        assert trial.value == pytest.approx(80.0 - 15 + 15 - explore / 100)
        assert [each.seed for each in trial.replicates] == [1, 2]
        assert [each.step for each in trial.curve] == [50, 100, 150]
        attrs = bench.study.trials[trial.number].user_attrs
        assert attrs["plan"]["schedule"]["explore_steps"] == explore
        assert attrs["plan"]["replicas"] == []  # its own plan, not that of all
        assert Path(attrs["weights"]).name == f"replica-{2 * place}.safetensors"
        assert trial.run_id == f"run-of-{trial.key}"


def test_trained_steps_are_what_the_formula_says(bench: Workbench) -> None:
    drive(bench)
    steps = bench.record.steps
    assert steps.trained == pytest.approx(SHARE * 6 * 2 * BUDGET)
    assert steps.trained + steps.reused == steps.independent == 6 * 2 * BUDGET
    assert (steps.pruned, steps.recorded) == (0, 0)


def test_the_tracking_has_the_means_of_every_trial(bench: Workbench) -> None:
    drive(bench)
    assert [event.number for event in bench.recording.of_kind(TrialStarted)] == [*range(6)]
    reports = bench.recording.of_kind(TrialReported)
    assert [report.step for report in reports if report.key == "trial-0003"] == [50, 100, 150]
    assert reports[0].metrics.keys() == {"valid_accuracy", "valid_accuracy_std"}
    assert {event.state for event in bench.recording.of_kind(TrialFinished)} == {RunEnd.COMPLETE}
    last = [report.lr for report in reports if report.step == 100]
    assert len(set(last)) > 1  # each has the LR of its own schedule
    assert bench.watching.batches == [[*range(6)]]
    assert bench.watching.batch_steps == [50, 100, 150]


def test_one_replicate_trains_as_a_batch_too(tmp_path: Path) -> None:
    bench = table(tmp_path, replicates=1)
    runner = drive(bench)
    assert [len(plan.replicas) for plan in runner.plans] == [6]
    assert bench.states == ["complete"] * 6
    assert bench.record.trials[0].spread is None


def test_a_trial_of_a_diverged_replica_is_pruned_and_the_others_go_on(bench: Workbench) -> None:
    def lost(replica: Replica, step: int) -> float:
        diverges = (replica.schedule.seed_lr, replica.seed) == (0.1, 2) and step >= 100
        return math.nan if diverges else rising(replica, step)

    drive(bench, FusedRanks(curve=lost))
    assert bench.states == ["complete"] * 3 + ["pruned"] * 3
    for trial in bench.record.trials[3:]:
        assert trial.reason == "diverged: non-finite loss (replicate 2 of 2)"
        assert [each.step for each in trial.curve] == [50]  # no half data
        assert [each.state for each in trial.replicates] == ["complete", "pruned"]
    steps = bench.record.steps
    assert steps.trained + steps.reused + steps.pruned == steps.independent


def test_fewer_trials_are_the_first_points(bench: Workbench) -> None:
    drive(bench, trials=4)
    assert [trial.point for trial in bench.record.trials] == POINTS[:4]
    runner = drive(bench)
    assert [len(plan.replicas) for plan in runner.plans] == [4]
    assert sorted(trial.point for trial in bench.record.trials) == POINTS


@pytest.mark.parametrize("limit", ["MAX_REPLICAS", "MAX_PARAMETERS"])
def test_a_large_grid_is_several_batches(
    limit: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, limit, 9)
    runner = drive(bench)
    assert [len(plan.replicas) for plan in runner.plans] == [8, 4]
    assert bench.states == ["complete"] * 6


def test_no_point_is_tried_twice_by_a_driver_that_lost_its_turn_to_ask(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart freed the lock that a driver asks under: another driver took a point meanwhile."""
    turns = iter([False, False, True])

    def retaken(_: object) -> bool:
        if not next(turns, False):
            return False
        point = dict(zip(bench.axes, POINTS[3], strict=True))
        distributions = {name: axis.distribution() for name, axis in bench.axes.items()}
        bench.study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=point,
                distributions=dict(distributions),
                user_attrs={"driver": process_id()},
            )
        )
        return True

    monkeypatch.setattr(batches, "retaken", retaken)
    drive(bench)
    assert sorted(trial.point for trial in bench.record.trials) == POINTS


def test_slots_do_not_fight_for_a_batch(bench: Workbench) -> None:
    runner = FusedRanks()
    bench.driver(runner, slots=3).run(trials=None)
    assert len(runner.plans) == 1
    assert bench.states == ["complete"] * 6


def test_an_interrupted_batch_goes_on_from_its_checkpoint(bench: Workbench) -> None:
    runner = FusedRanks(at(110, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drive(bench, runner)
    assert bench.states == ["waiting"] * 6
    assert {event.state for event in bench.recording.of_kind(TrialFinished)} == {RunEnd.FAILED}
    drive(bench, runner)
    first, second = runner.plans
    assert first == second
    assert runner.starts == [0, 100]
    assert bench.states == ["complete"] * 6
    assert [trial.key for trial in bench.record.trials] == [f"trial-{n:04d}" for n in range(6)]
    assert len(bench.study.trials) == 6
    assert list(bench.study.trials[-1].intermediate_values) == [50, 100, 150]
    lost = 6 * 2 * 10  # every replica trained ten steps twice
    assert bench.record.steps.trained == pytest.approx(SHARE * 6 * 2 * BUDGET + lost)


def test_a_batch_that_goes_on_under_other_code_costs_what_both_have_trained(
    bench: Workbench,
) -> None:
    bench.names_have_code = True
    runner = FusedRanks(at(110, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drive(bench, runner)
    begin_note(runner.plans[0], StepCount(trained=110, reached=110))
    StepNote(runner.plans[0], first=100).write(105)  # by an attempt whose driver was killed
    bench.code = "new"
    drive(bench, runner)
    assert runner.starts == [0, 0]
    lost = 6 * 2 * (110 + 5)
    assert bench.record.steps.trained == pytest.approx(SHARE * 6 * 2 * BUDGET + lost)


def test_a_batch_of_a_killed_driver_is_the_same_batch_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it told the ends: the run is answered from its record, told is who was not."""
    tell = BatchTraining._tell

    def killed(training: BatchTraining, run: Any, ending: Any) -> None:
        if run.number == 2:
            raise SystemExit
        tell(training, run, ending)

    runner = FusedRanks()
    with monkeypatch.context() as patch:
        patch.setattr(BatchTraining, "_tell", killed)
        patch.setattr(BatchTraining, "_break_off", lambda *_, **__: None)
        patch.setattr("knee_tune.study.driver.give_back", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            drive(bench, runner)
    assert bench.states == ["complete"] * 2 + ["running"] * 4
    dead = {**process_id(), "ticks": 0}
    for trial in bench.study.get_trials(states=(TrialState.RUNNING,)):
        bench.storage.set_trial_user_attr(trial._trial_id, "driver", dead)
    drive(bench, runner)
    assert len(runner.plans) == 1
    assert bench.states == ["complete"] * 6
    assert bench.record.steps.trained == pytest.approx(SHARE * 6 * 2 * BUDGET)


def test_a_batch_whose_group_dies_starts_again(bench: Workbench) -> None:
    runner = drive(bench, FusedRanks(at(60, Died("signal"))))
    assert runner.starts == [0, 50]
    assert bench.states == ["complete"] * 6


def test_a_batch_that_cannot_be_trained_fails_all_its_trials_and_ends_the_search(
    bench: Workbench,
) -> None:
    with pytest.raises(MachineError, match="its batch of 6 trials failed: died: exception"):
        drive(bench, FusedRanks(*[at(60, Died("exception"))] * OWN_STARTS))
    assert bench.states == ["failed"] * 6
    assert bench.record.trials[0].reason == "died: exception"


def test_what_people_must_put_right_costs_no_trial_of_a_batch(bench: Workbench) -> None:
    runner = FusedRanks(at(60, Died("user_error")))
    refused = "study it: its batch of 6 trials failed: died: user_error"
    with pytest.raises(UserError, match=refused):
        drive(bench, runner)
    assert bench.states == ["waiting"] * 6
    assert bench.record.trials[0].reason.startswith(refused)
    drive(bench, runner)  # its mistake was corrected
    assert bench.states == ["complete"] * 6
    assert len(bench.study.trials) == 6


def test_a_batch_whose_storage_is_gone_is_to_go_on(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise StorageGoneError("for 600 s")

    monkeypatch.setattr(BatchTraining, "_write", gone)
    with pytest.raises(StorageGoneError):
        drive(bench)
    assert bench.states == ["waiting"] * 6


def test_a_batch_that_failed_is_trained_whenever_the_study_is_continued(bench: Workbench) -> None:
    runner = FusedRanks(*[at(60, Died("exception"))] * 3 * OWN_STARTS)
    for _ in range(3):
        with pytest.raises(MachineError, match="its batch of 6 trials failed"):
            drive(bench, runner)
        requeue_failed(bench.study)
    drive(bench, runner)
    assert bench.states == ["complete"] * 6


def test_trials_of_a_batch_have_heartbeats(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    beaten = list[int]()
    beat = type(bench.storage).record_heartbeat

    def record(storage: Any, trial_id: int) -> None:
        beaten.append(trial_id)
        beat(storage, trial_id)

    monkeypatch.setattr(type(bench.storage), "record_heartbeat", record)
    monkeypatch.setattr(batches, "HEARTBEAT_SECONDS", 0.01)
    drive(bench)
    assert {trial._trial_id for trial in bench.study.trials} <= set(beaten)


def test_a_batch_that_is_over_beats_no_more(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    beaten, begun = list[int](), threading.Event()

    def slow(_: object, trial: int) -> None:
        beaten.append(trial)
        begun.set()
        assert training._over.wait(10)

    monkeypatch.setattr(type(bench.storage), "record_heartbeat", slow)
    training = batches.ReportWriter(bench.storage, range(256), lambda report: None)
    with training:
        assert begun.wait(10)
    assert beaten == [0]


def test_what_goes_wrong_while_curves_are_written_ends_the_batch(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(BatchTraining, "_write", full)
    with pytest.raises(OSError, match="disk full"):
        drive(bench)
    assert bench.states == ["failed"] * 6
    assert bench.record.trials[0].reason == "OSError: disk full"
