"""An audit of pruned trials on digits: real training, checkpoints and databases."""

import io
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from knee_tune.cli.audit import print_audit
from knee_tune.cli.watch import PlainWatcher
from knee_tune.commands.audit import audit_study
from knee_tune.commands.home import Home, Places
from knee_tune.commands.look import look_at
from knee_tune.commands.opened import open_for_training, resolve_asked
from knee_tune.commands.run import StudyStart, run_study
from knee_tune.commands.workers import GroupOptions, open_workers
from knee_tune.config.recipe import Recipe
from knee_tune.config.study import ResolvedStudy
from knee_tune.errors import UserError
from knee_tune.plans.planner import knee_schedule
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, study_record
from knee_tune.workers.protocol import QUIET, Done
from tests.command_line import knee_tune, knee_tune_here
from tests.fake_runner import ranks_here
from tests.mlflow_stores import new_home

NAME = "audited"
SEEDS = (1, 2)
GOOD, BAD, HOPELESS = (0.05, 0.06, 0.07, 0.08), (0.001, 0.002, 0.003), 1e9
"""Seed LRs: completed, pruned by the median of the good ones, diverging."""

OPTIONS = GroupOptions(device="cpu")


def resolved(name: str, *, trials: int, pruner: str = "median") -> ResolvedStudy[Recipe]:
    seed_lrs = [*BAD, *GOOD, HOPELESS]
    return resolve_asked(
        task="digits",
        preset="quick",
        name=name,
        trials=trials,
        sampler="random",
        pruner=pruner,
        replicates=len(SEEDS),
        fuse=False,  # a fused run cannot be taken up by runs of its own
        settings=(
            "recipe.epochs=2",
            f"space.seed_lr={{values: {seed_lrs}}}".replace("1000000000.0", "1.0e+9"),
            "space.explore_fraction={values: [0.5]}",
        ),
    )


@contextmanager
def quiet(start: StudyStart) -> Iterator[PlainWatcher]:
    yield PlainWatcher(Console(quiet=True), start)


class Lines:
    """Remembers what people are told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def line(self, text: str) -> None:
        self.told.append(text)


def train(places: Places, seed_lrs: Sequence[float]) -> StudyRecord:
    """A study of exactly these trials, in this order."""
    spec = resolved(NAME, trials=len(seed_lrs))
    with open_for_training(spec, places, OPTIONS) as opened:
        opened.tracker.close()
        for seed_lr in seed_lrs[1:]:  # the first is there: the paper's default
            opened.study.enqueue_trial({"seed_lr": seed_lr, "explore_fraction": 0.5})
    return run_study(spec, places, OPTIONS, timeout=None, register=False, watch=quiet).record


@pytest.fixture(scope="module", autouse=True)
def _ranks_here() -> Iterator[None]:
    with ranks_here():
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    home = new_home(tmp_path_factory, tmp_path_factory.mktemp("audit"))
    return Places.of(Home(home), storage=None, tracking_uri=None)


@pytest.fixture(scope="module")
def before(places: Places) -> StudyRecord:
    record = train(places, [*GOOD, *BAD, HOPELESS])
    assert [trial.number for trial in record.pruned_trials] == [4, 5, 6], "7 diverged"
    return record


@pytest.fixture(scope="module")
def once(places: Places, before: StudyRecord) -> StudyRecord:
    """By the command line, with real worker groups."""
    said = knee_tune("audit", NAME, "--finish", "1", "--home", places.home.root).stdout
    assert "wrong prunes: 0 of 1" in said
    return look_at(places, NAME)


@pytest.fixture(scope="module")
def twice(places: Places, once: StudyRecord) -> StudyRecord:
    return audit_study(places, NAME, Lines(), finish=9)


def unpruned(trial: TrialRecord, home: Path) -> tuple[float, ...]:
    """The values of a trial's replicates, each trained alone from its first step to its last."""
    spec = resolved("alone", trials=1, pruner="none")
    values = []
    with open_workers(Home(home), spec, OPTIONS) as workers:
        schedule = knee_schedule(
            workers.recipe,
            workers.facts,
            seed_lr=trial.seed_lr,
            explore_fraction=trial.explore_fraction,
        )
        for seed in SEEDS:
            folder = home / f"alone-{seed}"
            plan = workers.solitary_plan(schedule, log_key="alone", checkpoint_dir=folder)
            outcome = workers.runner.run(plan.model_copy(update={"seed": seed}), QUIET)
            assert isinstance(outcome, Done)
            values.append(outcome.result["metrics"]["valid_accuracy"])
    return tuple(values)


def test_an_audited_trial_comes_to_what_it_would_have_been(
    once: StudyRecord, tmp_path: Path
) -> None:
    (audited,) = once.audit.trials
    assert audited.values == unpruned(once.trials[audited.number], tmp_path)


def test_it_goes_on_from_where_pruning_stopped_it(once: StudyRecord) -> None:
    (audited,) = once.audit.trials
    trial = once.trials[audited.number]
    assert trial.steps_pruned > 0
    assert audited.steps.trained == trial.steps_pruned


def test_the_trials_stay_as_they_are(before: StudyRecord, once: StudyRecord) -> None:
    assert once.trials == before.trials
    assert once.best == before.best


def test_asked_for_more_it_finishes_the_others_too(once: StudyRecord, twice: StudyRecord) -> None:
    assert [trial.number for trial in twice.audit.trials] == [4, 5, 6]
    (first,) = once.audit.trials
    assert first in twice.audit.trials


def test_the_rate_of_wrong_prunes(twice: StudyRecord) -> None:
    report = twice.audit_report
    assert report is not None
    assert (report.wrong.count, report.wrong.of, report.pruned) == (0, 3, 3)
    assert report.wrong.low == 0 < report.wrong.high < 1
    assert report.steps_saved == report.steps_trained, "all that was saved was spent to see it"


def test_one_audited_before_is_not_trained_again(places: Places, twice: StudyRecord) -> None:
    lines = Lines()
    assert audit_study(places, NAME, lines, finish=3) == twice
    assert lines.told == [f"{NAME}: 3 pruned trials were audited before"]


def test_what_people_see(places: Places, twice: StudyRecord) -> None:
    home = places.home.root
    printed = json.loads(knee_tune_here("audit", "--json", "--home", home).stdout)
    assert printed["wrong"]["of"] == 3
    assert [verdict["number"] for verdict in printed["verdicts"]] == [4, 5, 6]
    shown = io.StringIO()
    print_audit(Console(file=shown, width=120), twice, asked=9)
    assert "(only 3 trials were pruned: all are audited)" in shown.getvalue()
    assert "wrong prunes: 0 of 3 (0%, 95% interval 0% to 56%)" in shown.getvalue()
    status = knee_tune_here("status", "--home", home).stdout
    assert "audit: 0 of 3 audited prunes were wrong (95% interval 0% to 56%)" in status


def test_audits_are_children_of_the_study_in_mlflow(places: Places, twice: StudyRecord) -> None:
    with sqlite3.connect(places.home.root / "mlflow.db") as database:
        rows = database.execute(
            "SELECT child.name, child.status FROM tags JOIN runs parent "
            "ON parent.run_uuid = tags.value AND tags.key = 'mlflow.parentRunId' "
            "JOIN runs child USING (run_uuid) WHERE child.name LIKE 'audit of%'"
        ).fetchall()
    assert len(rows) == 3 * len(SEEDS)
    assert {status for _, status in rows} == {"FINISHED"}


def test_without_pruned_trials_there_is_nothing_to_audit(tmp_path: Path) -> None:
    places = Places.of(Home(tmp_path), storage=None, tracking_uri="none")
    with pytest.raises(UserError, match="there is no study in it"):
        audit_study(places, NAME, Lines(), finish=1)
    spec = resolved(NAME, trials=1, pruner="none")
    with open_for_training(spec, places, OPTIONS):
        pass
    with pytest.raises(UserError, match="no trial is complete yet"):
        audit_study(places, NAME, Lines(), finish=1)
    run_study(spec, places, OPTIONS, timeout=None, register=False, watch=quiet)
    with pytest.raises(UserError, match=r"no trial was pruned \(pruner none; diverged") as error:
        audit_study(places, NAME, Lines(), finish=1)
    assert "\n" not in str(error.value)
    assert study_record(load_study(open_storage(places.storage_url), NAME)).audit.trials == ()
