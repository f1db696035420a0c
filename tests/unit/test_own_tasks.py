"""Tasks outside the package: how they are named, found, and refused in one line."""

import importlib
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from knee_tune.config.recipe import task_slug
from knee_tune.config.resolve import resolve_study
from knee_tune.errors import UserError
from knee_tune.tasks import registry
from knee_tune.tasks.outside import modules_of
from knee_tune.tasks.registry import TASKS, TaskEntry, installed_tasks, task_entry
from knee_tune.training.fingerprint import TrainingCode

TASK = """
import knee_tune
from helper import CLASSES

class MyRecipe(knee_tune.SimpleRecipe):
    epochs: int = 3
    width: int = 16

class MyTask(knee_tune.SimpleTask[MyRecipe]):
    '''Mine.'''
    metrics = {"loss": "minimize", "accuracy": "maximize"}
    watched = "accuracy"
    def datasets(self): ...
    def build_model(self): ...
    def loss(self, model, batch): ...
    def evaluate_batch(self, model, batch): ...

class Unfinished(knee_tune.SimpleTask):
    metrics = {"loss": "minimize"}
    def datasets(self): ...

class Misspelled(MyTask):
    metrics = {"loss": "minimise"}

class WatchesAnother(MyTask):
    watched = "f1"

class Digits(MyTask): ...

class NoTask: ...
"""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Know no module of another test's own, nor its folder; and leave none."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    mine = ("my_task", "helper", "project", "broken", "code")
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] in mine}
    yield
    for name in [*sys.modules]:
        if name.split(".")[0] in mine:
            del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def into(folder: str = "mine", **files: str) -> Path:
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, source in {"my_task": TASK, "helper": "CLASSES = 3\n", **files}.items():
            (place / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return place

    return into


def resolved(task: str, *settings: str) -> Any:
    return resolve_study(
        space_file=task_entry(task).read_space(task),
        recipe_type=lambda name: task_entry(name).recipe_type(),
        settings=settings,
    )


def test_a_file_is_found_wherever_one_stands(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(write())
    spec = resolved("./my_task.py:MyTask", "recipe.width=8")
    recipe = spec.typed_recipe

    assert spec.task == f"{tmp_path}/mine/my_task.py:MyTask"
    assert (spec.name, spec.subject) == ("knee-my-task-3ep", "my-task")
    assert (recipe.width, recipe.objective, recipe.watched) == (8, "accuracy", "accuracy")
    monkeypatch.chdir("/")
    assert task_entry(spec.task).recipe_type() is type(recipe)


def test_a_file_of_a_package_is_a_module_of_it(write: Write) -> None:
    folder = write("work/project", __init__="", my_task=TASK.replace("from helper", "from .helper"))
    entry = task_entry(f"{folder}/my_task.py:MyTask")
    assert entry.task == "project.my_task:MyTask"
    assert entry.recipe_type().model_fields["width"].default == 16


def test_a_module_is_named_by_its_dotted_name(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(write())
    assert task_entry("my_task:MyTask").task_type().__name__ == "MyTask"
    assert resolved("my_task:MyTask").task == "my_task:MyTask"


def test_the_search_space_is_around_the_recipe_unless_a_yaml_beside_it_says_more(
    write: Write,
) -> None:
    folder = write()
    task = f"{folder}/my_task.py:MyTask"
    assert resolved(task).space.seed_lr.low == 1e-4
    yaml = folder / "my_task.yaml"
    yaml.write_text("trials: 3\n")
    with pytest.raises(UserError, match=r"my_task.yaml: trials: unknown key \(value 3, line 1\)"):
        resolved(task)
    yaml.write_text("space:\n  seed_lr: {values: [0.1]}\n  explore_fraction: {values: [0.5]}\n")
    assert resolved(task).space.seed_lr.values == (0.1,)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MyTsk", "there is no class MyTsk; did you mean 'MyTask'?"),
        ("NoTask", "it is no task; derive it from knee_tune.SimpleTask"),
        ("Unfinished", "it lacks build_model, evaluate_batch, loss"),
        ("Misspelled", 'metrics must be as in {"loss": "minimize"'),
        ("WatchesAnother", "watched is 'f1'; it must be one of its metrics, loss, accuracy"),
        ("Digits", "would have the name of the task digits; rename the class"),
        ("", "name the class too, as in ./my_task.py:MyTask"),
    ],
)
def test_what_is_wrong_with_a_class_is_one_line(name: str, said: str, write: Write) -> None:
    task = f"{write()}/my_task.py" + (f":{name}" if name else "")
    with pytest.raises(UserError) as error:
        task_entry(task).recipe_type()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\nimport no_such_library\n", "broken.py:2: ModuleNotFoundError: No module named"),
        ("def f(:\n", "broken.py:1: SyntaxError"),
        ("\n\nx = 1 / 0\n", "broken.py:3: ZeroDivisionError: division by zero"),
        ("import helper\n", "helper.py:1: NameError"),
    ],
)
def test_an_error_of_the_file_is_told_with_its_place(source: str, said: str, write: Write) -> None:
    folder = write(broken=source, helper="CLASSES = three")
    with pytest.raises(UserError) as error:
        task_entry(f"{folder}/broken.py:MyTask").task_type()
    assert str(error.value).startswith(f"{folder}/{said}")


def test_files_and_helpers_of_one_name_are_each_tasks_own(write: Write) -> None:
    """Also their search spaces, and whatever the file imports that lies beside it."""
    lrs = {"a": 0.1, "b": 0.2}
    for name, lr in lrs.items():
        folder = write(name, helper=f"CLASSES = {name!r}", my_task=f"{TASK}\nSEEN = CLASSES\n")
        (folder / "my_task.yaml").write_text(
            f"space:\n  seed_lr: {{values: [{lr}]}}\n  explore_fraction: {{values: [0.5]}}\n"
        )
    tasks = {name: f"{folder.parent / name}/my_task.py:MyTask" for name in lrs}
    types = {name: task_entry(task).task_type() for name, task in tasks.items()}

    for name, task in [*tasks.items()] * 2:
        entry = task_entry(task)
        assert entry.task_type() is types[name]
        assert entry.task_type().loss.__globals__["SEEN"] == name
        assert resolved(task).space.seed_lr.values == (lrs[name],)
        code = TrainingCode(entry.task.partition(":")[0])
        assert {file.parent.name for file in code.files.values()} == {name}


def test_code_that_travels_with_models_is_each_models_own(write: Write) -> None:
    """Modules of the same name that whoever loads a model has stay what they are."""
    sys.path.insert(0, str(write("mine")))
    mine = importlib.import_module("my_task")
    folders = [write(name, helper=f"CLASSES = {name!r}") for name in ("a", "b")]
    for folder in folders * 2:
        with modules_of(folder):
            entry = task_entry("my_task:MyTask")
            assert entry.task_type().loss.__globals__["CLASSES"] == folder.name
    assert importlib.import_module("my_task") is mine


def test_a_file_named_like_another_module_is_refused(write: Write) -> None:
    folder = write(code=TASK)
    importlib.import_module("code")
    with pytest.raises(UserError, match=r"Python has another module code, .*; rename the file"):
        task_entry(f"{folder}/code.py:MyTask").task_type()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("./nowhere.py:MyTask", "there is no file"),
        ("no_such_module:MyTask", "there is no module no_such_module"),
        ("digitz", "did you mean 'digits'?"),
        ("a b:", "not a task; write it as in"),
    ],
)
def test_what_is_not_there_is_one_line(task: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        task_entry(task).recipe_type()


@pytest.mark.parametrize(
    ("task", "slug"),
    [
        ("digits-clean", "digits-clean"),
        ("/home/me/my_task.py:MyTask", "my-task"),
        ("vision.nets:HTTPNet2Go", "http-net2-go"),
        ("a:_Größe", "gre"),
    ],
)
def test_studies_and_models_are_called_after_the_class(task: str, slug: str) -> None:
    assert task_slug(task) == slug


def test_the_code_is_known_by_what_it_does_not_by_where_it_is(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed helper beside the task is other code; a folder that was moved is not."""

    def code(folder: Path) -> str:
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        return TrainingCode("my_task").fingerprint

    before = code(write())
    assert code(write("elsewhere")) == before
    assert code(write("elsewhere", helper="CLASSES = 4\n")) != before


def test_ours_are_the_entry_points_that_are_declared(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["knee_tune.tasks"]
    assert list(declared) == list(TASKS)
    for name, value in declared.items():
        point = EntryPoint(name=name, value=value, group="knee_tune.tasks")
        assert point.load() is TASKS[name]


def test_other_distributions_name_theirs_the_same_way(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(
        write(helper=f"from knee_tune import TaskEntry\nENTRY = {TASKS['digits']!r}\nCLASSES = 3\n")
    )
    named = {"mine": "my_task:MyTask", "light": "helper:ENTRY", "digits": "helper:CLASSES"}
    points = EntryPoints(
        EntryPoint(name=name, value=value, group="knee_tune.tasks") for name, value in named.items()
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points)

    assert list(installed_tasks()) == ["light", "mine"]
    assert task_entry("digits") is TASKS["digits"]
    assert task_entry("light") == TASKS["digits"]
    assert task_entry("mine") == TaskEntry(task="my_task:MyTask")
    assert resolved("mine").name == "knee-mine-3ep"
