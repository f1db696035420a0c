"""Trials whose replicates train as one batched model: one run, and all replicates at once."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

import optuna
import pytest
from optuna.pruners import NopPruner, ThresholdPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from knee_tune.plans.plan import Replica
from knee_tune.records.events import TrialFinished, TrialReported, TrialStarted
from knee_tune.records.study import TrialRecord
from knee_tune.records.values import StepCount
from knee_tune.schedules import Knee
from knee_tune.study.pruners import KneePruner
from tests.fake_runner import Died, at
from tests.integration.fused_ranks import FusedRanks, rising
from tests.integration.workbench import BUDGET, Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    """A study of three fused replicates, in which Optuna has nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*already reported.*")
        yield Workbench(tmp_path, replicates=3, fused=True)


def drive(bench: Workbench, runner: FusedRanks, *, trials: int = 1) -> TrialRecord:
    bench.driver(runner).run(trials=trials)
    return bench.record.trials[-1]


def test_a_trial_is_one_run_of_all_its_random_seeds(bench: Workbench) -> None:
    runner = FusedRanks()
    trial = drive(bench, runner)
    (plan,) = runner.plans
    assert [replica.seed for replica in plan.replicas] == [1, 2, 3]
    assert {replica.schedule for replica in plan.replicas} == {plan.schedule}
    values = [80.0 - 10 * seed + 15 - 0.75 for seed in (1, 2, 3)]
    assert [replicate.value for replicate in trial.replicates] == pytest.approx(values)
    assert trial.value == pytest.approx(fmean(values))
    assert trial.spread == pytest.approx(stdev(values))
    assert trial.metrics["valid_loss"] == 1.0
    assert (trial.steps.trained, trial.budget) == (3 * BUDGET, 3 * BUDGET)
    attrs = bench.study.trials[0].user_attrs
    assert Path(attrs["weights"]) == plan.checkpoint_dir / "replica-0.safetensors"
    assert (attrs["plan"]["seed"], attrs["plan"]["replicas"]) == (1, [])
    assert not [name for name in attrs if name.startswith("replicate:")]  # one attribute for all


def test_every_evaluation_tells_of_all_replicates(bench: Workbench) -> None:
    trial = drive(bench, FusedRanks())
    reported = bench.study.trials[0].intermediate_values
    assert list(reported) == [50, 100, 150]
    assert list(reported.values()) == pytest.approx([64.25, 69.25, 74.25])
    assert [each.metrics["valid_accuracy"] for each in trial.curve] == [*reported.values()]
    for replicate, offset in zip(trial.replicates, (10, 0, -10), strict=True):
        curve = [each.metrics["valid_accuracy"] for each in replicate.curve]
        assert curve == pytest.approx([value + offset for value in reported.values()])


def test_the_tracking_gets_means_and_spreads_not_a_series_for_every_seed(bench: Workbench) -> None:
    drive(bench, FusedRanks())
    (started,) = bench.recording.of_kind(TrialStarted)
    reports = bench.recording.of_kind(TrialReported)
    (finished,) = bench.recording.of_kind(TrialFinished)
    assert started.params["replicates"] == 3
    assert [(report.step, report.replicate) for report in reports] == [
        (50, 0),
        (100, 0),
        (150, 0),
    ]
    assert reports[0].metrics == pytest.approx(
        {"valid_accuracy": 64.25, "valid_accuracy_std": 10.0}
    )
    assert reports[0].lr == 0.05
    assert finished.metrics["final_valid_accuracy_std"] == 10.0


class Looking(NopPruner):
    """Remembers at which steps a pruner is asked, and of how many replicates it knows."""

    def __init__(self) -> None:
        self.asked: list[tuple[int | None, int]] = []

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        self.asked.append((trial.last_step, trial.user_attrs["replicates"]))
        return False


def test_to_a_pruner_it_is_a_trial_of_one_replicate(bench: Workbench) -> None:
    bench.study.pruner = pruner = Looking()
    drive(bench, FusedRanks())
    assert pruner.asked == [(50, 1), (100, 1)]  # never at the very end


def test_pruning_acts_on_the_mean_and_ends_all_replicates(bench: Workbench) -> None:
    bench.study.pruner = ThresholdPruner(lower=70.0, n_warmup_steps=60)
    trial = drive(bench, FusedRanks())
    assert (trial.state, trial.reason, trial.value) == ("pruned", "pruned at step 100", None)
    assert [replicate.state for replicate in trial.replicates] == ["pruned"] * 3
    assert (trial.steps.trained, trial.steps_pruned) == (300, 150)
    steps = bench.record.steps
    assert steps.trained + steps.pruned == steps.independent == 3 * BUDGET


def test_the_knee_pruner_compares_fused_trials(bench: Workbench) -> None:
    bench.study.pruner = KneePruner(n_startup_trials=2, n_min_trials=1, patience=2)
    for fraction in (0.4, 0.3):  # after the default, 0.5
        bench.study.enqueue_trial({"seed_lr": 0.05, "explore_fraction": fraction})

    def last_is_bad(replica: Replica, step: int) -> float:
        assert isinstance(replica.schedule, Knee)
        bad = replica.schedule.explore_steps == round(0.3 * BUDGET)
        return rising(replica, step) - 50 * bad

    drive(bench, FusedRanks(curve=last_is_bad), trials=3)
    assert bench.states == ["complete", "complete", "pruned"]
    assert bench.record.trials[2].reason == "pruned at step 100"


def test_a_replicate_that_diverges_ends_its_trial_without_half_data(bench: Workbench) -> None:
    def lost(replica: Replica, step: int) -> float:
        return math.nan if (replica.seed, step) == (2, 100) else rising(replica, step)

    trial = drive(bench, FusedRanks(curve=lost))
    assert (trial.state, trial.reason) == (
        "pruned",
        "diverged: non-finite loss (replicate 2 of 3)",
    )
    assert list(bench.study.trials[0].intermediate_values) == [50]
    assert [report.step for report in bench.recording.of_kind(TrialReported)] == [50]
    assert (trial.steps.trained, trial.steps_pruned) == (300, 150)


def test_a_replicate_that_diverges_in_the_final_evaluation_ends_it_too(bench: Workbench) -> None:
    def lost(replica: Replica, step: int) -> float:
        return math.nan if (replica.seed, step) == (3, BUDGET) else rising(replica, step)

    trial = drive(bench, FusedRanks(curve=lost))
    assert (trial.state, trial.value) == ("pruned", None)
    assert trial.reason == "diverged: non-finite loss (replicate 3 of 3)"
    assert trial.steps_pruned == 0


def test_a_driver_killed_before_it_tells_an_end_leaves_the_same_end_to_the_next(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first replicate was complete and noted as such, the trial was not."""

    def lost(replica: Replica, step: int) -> float:
        return math.nan if (replica.seed, step) == (3, BUDGET) else rising(replica, step)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("knee_tune.study.driver.record_end", killed)
        with pytest.raises(KeyboardInterrupt):
            drive(bench, FusedRanks(curve=lost))
    trial = drive(bench, FusedRanks(curve=lost))
    assert (trial.state, trial.reason) == (
        "pruned",
        "diverged: non-finite loss (replicate 3 of 3)",
    )


def test_a_run_that_dies_goes_on_and_what_it_lost_counts_for_every_replicate(
    bench: Workbench,
) -> None:
    runner = FusedRanks(at(110, Died("signal")))
    trial = drive(bench, runner)
    assert runner.starts == [0, 100]
    assert trial.state == "complete"
    assert trial.steps.trained == 3 * (BUDGET + 10)
    assert [report.step for report in bench.recording.of_kind(TrialReported)] == [50, 100, 150]


def test_an_interrupted_trial_goes_on_with_its_count(bench: Workbench) -> None:
    runner = FusedRanks(at(110, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drive(bench, runner)
    assert bench.study.get_trials(states=(TrialState.WAITING,))
    trial = drive(bench, runner)
    assert runner.starts == [0, 100]
    assert (trial.key, trial.state) == ("trial-0000", "complete")
    assert [each.steps for each in trial.replicates] == [StepCount(trained=160, reached=150)] * 3
    assert list(bench.study.trials[trial.number].intermediate_values) == [50, 100, 150]


def test_of_a_trial_by_other_code_only_the_cost_counts(bench: Workbench) -> None:
    """The state at step 100 is not what its own 110 steps came to."""
    runner = FusedRanks(at(110, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drive(bench, runner)
    bench.code = "new"
    trial = drive(bench, runner)
    assert (trial.state, trial.code) == ("complete", "new")
    steps = StepCount(trained=110 + 50, reused=100, reached=150)
    assert [each.steps for each in trial.replicates] == [steps] * 3


def test_a_run_that_cannot_be_trained_fails_its_trial(bench: Workbench) -> None:
    trial = drive(bench, FusedRanks(*[at(60, Died("exit"))] * 3))
    assert (trial.state, trial.reason) == ("failed", "died: exit")
    assert [replicate.state for replicate in trial.replicates] == ["failed"] * 3
    assert trial.steps.trained == 3 * (60 + 10 + 10)


def test_a_twin_is_answered_from_the_record_of_the_trial(bench: Workbench) -> None:
    drive(bench, FusedRanks())
    bench.study.enqueue_trial({"seed_lr": 0.05, "explore_fraction": 0.5})
    runner = FusedRanks()
    second = drive(bench, runner, trials=2)
    first = bench.record.trials[0]
    assert runner.plans == []
    assert (second.value, second.curve, second.key) == (first.value, first.curve, first.key)
    assert (second.steps.trained, second.steps.reused) == (0, 3 * BUDGET)


def test_another_study_of_the_home_is_answered_from_the_record_of_the_run(tmp_path: Path) -> None:
    first = Workbench(tmp_path, replicates=3, fused=True)
    drive(first, FusedRanks())
    optuna.delete_study(study_name="it", storage=first.storage)
    second = Workbench(tmp_path, replicates=3, fused=True)
    runner = FusedRanks()
    trial = drive(second, runner)
    assert runner.plans == []
    assert (trial.value, trial.curve) == (first.after[0].value, first.after[0].curve)
    assert (trial.steps.trained, trial.steps_recorded) == (0, 3 * BUDGET)
    assert second.watching.reused == [(0, 0, BUDGET, "record")]
