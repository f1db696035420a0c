"""A record answers only for the code that made it: a task in a file of one's own, its network in
another file beside it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from knee_tune.records.study import TrialRecord
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, study_record
from knee_tune.tasks.registry import TASKS, TaskEntry
from tests.command_line import QUICK, knee_tune_here

TASK = """
from knee_tune.tasks.tabular.task import DigitsTask
from my_net import Net

class MyTask(DigitsTask):
    def build_model(self):
        return Net(super().build_model())
"""

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, model):
        super().__init__(model, nn.ReLU())
"""


class Folder:
    """A folder with somebody's task, and a home."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._home = folder, folder / "home"
        monkeypatch.syspath_prepend(folder)
        recipe = "knee_tune.tasks.tabular.recipe:DigitsRecipe"
        monkeypatch.setitem(TASKS, "digits", TaskEntry(recipe=recipe, task="my_task:MyTask"))
        (folder / "my_task.py").write_text(TASK)

    def trial(self, study: str, *, net: str) -> TrialRecord:
        """The trial of a study with that network, in a process that has not loaded another."""
        (self._folder / "my_net.py").write_text(net)
        for module in ("my_task", "my_net"):
            sys.modules.pop(module, None)
        knee_tune_here(
            *(*QUICK, "--study-name", study, "--trials", "1", "--set", "recipe.epochs=1"),
            *("--home", self._home, "--tracking-uri", "none", "--no-register"),
        )
        storage = open_storage(f"sqlite:///{self._home}/optuna.db")
        (trial,) = study_record(load_study(storage, study)).trials
        return trial


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two files of one size and second
    yield Folder(tmp_path, monkeypatch)
    for module in ("my_task", "my_net"):
        sys.modules.pop(module, None)


def test_a_changed_helper_is_seen_and_a_comment_is_not(folder: Folder) -> None:
    first = folder.trial("first", net=NET)
    again = folder.trial("again", net=f"# as in the paper\n{NET}")
    assert (again.value, again.code) == (first.value, first.code)
    assert (again.steps.trained, again.steps_recorded) == (0, 50)

    other = folder.trial("other", net=NET.replace("ReLU", "Tanh"))
    assert other.value != first.value
    assert other.code != first.code
    assert (other.steps.trained, other.steps_recorded) == (50, 0)
