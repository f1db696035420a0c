"""Confirmation in a whole ``run``: study, trainer, records and registry are real.

Only the ranks are replaced, by arithmetic: what a run reaches is its point's quality and its seed's
luck, so that every verdict is known beforehand.
"""

import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import save_model

from knee_tune.cli.summary import (
    print_confirmation,
    print_registered,
    print_status,
    refuse_failures,
)
from knee_tune.cli.watch import PlainWatcher
from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.report import study_report
from knee_tune.commands.run import RunSummary, run_study
from knee_tune.commands.winner import complete_trial, register_study
from knee_tune.commands.workers import GroupOptions
from knee_tune.config.study import FRESH_SEEDS
from knee_tune.errors import MachineError, UserError
from knee_tune.plans.plan import DescribePlan, Plan, TaskFacts, TestPlan, TrainPlan
from knee_tune.records.findings import Confirmation
from knee_tune.report.answer import study_note
from knee_tune.report.report import StudyReport
from knee_tune.tasks.registry import task_entry
from knee_tune.tasks.tabular.task import TabularTask
from knee_tune.tracking.store import connect, local_store
from knee_tune.workers.protocol import Channel, Done, Failure, Outcome, Report
from tests.fake_runner import FakeRunner
from tests.mlflow_stores import new_home

DEFAULT, BETTER, WORSE = 0.05, 0.1, 0.2
"""Seed LRs of the search; all at an explore fraction of 50 %."""

Quality = Callable[[float, int], float | None]
"""Accuracy that a seed LR reaches with a random seed; None: the run diverges."""


def luck(seed: int) -> float:
    """The same for every point, as trunks and data orders share their noise."""
    return (0.0, 1.5, -1.0, 0.5, -0.5)[seed % 5]


def a_real_difference(seed_lr: float, seed: int) -> float:
    quality = {DEFAULT: 70.0, BETTER: 73.0 + 0.1 * (seed % 3), WORSE: 60.0}
    return quality[seed_lr] + luck(seed)


def a_lucky_trial(seed_lr: float, seed: int) -> float:
    """In the search one seed LR looks much better; with fresh seeds it is as good as the other."""
    if seed_lr == BETTER:
        return 80.0 if seed < FRESH_SEEDS else 70.1 + 3 * luck(seed + 2)
    return 70.0 + luck(seed)


def a_default_that_was_underrated(seed_lr: float, seed: int) -> float:
    """The search's best seed LR was lucky: with fresh seeds the default is better."""
    lucky = 80.0 if seed_lr == BETTER and seed < FRESH_SEEDS else 70.0 - 10 * seed_lr
    return lucky + luck(seed)


class Arithmetic(FakeRunner):
    """No ranks, on a machine with as many GPUs as it is told."""

    def __init__(self, quality: Quality, *, gpus: int = 0) -> None:
        super().__init__()
        self.quality, self.gpus = quality, gpus
        self.tested: list[TestPlan] = []
        self.fresh: list[tuple[float, int]] = []
        """Seed LR and random seed of every run of a confirmation that was begun."""
        self.interrupt_at: int | None = None

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        if isinstance(plan, DescribePlan):
            facts = TaskFacts(
                steps_per_epoch=4,
                data_fingerprint="f",
                parameters=1,
                examples={"test": 8},
                gpus=self.gpus,
            )
            return Done(state="complete", result=facts.model_dump())
        if isinstance(plan, TestPlan):
            self.tested.append(plan)
            return Done(state="complete", result={"metrics": {"test_accuracy": 69.0}})
        assert isinstance(plan, TrainPlan)
        return self._train(plan, channel)

    def _train(self, plan: TrainPlan, channel: Channel) -> Outcome:
        seed_lr, seed = plan.schedule.seed_lr, plan.seed
        if seed >= FRESH_SEEDS:
            self.fresh.append((seed_lr, seed - FRESH_SEEDS))
            if len(self.fresh) == self.interrupt_at:
                channel.progress(1)
                raise KeyboardInterrupt
        reached = self.quality(seed_lr, seed)
        if reached is None:
            return Done(state="diverged", step=1, reason="non-finite loss")
        total = plan.total_steps
        metrics = {"valid_accuracy": reached, "valid_loss": 100 - reached}
        channel.progress(total)
        channel.report(
            Report(step=total, total_steps=total, metrics={**metrics, "lr": 0.0}, seconds=0.1)
        )
        plan.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        weights = plan.checkpoint_dir / "weights.safetensors"
        torch.manual_seed(seed)
        task = task_entry(plan.task).build(plan.recipe, data_dir=plan.data_dir, seed=seed)
        save_model(task.build_model(), str(weights))
        return Done(
            state="complete", step=total, result={"metrics": metrics, "weights": str(weights)}
        )


class Bench:
    """One home, on which the same study is run again and again."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self._monkeypatch = home, monkeypatch
        self.said = ""

    def run(
        self,
        ranks: Arithmetic,
        *,
        confirm: str | None = None,
        total_runs: int | None = None,
        tracked: bool = False,
        register: bool = True,
        slots: int = 1,
        amp: bool | None = None,
        trials: int = 3,
        timeout: float | None = None,
    ) -> RunSummary:
        self._monkeypatch.setattr(
            "knee_tune.commands.workers.ForkserverRunner", lambda *_, **__: ranks
        )
        spec = resolve_asked(
            task="digits",
            name="s",
            sampler="random",
            pruner="none",
            trials=trials,
            confirm=confirm,
            total_runs=total_runs,
            settings=(
                "recipe.epochs=1",
                f"recipe.seed_lr={DEFAULT}",
                f"space.seed_lr.values=[{DEFAULT}, {BETTER}, {WORSE}]",
                "space.explore_fraction.values=[0.5]",
            ),
        )
        output = io.StringIO()
        console = Console(file=output, width=200)
        try:
            return run_study(
                spec,
                self.places(tracked),
                GroupOptions(slots=slots, amp=amp),
                timeout=timeout,
                register=tracked and register,
                watch=lambda start: nullcontext(PlainWatcher(console, start)),
            )
        finally:
            self.said = output.getvalue()

    def places(self, tracked: bool) -> Places:
        uri = local_store(self.home) if tracked else "none"
        return Places.of(Home(self.home), storage=None, tracking_uri=uri)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path / "home", monkeypatch)


def confirmation_of(summary: RunSummary) -> Confirmation:
    assert summary.record.confirmation is not None
    return summary.record.confirmation


def test_a_better_point_wins_over_fresh_seeds(bench: Bench) -> None:
    ranks = Arithmetic(a_real_difference)
    summary = bench.run(ranks, confirm="2:5")
    found = confirmation_of(summary)
    assert [candidate.seed_lr for candidate in found.candidates] == [BETTER, DEFAULT]
    assert found.seeds == tuple(range(FRESH_SEEDS + 1, FRESH_SEEDS + 6))
    assert found.confirmed
    assert found.best is not None
    assert found.best.seed_lr == BETTER
    assert found.best.difference is not None
    assert found.best.difference.value == pytest.approx(3.1)
    assert summary.record.winner is not None
    assert summary.record.winner.trial == summary.record.trials[found.best.trial or 0]
    assert summary.record.confirmed(summary.record.trials[0]) == "no"
    assert len(ranks.fresh) == 10  # the default is among the best two, and is trained once
    assert sum(summary.record.counts.model_dump().values()) == 3  # fresh runs are no trials
    assert found.words in bench.said
    assert (found.steps.trained, found.steps.reused) == (40, 0)  # four steps a run


def test_the_default_is_a_candidate_even_if_it_is_not_among_the_best(bench: Bench) -> None:
    found = confirmation_of(bench.run(Arithmetic(a_real_difference), confirm="1:2"))
    assert [(each.seed_lr, each.default) for each in found.candidates] == [
        (BETTER, False),
        (DEFAULT, True),
    ]


def test_a_lucky_trial_is_not_confirmed(bench: Bench) -> None:
    summary = bench.run(Arithmetic(a_lucky_trial), confirm="1:5")
    found = confirmation_of(summary)
    assert found.best is not None
    assert (found.best.seed_lr, found.confirmed) == (BETTER, False)
    assert summary.record.best is not None
    assert summary.record.confirmed(summary.record.best) == "no"


def test_more_seeds_train_only_those_that_are_missing(bench: Bench) -> None:
    bench.run(Arithmetic(a_real_difference), confirm="1:2")
    more = Arithmetic(a_real_difference)
    found = confirmation_of(bench.run(more, confirm="1:4"))
    assert sorted(more.fresh) == [(DEFAULT, 3), (DEFAULT, 4), (BETTER, 3), (BETTER, 4)]
    assert len(found.seeds) == 4
    again = Arithmetic(a_real_difference)
    assert confirmation_of(bench.run(again, confirm="1:4")) == found
    assert again.fresh == []


@pytest.mark.parametrize("slots", [1, 2])
def test_an_interrupted_confirmation_goes_on_where_it_was(bench: Bench, slots: int) -> None:
    interrupted = Arithmetic(a_real_difference)
    interrupted.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        bench.run(interrupted, confirm="1:4", slots=slots)
    begun = len(interrupted.fresh)
    rest = Arithmetic(a_real_difference)
    assert confirmation_of(bench.run(rest, confirm="1:4", slots=slots)).confirmed
    assert 8 - (begun - 1) <= len(rest.fresh) <= 8 - (begun - slots)
    assert len({*interrupted.fresh, *rest.fresh}) == 8


def test_a_search_that_was_cut_off_is_not_confirmed(bench: Bench) -> None:
    cut_off = bench.run(Arithmetic(a_real_difference), confirm="1:2", timeout=0.0)
    assert cut_off.record.confirmation is None
    assert "not confirmed yet: --timeout ended the search" in bench.said
    assert confirmation_of(bench.run(Arithmetic(a_real_difference), confirm="1:2")).seeds


def test_a_confirmation_ends_in_time_and_goes_on(bench: Bench) -> None:
    bench.run(Arithmetic(a_real_difference), confirm=None)
    late = Arithmetic(a_real_difference)
    assert bench.run(late, confirm="1:2", timeout=0.0).record.confirmation is None
    assert late.fresh == []
    assert "not confirmed yet: --timeout ended the confirmation" in bench.said
    assert confirmation_of(bench.run(late, confirm="1:2")).confirmed


def test_a_candidate_that_diverges_is_out(bench: Bench) -> None:
    def sometimes(seed_lr: float, seed: int) -> float | None:
        lost = seed_lr == BETTER and seed == FRESH_SEEDS + 2
        return None if lost else a_real_difference(seed_lr, seed)

    found = confirmation_of(bench.run(Arithmetic(sometimes), confirm="1:3"))
    assert found.best is not None
    assert (found.best.seed_lr, found.confirmed) == (DEFAULT, True)
    output = io.StringIO()
    print_confirmation(Console(file=output, width=200), found)
    assert "seed LR 0.1, explore 50% is out: diverged: non-finite loss" in output.getvalue()


def test_a_default_that_cannot_be_trained_leaves_no_verdict(bench: Bench) -> None:
    class Failing(Arithmetic):
        def _train(self, plan: TrainPlan, channel: Channel) -> Outcome:
            if plan.schedule.seed_lr == DEFAULT and plan.seed >= FRESH_SEEDS:
                return Failure(kind="exception", rank=0, message="no luck at all")
            return super()._train(plan, channel)

    summary = bench.run(Failing(a_real_difference), confirm="1:3")
    found = confirmation_of(summary)
    assert found.best is not None
    assert (found.best.seed_lr, found.confirmed) == (BETTER, False)
    assert "could not be trained" in found.words
    assert "no luck at all" in bench.said
    with pytest.raises(MachineError, match=r"3 runs of its confirmation failed; the same command"):
        refuse_failures(summary.record)


def test_a_search_that_went_on_may_leave_the_confirmation_behind(bench: Bench) -> None:
    def late_best(seed_lr: float, seed: int) -> float:
        return 90.0 if seed_lr == last else 70.0 - seed_lr

    first = bench.run(Arithmetic(lambda seed_lr, seed: 70.0 - seed_lr), confirm="1:2", trials=2)
    tried = {trial.seed_lr for trial in first.record.trials}
    (last,) = {DEFAULT, BETTER, WORSE} - tried
    record = bench.run(Arithmetic(late_best), confirm=None).record
    assert record.confirmation is not None
    assert record.winner is not None
    assert record.winner.seed_lr == last
    assert record.winner.confirmed == "not tried"


@pytest.fixture
def tracked(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    return Bench(new_home(tmp_path_factory, tmp_path), monkeypatch)


def aliases(home: Path) -> dict[str, str]:
    """Seed LR of the version behind every alias."""
    client = connect(local_store(home))
    model = client.get_registered_model("knee-tune-digits")
    versions = {
        alias: client.get_model_version(model.name, version)
        for alias, version in model.aliases.items()
    }
    return {alias: version.tags["knee.seed_lr"] for alias, version in versions.items()}


def test_a_candidate_becomes_champion_once_it_is_confirmed(tracked: Bench) -> None:
    before = mlflow.get_tracking_uri()
    ranks = Arithmetic(a_real_difference)
    first = tracked.run(ranks, confirm=None, tracked=True).registered
    assert first is not None
    assert (first.alias, first.confirmed, first.new) == ("candidate", "not tried", True)
    assert aliases(tracked.home) == {"candidate": "0.1"}
    output = io.StringIO()
    print_registered(Console(file=output), first, tracked.places(tracked=True))
    assert "--confirm 3:5" in output.getvalue()
    assert f'mlflow.set_tracking_uri("{local_store(tracked.home)}")' in output.getvalue()

    second = tracked.run(ranks, confirm="1:5", tracked=True).registered
    assert second is not None
    assert (second.alias, second.confirmed, second.new) == ("champion", "yes", False)
    assert second.version == first.version
    assert aliases(tracked.home) == {"champion": "0.1"}
    client = MlflowClient(local_store(tracked.home))
    tags = client.get_model_version("knee-tune-digits", str(second.version)).tags
    assert tags["knee.confirmed"] == "yes"
    experiment = client.get_experiment_by_name("knee-tune-digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    fresh = [run for run in runs if str(run.info.run_name).startswith("confirm ")]
    assert len(fresh) == 10
    assert {run.info.status for run in fresh} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in fresh} == {
        run.info.run_id for run in runs if run.info.run_name == "s"
    }
    assert mlflow.get_tracking_uri() == before


def test_everybody_names_the_same_winner(tracked: Bench) -> None:
    """Search and confirmation disagree, and the confirmation decides, wherever it is asked."""
    ranks = Arithmetic(a_default_that_was_underrated)
    summary = tracked.run(ranks, confirm="1:5", tracked=True)
    record, places = summary.record, tracked.places(tracked=True)
    assert record.best is not None
    assert record.winner is not None
    assert record.winner.trial is not None
    assert (record.best.seed_lr, record.winner.seed_lr) == (BETTER, DEFAULT)
    assert (record.winner.confirmed, record.winner.seeds) == ("yes", 5)
    number = record.winner.trial.number

    printed = record.best_as_json()
    assert printed is not None
    assert (printed["trial"], printed["seed_lr"]) == (number, DEFAULT)
    assert printed["value"] == pytest.approx(record.winner.value) == pytest.approx(69.6, abs=0.2)
    output = io.StringIO()
    print_status(Console(file=output, width=200), record)
    assert f"best: seed LR 0.05, explore 50% (valid_accuracy {69.6:.3g}" in output.getvalue()
    assert f"over 5 fresh seeds, trial {number})" in output.getvalue()
    assert "on the edge of the search space (smallest seed LR)" in output.getvalue()

    assert complete_trial(record, None) == record.winner.trial  # replay, register and analyse
    assert aliases(tracked.home) == {"champion": "0.05"}
    report = study_report(places, "s")
    assert isinstance(report, StudyReport)
    assert report.recommended.seed_lr == DEFAULT
    assert report.recommended.expected.value == pytest.approx(record.winner.value)
    (marked,) = {t.marked for each in report.sections if each.key == "trials" for t in each.tables}
    assert marked == number
    assert "**seed LR 0.05, explore 50%**" in study_note(record, summary.ridge)

    client = MlflowClient(local_store(tracked.home))
    experiment = client.get_experiment_by_name("knee-tune-digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (study,) = (run for run in runs if run.info.run_name == "s")
    assert study.data.tags["knee.best_trial"] == str(number)
    assert study.data.tags["knee.best_seed_lr"] == "0.05"
    assert study.data.metrics["recommended_seed_lr"] == DEFAULT
    assert study.data.metrics["best_valid_accuracy"] == pytest.approx(record.winner.value)


def test_a_confirmed_point_without_a_complete_trial_wins_all_the_same(bench: Bench) -> None:
    """The search pruned the default, or a grid does not hold it; fresh seeds trained it."""
    record = bench.run(Arithmetic(a_default_that_was_underrated), confirm="1:5").record
    lost = tuple(each for each in record.trials if each.seed_lr != DEFAULT)
    record = record.model_copy(update={"trials": lost})
    assert record.winner is not None
    assert (record.winner.seed_lr, record.winner.trial) == (DEFAULT, None)
    assert record.winner.evidence == "over 5 fresh seeds, no complete trial"
    with pytest.raises(UserError, match=r"trained to its end by fresh seeds alone.*`trial`"):
        complete_trial(record, None)


def test_what_was_not_confirmed_is_a_candidate_unless_a_person_says_otherwise(
    tracked: Bench,
) -> None:
    summary = tracked.run(Arithmetic(a_lucky_trial), confirm="1:5", tracked=True)
    assert summary.registered is not None
    assert (summary.registered.alias, summary.registered.confirmed) == ("candidate", "no")
    assert aliases(tracked.home) == {"candidate": "0.1"}

    def register(**options: str) -> str:
        places = tracked.places(tracked=True)
        return register_study(
            places,
            "s",
            number=None,
            on_line=lambda line: None,
            untried="champion",
            **options,  # type: ignore[arg-type]
        ).alias

    assert register() == "candidate"
    assert register(alias="champion") == "champion"
    assert register() == "champion"  # a person made it one
    assert aliases(tracked.home) == {"champion": "0.1"}


def test_a_later_register_tests_in_the_arithmetic_of_the_training(tracked: Bench) -> None:
    gpu = Arithmetic(a_real_difference, gpus=1)
    tracked.run(gpu, confirm=None, tracked=True, register=False, amp=True)
    assert not gpu.tested
    register_study(tracked.places(tracked=True), "s", number=None, on_line=lambda line: None)
    (test,) = gpu.tested
    assert (test.placement.device, test.placement.amp) == ("cuda", True)


def test_what_the_next_trial_may_beat_is_neither_tested_nor_registered(tracked: Bench) -> None:
    ranks = Arithmetic(a_real_difference)
    tracked.run(ranks, confirm=None, tracked=True, register=False, trials=1)
    summary = tracked.run(ranks, confirm=None, tracked=True, timeout=0.0)
    assert summary.record.best is not None
    assert summary.registered is None
    assert summary.unregistered.startswith(
        "not registered: `timeout` ended the search before its last trial"
    )
    assert not ranks.tested
    assert tracked.run(ranks, confirm=None, tracked=True).registered is not None


def test_a_model_that_cannot_be_registered_costs_no_report(
    tracked: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*_: object) -> None:
        raise NotImplementedError("predict is for later")

    monkeypatch.setattr(TabularTask, "predict", predict)
    summary = tracked.run(Arithmetic(a_real_difference), confirm=None, tracked=True)
    assert summary.registered is None
    assert "(NotImplementedError: predict is for later)" in summary.unregistered
    assert summary.report is not None
    assert summary.report.is_file()
