"""What other code saved is not taken for what this code would have done."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import knee_tune
from knee_tune.tasks.base import Task
from knee_tune.tasks.digits.recipe import DigitsRecipe
from knee_tune.tasks.digits.task import DigitsTask
from knee_tune.training.fingerprint import code_fingerprint

OWN_TASK = """
import sklearn
from knee_tune.tasks.digits.task import DigitsTask

class OwnTask(DigitsTask):
    pass
"""


def make(task_type: type[DigitsTask] = DigitsTask) -> DigitsTask:
    return task_type(DigitsRecipe(), data_dir=Path(), seed=1)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A task in a file of the people's own, in their working folder."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own_task.py"
    path.write_text(OWN_TASK)
    yield path
    sys.modules.pop("own_task", None)


def load() -> Task[DigitsRecipe]:
    return make(importlib.import_module("own_task").OwnTask)


def test_the_same_code_has_the_same_fingerprint(own: Path) -> None:
    assert code_fingerprint(make()) == code_fingerprint(make())
    assert code_fingerprint(load()) not in ("", code_fingerprint(make()))


def test_a_task_of_ones_own_counts_with_its_file_alone(own: Path) -> None:
    task = load()
    before = code_fingerprint(task)
    own.with_name("notes.py").write_text("import numpy\n")
    assert code_fingerprint(task) == before

    own.write_text(OWN_TASK.replace("pass", "weight = 2"))
    assert code_fingerprint(task) != before


@pytest.mark.parametrize(
    "source",
    [
        "training/loop.py",
        "training/optimizer.py",
        "schedules/knee.py",
        "distributed/group.py",
        "specs/recipe.py",
        "planning/plan.py",
        "tasks/seeding.py",
    ],
)
def test_what_every_run_rests_on_counts(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path(knee_tune.__file__).parent
    copy = shutil.copytree(original, tmp_path / "knee_tune", ignore=_but_sources)
    monkeypatch.setattr(knee_tune, "__file__", str(copy / "__init__.py"))
    before = code_fingerprint(make())
    (copy / "app").mkdir(exist_ok=True)
    (copy / "app" / "anything.py").write_text("changed = True\n")
    assert code_fingerprint(make()) == before

    with (copy / source).open("a") as file:
        file.write("changed = True\n")
    assert code_fingerprint(make()) != before


def _but_sources(folder: str, names: list[str]) -> list[str]:
    unwanted = {"app", "cli", "tracking", "tuning", "doctor", "translation", "__pycache__"}
    return [name for name in names if name in unwanted]


@pytest.mark.parametrize(
    ("library", "counts"),
    [("torch", True), ("scikit-learn", True), ("numpy", True), ("mlflow", False)],
)
def test_libraries_of_the_task_count(
    library: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_fingerprint(make())
    monkeypatch.setattr(
        "knee_tune.training.fingerprint.version",
        lambda name: "0.0" if name == library else version(name),
    )
    assert (code_fingerprint(make()) != before) == counts
