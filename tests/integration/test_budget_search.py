"""The budget search on digits: real training, shared trunks, a real MLflow store."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knee_tune.commands.budget import resolve_budget, search_budget
from knee_tune.commands.home import Home, Places
from knee_tune.commands.workers import GroupOptions
from knee_tune.errors import UserError
from knee_tune.records.budget import BudgetRecord
from tests.command_line import complains, drive_here, knee_tune_here
from tests.fake_runner import ranks_here
from tests.mlflow_stores import new_home

STEPS_PER_EPOCH = 50


class Lines:
    """Remembers what people are told; ``then`` may interrupt."""

    def __init__(self, then: Callable[[str], None] = lambda text: None) -> None:
        self.told: list[str] = []
        self._then = then

    def line(self, text: str) -> None:
        self.told.append(text)
        self._then(text)


def search(
    home: Path, lines: Lines | None = None, *, tracked: bool = False, **asked: Any
) -> BudgetRecord:
    """Three small budgets, two schedules; after three epochs both have learned something."""
    study = {"task": "digits", "preset": "quick", **asked.pop("study", {})}
    request = {"budgets": (1, 2, 3), "target": "0.30", "schedules": ("knee", "linear")} | asked
    places = Places.of(Home(home), storage=None, tracking_uri=None if tracked else "none")
    resolved = resolve_budget(**study, **request)
    with ranks_here():
        return search_budget(resolved, places, GroupOptions(device="cpu"), lines or Lines())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_home(tmp_path_factory, tmp_path_factory.mktemp("budget"))


@pytest.fixture(scope="module")
def found(home: Path) -> BudgetRecord:
    return search(home, tracked=True)


def test_knee_needs_the_smaller_budget(found: BudgetRecord) -> None:
    smallest = {name: found.smallest(name) for name in ("knee", "linear")}
    assert {name: cell and cell.epochs for name, cell in smallest.items()} == {
        "knee": 2,
        "linear": 3,
    }
    assert found.saving is not None
    assert found.saving.text == (
        "Knee needs 2 epochs, the best baseline (linear) 3: 33% less training"
    )
    assert found.finished


def test_a_schedule_stops_at_the_first_budget_that_is_enough(found: BudgetRecord) -> None:
    trained = {(run.schedule, run.epochs) for run in found.runs}
    assert trained == {("knee", 1), ("knee", 2), ("linear", 1), ("linear", 2), ("linear", 3)}


def test_a_budget_goes_on_from_the_trunk_of_the_one_before(found: BudgetRecord) -> None:
    trained = {(run.schedule, run.epochs): run.steps_trained for run in found.runs}
    assert trained["knee", 1] == STEPS_PER_EPOCH
    assert trained["knee", 2] == 2 * STEPS_PER_EPOCH - STEPS_PER_EPOCH // 2
    assert found.steps().independent - found.steps().trained == STEPS_PER_EPOCH // 2


def test_a_shared_trunk_changes_no_value(found: BudgetRecord, tmp_path: Path) -> None:
    alone = search(tmp_path / "alone", schedules=("knee",), budgets=(2,))
    assert [run.value for run in alone.runs] == [
        run.value for run in found.runs if (run.schedule, run.epochs) == ("knee", 2)
    ]
    assert alone.steps().trained == 2 * STEPS_PER_EPOCH


def test_the_same_search_again_trains_nothing(home: Path, found: BudgetRecord) -> None:
    lines = Lines()
    assert search(home, lines) == found
    assert sum(text.endswith("(trained before)") for text in lines.told) == len(found.runs)


def test_every_run_is_a_child_of_the_search_in_mlflow(home: Path, found: BudgetRecord) -> None:
    with sqlite3.connect(home / "mlflow.db") as database:
        status = dict(database.execute("SELECT name, status FROM runs"))
        children = database.execute(
            "SELECT count(*) FROM tags JOIN runs ON runs.run_uuid = tags.value "
            "WHERE tags.key = 'mlflow.parentRunId' AND runs.name = ?",
            (found.name,),
        ).fetchone()
        measured = dict(
            database.execute(
                "SELECT key, value FROM latest_metrics JOIN runs USING (run_uuid) WHERE name = ?",
                (found.name,),
            )
        )
    assert set(status.values()) == {"FINISHED"}
    assert children == (len(found.runs),)
    assert (measured["epochs_knee"], measured["epochs_linear"]) == (2, 3)


def test_it_is_kept_and_shown_again(home: Path, found: BudgetRecord) -> None:
    """By the command line, which asks real worker groups; nothing is left for them to train."""
    printed = json.loads(knee_tune_here("budget", "--json", "--home", home).stdout)
    assert printed == json.loads(json.dumps(found.as_json()))
    asked = ("--preset", "quick", "--target", "30%", "--budgets", "1,2,3")
    schedules = ("--schedules", "knee,linear", "--tracking-uri", "none")
    said = drive_here("budget", "--task", "digits", *asked, *schedules, "--home", home).stdout
    assert said.count("(trained before)") == len(found.runs)
    assert found.saving is not None
    for text in (found.saving.text, "steps trained: 425 of 450", f"--name {found.name}"):
        assert text in said


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("budget of 2 epochs"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Lines(interrupt), schedules=("knee",))
    record = search(tmp_path, schedules=("knee",))
    assert record.finished
    assert record.steps().trained == 50 + 75, "the first budget was not trained again"


def test_a_target_that_no_budget_reaches(tmp_path: Path) -> None:
    record = search(
        tmp_path,
        target="99.9",
        budgets=(1,),
        seed_lrs=(0.05, 1e9),
        schedules=("knee",),
        explore_fractions=(0.2, 0.6),
    )
    assert record.smallest("knee") is None
    best = record.best("knee")
    assert best is not None
    assert best.seed_lr == 0.05, "what diverges is no best setting"
    assert len(record.settings("knee", 1)) == 4


def test_a_share_of_warmup_is_of_the_smallest_budget(tmp_path: Path) -> None:
    """Larger ones branch from its trunk, which has one warmup."""
    lines = Lines()
    asked: dict[str, Any] = {"schedules": ("knee",), "budgets": (1, 2), "target": "99"}
    record = search(tmp_path, lines, study={"settings": ("recipe.warmup=10%",)}, **asked)
    assert "warmup: 10% of the budget (50 steps): 5 steps at every budget" in lines.told[0]
    trained = {run.epochs: run.steps_trained for run in record.runs}
    assert trained == {1: 50, 2: 100 - (25 + 5)}
    steps = search(tmp_path, study={"settings": ("recipe.warmup_steps=5",)}, **asked)
    assert steps == record


def test_another_recipe_is_another_search(home: Path, found: BudgetRecord) -> None:
    with pytest.raises(UserError, match="made with another recipe; choose another `name`"):
        search(home, study={"settings": ("recipe.batch_size=32",)})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"budgets": (3, 2)}, r"`budgets` 3,2: must ascend, each budget once; type 2,3"),
        ({"budgets": (0,)}, r"`budgets` 0: a budget is at least 1 epoch"),
        ({"schedules": ("knee", "linaer")}, r"`schedules` linaer: .* did you mean 'linear'"),
        ({"schedules": ("knee", "knee")}, r"`schedules` knee,knee: .* each one once"),
        ({"target": "nan"}, r"`target` nan: must be a finite number"),
        ({"target": "950"}, r"`target` 950: accuracy is measured in percent"),
        ({"seed_lrs": (0.1, 0.0)}, r"`seed_lrs` 0: must lie between"),
        ({"explore_fractions": (1.0,)}, r"`explore_fractions` 1: must lie between 0 and 1"),
        ({"explore_fractions": (0.5,), "schedules": ("linear",)}, r"only knee explores"),
        ({"study": {"task": "digit"}}, r"digit: .*digits"),
        ({"study": {"settings": ("recipe.epochs=3",)}}, r"`budgets` names the epochs"),
        (
            {"study": {"settings": ("scale=0.5",)}},
            r"scale=0.5: `budgets` names the epochs",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        search(tmp_path / "home", **asked)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "home").exists()


def test_one_line_and_exit_code_2(tmp_path: Path) -> None:
    home = tmp_path / "home"
    asked = ("--task", "digits", "--target", "95", "--budgets", "1,x")
    why = "knee-tune: --budgets 1,x: must be whole numbers with commas between"
    complains("budget", *asked, "--home", home, said=(why,))
    assert not home.exists()
