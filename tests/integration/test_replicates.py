"""Trials of several random seeds: what Optuna is told, how they end, what they cost."""

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner, NopPruner, ThresholdPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from knee_tune.plans.plan import Plan, TrainPlan
from knee_tune.records.events import TrialFinished, TrialReported, TrialStarted
from knee_tune.records.study import TrialRecord
from knee_tune.records.values import RunRecord, StepCount
from knee_tune.study import trial_trainer
from knee_tune.study.trial import TrialRun
from knee_tune.workers.protocol import Channel, Done, Outcome, Report
from tests.fake_runner import Died, FakeRunner, What, at
from tests.integration.workbench import BUDGET, Workbench, training_as_a_rank_does

MIDDLE = {1: 60.0, 2: 50.0, 3: 40.0}
"""Accuracies that the scripted runs of these random seeds lie around."""


def rising(seed: int, step: int) -> float:
    """What a run of that seed measures after that step."""
    return MIDDLE[seed] + step / 10


class Scripted(FakeRunner):
    """Ranks whose learning curves are written down."""

    def __init__(self, *faults: What | None, curve: Callable[[int, int], float] = rising) -> None:
        super().__init__(*faults)
        self.curve = curve
        self.trained: list[tuple[int, int]] = []
        """First step and random seed of every attempt."""
        self._reached: dict[Path, int] = {}

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        assert isinstance(plan, TrainPlan)
        first = self._reached.get(plan.checkpoint_dir, 0)
        self.trained.append((first, plan.seed))

        def ended(state: str, step: int, **result: object) -> Done:
            return Done.model_validate(
                {"state": state, "step": step, "first_step": first, "result": result}
            )

        def report(step: int) -> bool:
            metrics = {"lr": 0.1, "valid_accuracy": self.curve(plan.seed, step)}
            told = Report(step=step, total_steps=plan.total_steps, metrics=metrics, seconds=0)
            return channel.report(told).stop

        for step in filter(lambda step: step <= first, plan.evaluation_steps()):
            report(step)
        for step in range(first + 1, plan.total_steps + 1):
            channel.progress(step)
            if step in plan.evaluation_steps():
                if math.isnan(self.curve(plan.seed, step)):
                    return ended("diverged", step)
                self._reached[plan.checkpoint_dir] = step
                if report(step):
                    return ended("stopped", step)
        weights = plan.checkpoint_dir / "weights.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.touch()
        metrics = {"valid_accuracy": self.curve(plan.seed, step), "valid_loss": plan.seed / 2}
        return ended("complete", step, metrics=metrics, weights=str(weights))


class Looking(NopPruner):
    """Remembers what a pruner sees of the trial it is asked about."""

    def __init__(self) -> None:
        self.steps: list[int | None] = []
        self.schedules: list[dict[str, float]] = []
        self.replicates: list[int] = []

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        self.steps.append(trial.last_step)
        self.schedules.append(trial.user_attrs["schedule"])
        self.replicates.append(trial.user_attrs["replicates"])
        return False


class PruneAt(BasePruner):
    """Prunes at one Optuna step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return trial.last_step == self.step


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    """A study of three replicates, in which Optuna has nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*already reported.*")
        yield Workbench(tmp_path, replicates=3)


def drive(bench: Workbench, runner: Scripted, *, trials: int = 1) -> TrialRecord:
    bench.driver(runner).run(trials=trials)
    return bench.record.trials[-1]


def test_the_value_of_a_trial_is_the_mean_over_its_random_seeds(bench: Workbench) -> None:
    runner = Scripted()
    trial = drive(bench, runner)
    assert runner.trained == [(0, 1), (0, 2), (0, 3)]  # the study's own seed is the first
    assert [replicate.seed for replicate in trial.replicates] == [1, 2, 3]
    assert [replicate.value for replicate in trial.replicates] == [75.0, 65.0, 55.0]
    assert trial.value == bench.study.trials[0].value == 65.0
    assert trial.metrics == {"valid_accuracy": 65.0, "valid_loss": 1.0}
    assert trial.spread == stdev([75.0, 65.0, 55.0])
    weights = Path(bench.study.trials[0].user_attrs["weights"])
    assert weights.parent == Path(trial.checkpoint or "") == bench.home / "trial-0000-1"


def test_replicates_lie_one_behind_the_other_and_each_adds_to_the_mean(bench: Workbench) -> None:
    trial = drive(bench, Scripted())
    curves = {seed: [rising(seed, step) for step in (50, 100, 150)] for seed in MIDDLE}
    first_two = [fmean(values) for values in zip(curves[1], curves[2], strict=True)]
    all_three = [fmean(values) for values in zip(*curves.values(), strict=True)]
    reported = bench.study.trials[0].intermediate_values
    assert [*reported] == [50, 100, 150, 200, 250, 300, 350, 400, 450]
    assert [*reported.values()] == pytest.approx([*curves[1], *first_two, *all_three])
    assert [evaluation.step for evaluation in trial.curve] == [50, 100, 150]
    assert [evaluation.metrics["valid_accuracy"] for evaluation in trial.curve] == pytest.approx(
        all_three
    )
    for replicate in trial.replicates:
        measured = [evaluation.metrics["valid_accuracy"] for evaluation in replicate.curve]
        assert measured == curves[replicate.seed]


def test_a_mean_of_the_watched_metric_is_told_in_the_direction_of_the_objective(
    tmp_path: Path,
) -> None:
    bench = Workbench(tmp_path, replicates=2, settings=("recipe.objective=loss",))
    trial = drive(bench, Scripted())
    assert bench.study.trials[0].intermediate_values[200] == -60.0  # digits watches the accuracy
    assert trial.curve[0].metrics == {"valid_accuracy": 60.0}
    assert (trial.value, bench.study.direction.name) == (0.75, "MINIMIZE")


def test_one_replicate_is_reported_as_it_is(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    trial = drive(bench, Scripted())
    assert bench.study.trials[0].intermediate_values == {50: 65.0, 100: 70.0, 150: 75.0}
    assert (trial.value, trial.spread, len(trial.replicates)) == (75.0, None, 1)


def test_a_pruner_knows_schedule_and_replicates_from_the_first_report_on(bench: Workbench) -> None:
    bench.study.pruner = pruner = Looking()
    drive(bench, Scripted())
    assert pruner.steps == [50, 100, 150, 200, 250, 300, 350, 400]  # never at the very end
    schedule = {
        "seed_lr": 0.05,
        "total_steps": BUDGET,
        "warmup_steps": 0,
        "explore_steps": BUDGET // 2,
    }
    assert pruner.schedules == [schedule] * 8
    assert pruner.replicates == [3] * 8


def test_pruning_acts_on_means(bench: Workbench) -> None:
    bench.study.pruner = ThresholdPruner(lower=58.0, n_warmup_steps=BUDGET)
    trial = drive(bench, Scripted(curve=lambda seed, step: {1: 60.0, 2: 57.0, 3: 40.0}[seed]))
    assert (trial.state, trial.reason) == ("pruned", "pruned at step 50 (replicate 3 of 3)")
    assert trial.value is None
    assert trial.steps.trained == 2 * BUDGET + 50
    assert trial.steps_pruned == BUDGET - 50
    assert bench.record.steps.model_dump() == {
        "trained": 350,
        "independent": 450,
        "reused": 0,
        "pruned": 100,
        "recorded": 0,
    }


def test_what_is_pruned_at_the_end_of_a_replicate_has_a_complete_replicate(
    bench: Workbench,
) -> None:
    bench.study.pruner = PruneAt(BUDGET)
    trial = drive(bench, Scripted())
    assert (trial.state, trial.reason) == ("pruned", "pruned at its end (replicate 1 of 3)")
    assert [replicate.state for replicate in trial.replicates] == ["complete"]
    assert (trial.steps.trained, trial.steps_pruned) == (BUDGET, 2 * BUDGET)


def test_a_replicate_that_diverges_ends_its_trial(bench: Workbench) -> None:
    def lost(seed: int, step: int) -> float:
        return math.nan if (seed, step) == (2, 100) else rising(seed, step)

    trial = drive(bench, Scripted(curve=lost))
    assert trial.state == "pruned"
    assert trial.reason.startswith("diverged: ")
    assert trial.reason.endswith(" (replicate 2 of 3)")
    assert [replicate.state for replicate in trial.replicates] == ["complete", "pruned"]
    assert trial.steps.trained == BUDGET + 100
    assert trial.steps.trained + trial.steps_pruned == trial.budget == 3 * BUDGET


def test_a_replicate_whose_group_dies_goes_on_from_its_checkpoint(bench: Workbench) -> None:
    runner = Scripted(None, at(110, Died("signal")))
    trial = drive(bench, runner)
    assert runner.trained == [(0, 1), (0, 2), (100, 2), (0, 3)]
    assert trial.value == 65.0
    assert trial.steps.trained == 3 * BUDGET + 10  # what was lost is counted
    steps = [report.step for report in bench.recording.of_kind(TrialReported)]
    assert steps == [50, 100, 150] * 3
    assert bench.watching.reports == [(0, r, step) for r in range(3) for step in (50, 100, 150)]


def test_a_trial_that_goes_on_trains_no_finished_replicate_again(bench: Workbench) -> None:
    runner = Scripted(None, at(110, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drive(bench, runner)
    trial = drive(bench, runner)
    assert runner.trained == [(0, 1), (0, 2), (100, 2), (0, 3)]
    assert (trial.key, trial.state, trial.value) == ("trial-0000", "complete", 65.0)
    assert [replicate.steps for replicate in trial.replicates] == [
        StepCount(trained=150, reached=150),
        StepCount(trained=160, reached=150),
        StepCount(trained=150, reached=150),
    ]
    assert len(bench.study.trials[trial.number].intermediate_values) == 9


def test_other_code_trains_finished_replicates_again(bench: Workbench) -> None:
    runner = Scripted(None, at(110, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drive(bench, runner)
    bench.code = "new"
    trial = drive(bench, runner)
    assert [seed for _, seed in runner.trained] == [1, 2, 1, 2, 3]
    assert (trial.state, trial.code) == ("complete", "new")


def test_a_trial_that_is_interrupted_after_its_first_replicate_has_its_weights(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = TrialRun._note_replicate

    def interrupted(run: TrialRun, index: int, **changes: Any) -> None:
        note(run, index, **changes)
        if changes.get("state") == "complete":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialRun, "_note_replicate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            drive(bench, Scripted())
    trial = drive(bench, Scripted())
    weights = bench.study.trials[trial.number].user_attrs["weights"]
    assert (trial.state, Path(weights).is_file()) == ("complete", True)


def test_the_trial_of_a_killed_driver_has_right_means_and_counts_its_steps_once(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its curve comes again from the checkpoint; what it cost was noted at its evaluations."""
    monkeypatch.setattr(trial_trainer, "NOTE_SECONDS", 0.0)
    known: dict[str, Any] = {}

    def kill(step: int) -> None:
        if step == 110:
            known.update(bench.study.trials[0].user_attrs)
            raise KeyboardInterrupt

    runner = Scripted(None, kill)
    with pytest.raises(KeyboardInterrupt):
        drive(bench, runner)
    (waiting,) = bench.study.get_trials(states=(TrialState.WAITING,))
    left = RunRecord.model_validate(known["replicate:1"])
    assert left.steps == StepCount(trained=100, reached=100)
    bench.storage.set_trial_user_attr(
        waiting._trial_id, "replicate:1", left.model_copy(update={"curve": ()}).model_dump()
    )
    trial = drive(bench, runner)
    assert [evaluation.step for evaluation in trial.replicates[1].curve] == [50, 100, 150]
    assert trial.curve[0].metrics["valid_accuracy"] == pytest.approx(55.0)
    assert (trial.steps.trained, trial.steps.reused) == (3 * BUDGET, 0)


def test_a_twin_is_answered_from_the_record_of_the_trial(bench: Workbench) -> None:
    bench.study.pruner = PruneAt(BUDGET + 50)
    drive(bench, Scripted())
    bench.study.enqueue_trial({"seed_lr": 0.05, "explore_fraction": 0.5})
    runner = Scripted()
    second = drive(bench, runner, trials=2)
    first = bench.record.trials[0]
    assert runner.trained == []
    assert (second.state, second.curve, second.key) == (first.state, first.curve, first.key)
    assert (second.steps.trained, second.steps.reused) == (0, BUDGET + 50)
    assert second.steps_recorded == second.steps.reused
    assert second.steps_pruned == first.steps_pruned == 2 * BUDGET - 50
    steps = bench.record.steps
    assert steps.trained + steps.reused + steps.pruned == steps.independent == 6 * BUDGET


def test_the_tracking_has_every_replicate_and_mean_and_spread_of_all(bench: Workbench) -> None:
    drive(bench, Scripted())
    (started,) = bench.recording.of_kind(TrialStarted)
    reports = bench.recording.of_kind(TrialReported)
    (finished,) = bench.recording.of_kind(TrialFinished)
    assert started.params["replicates"] == 3
    assert {report.key for report in reports} == {"trial-0000"}
    assert [(report.replicate, report.step) for report in reports] == [
        (replicate, step) for replicate in range(3) for step in (50, 100, 150)
    ]
    assert [report.metrics["valid_accuracy"] for report in reports][2::3] == [75.0, 65.0, 55.0]
    assert finished.metrics == {
        "final_valid_accuracy": 65.0,
        "final_valid_accuracy_std": 10.0,
        "final_valid_loss": 1.0,
        "final_valid_loss_std": 0.5,
        "steps_trained": 450,
        "steps_reused": 0,
        "steps_pruned": 0,
    }


def test_a_failed_replicate_fails_its_trial(bench: Workbench) -> None:
    trial = drive(bench, Scripted(None, *[at(60, Died("exit"))] * 3))
    assert (trial.state, trial.reason) == ("failed", "died: exit (replicate 2 of 3)")
    assert [replicate.state for replicate in trial.replicates] == ["complete", "failed"]


def test_a_table_of_the_papers_kind_costs_what_the_formula_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table 16's design: per seed LR the trunk up to the longest explore phase, and every decay."""
    fractions, seed_lrs, total = (0.2, 0.4, 0.67, 0.8), 9, 100
    lrs = [round(0.005 * 1.5**i, 4) for i in range(seed_lrs)]
    bench = Workbench(
        tmp_path,
        trunks=True,
        epochs=2,
        sampler="grid",
        settings=(
            f"space.seed_lr={{values: {lrs}}}",
            f"space.explore_fraction={{values: {list(fractions)}}}",
        ),
    )
    with training_as_a_rank_does(monkeypatch):
        bench.drive(trials=None)
    assert bench.states == ["complete"] * seed_lrs * len(fractions)
    share = max(fractions) + sum(1 - fraction for fraction in fractions)
    steps = bench.record.steps
    assert steps.trained == pytest.approx(seed_lrs * share * total)
    assert steps.independent == seed_lrs * len(fractions) * total
    assert steps.trained + steps.reused == steps.independent
    assert steps.trained / steps.independent <= 0.684
    assert {origin for *_, origin in bench.watching.reused} == {"trunk"}
    lead, *branches = bench.record.trials[:4]
    assert (lead.explore_fraction, lead.steps.reused) == (0.8, 0)
    assert [branch.steps.reused for branch in branches] == [67, 40, 20]
    for trial in bench.record.trials:
        assert [evaluation.step for evaluation in trial.curve] == [50, 100]  # a branch's is whole


def test_another_study_of_the_home_is_answered_from_the_records_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Workbench(tmp_path)
    with training_as_a_rank_does(monkeypatch):
        first.drive(trials=1)
    optuna.delete_study(study_name="it", storage=first.storage)
    second = Workbench(tmp_path)
    runner = second.drive(trials=1)
    assert runner.plans == []
    (trial,) = second.record.trials
    assert (trial.value, trial.curve) == (first.after[0].value, first.after[0].curve)
    assert (trial.steps.trained, trial.steps.reused, trial.steps_recorded) == (0, BUDGET, BUDGET)
    assert second.watching.reused == [(0, 0, BUDGET, "record")]
    assert second.watching.ends == [(0, "complete", "")]
