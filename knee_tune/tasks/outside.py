"""Tasks outside this package: a class in a file, in a module, or of another distribution.

``./my_task.py:MyTask`` and ``my_package.module:MyTask`` name them; a distribution may give one a
name of its own in the entry-point group ``knee_tune.tasks``.
"""

import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import ValidationError

from knee_tune.config.recipe import Metric, Recipe
from knee_tune.config.strict_yaml import Document, nearest, read_document
from knee_tune.errors import UserError, first_line

if TYPE_CHECKING:
    from knee_tune.tasks.base import Task

GROUP = "knee_tune.tasks"
"""Of entry points that name tasks."""

EXAMPLE = "./my_task.py:MyTask"


def is_reference(task: str) -> bool:
    """Whether it says where a class is, and is no task's name."""
    return ":" in task or task.endswith(".py")


def canonical(task: str) -> str:
    """Return the reference with its file's whole path, which means the same in every folder."""
    file, colon, name = task.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{Path(file).expanduser().resolve()}:{name}"
    return task


def module_of(task: str) -> str:
    """Return ``module:Class`` of a reference, with its file's folder where Python finds modules.

    A file in a package is a module of that package. UserError if there is no such file.
    """
    file, _, name = task.rpartition(":")
    if task.endswith(".py"):
        file, name = task, ""
    if not file.endswith(".py"):
        if not (file and name.isidentifier()):
            raise UserError(f"`task` {task}: not a task; write it as in {EXAMPLE}")
        return task
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(
            f"`task` {task}: there is no file {path}; where it was moved, name its new place"
        )
    if not name.isidentifier():
        raise UserError(f"`task` {task}: name the class too, as in {EXAMPLE}")
    parts, folder = [path.stem], path.parent
    if not path.stem.isidentifier():
        raise UserError(f"{path}: {path.stem!r} can be no module's name; rename the file")
    while (folder / "__init__.py").is_file():
        parts, folder = [folder.name, *parts], folder.parent
    if sys.path[0] != str(folder):  # another task's may have modules of the same names
        sys.path[:] = [str(folder), *(each for each in sys.path if each != str(folder))]
    return f"{'.'.join(parts)}:{name}"


@contextmanager
def modules_of(folder: Path) -> Iterator[None]:
    """Have modules of ``folder`` imported meanwhile, under names that other code may have too.

    Another task in this process, or whoever uses it, may have a file or a helper of the same name:
    it stays what it is, also afterwards. Python's own modules and installed ones come first.
    """
    mine = {path.name.removesuffix(".py") for path in folder.iterdir()}

    def is_in_the_way(name: str) -> bool:
        top = name.partition(".")[0]
        place = _place(sys.modules.get(top)) if top in mine else None
        return place is not None and place != folder and _is_own(f"{place}/{top}")

    others = {name: sys.modules.pop(name) for name in [*sys.modules] if is_in_the_way(name)}
    found_first = str(folder)
    sys.path.insert(0, found_first)
    try:
        yield
    finally:
        sys.path.remove(found_first)
        sys.modules.update(others)


def _place(module: ModuleType | None) -> Path | None:
    """The folder that a module or package is in; None if it is in none."""
    for package in getattr(module, "__path__", ()):
        return Path(package).resolve().parent
    file = getattr(module, "__file__", None)
    return Path(file).resolve().parent if file else None


_LOADED: dict[Path, ModuleType] = {}
"""Modules of tasks by their files: another one may have the same name."""


def load_class(task: str) -> Any:
    """Import the class that a reference names; UserError, one line, if it is not there or no task.

    An error of the file itself is told with its place in it.
    """
    module_name, _, name = module_of(task).partition(":")
    file = task.rpartition(":")[0]
    try:
        if file.endswith(".py"):
            module = _load(Path(file).resolve(), module_name)
        else:
            module = import_module(module_name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_import_trouble(task, module_name, error)) from error
    task_type = getattr(module, name, None)
    if task_type is None:
        known = [each for each, value in vars(module).items() if is_task(value)]
        close = nearest(name, known)
        meant = f"did you mean '{close}'? " if close else ""
        listed = f"its tasks are {', '.join(known)}" if known else "it has no tasks"
        raise UserError(f"`task` {task}: there is no class {name}; {meant}{listed}")
    check_class(task_type, task)
    return task_type


def _load(file: Path, name: str) -> ModuleType:
    if file not in _LOADED:
        with modules_of(Path(sys.path[0])):  # where module_of has put it
            module = import_module(name)
        found_in = getattr(module, "__file__", None)
        if found_in is None or Path(found_in).resolve() != file:
            raise UserError(
                f"{file}: Python has another module {name}, {found_in or 'a built-in one'}; "
                "rename the file"
            )
        _LOADED[file] = module
    return _LOADED[file]


def load_installed(point: EntryPoint) -> Any:
    """Import what an entry point names; UserError, one line, if that fails."""
    try:
        return point.load()
    except Exception as error:
        raise UserError(_import_trouble(point.name, point.module, error)) from error


def check_class(task_type: Any, task: str) -> None:
    """Raise UserError unless it is a task's class with all that a task must have."""
    if not is_task(task_type):
        raise UserError(
            f"`task` {task}: it is no task; derive it from knee_tune.SimpleTask or knee_tune.Task"
        )
    if missing := sorted(getattr(task_type, "__abstractmethods__", ())):
        raise UserError(f"`task` {task}: it lacks {', '.join(missing)}; define what is missing")


def is_task(value: Any) -> bool:
    """Whether it is a class derived from ``Task`` or ``SimpleTask``."""
    from knee_tune.tasks.base import Task
    from knee_tune.tasks.simple import SimpleTask

    bases = (Task, SimpleTask)
    return inspect.isclass(value) and issubclass(value, bases) and value not in bases


def answers(task_type: Any) -> bool:
    """Whether models of the task answer raw inputs, so that they can be registered."""
    from knee_tune.tasks.simple import SimpleTask

    return not issubclass(task_type, SimpleTask) or task_type.predict is not SimpleTask.predict


def made(task_type: Any, recipe: Recipe, *, data_dir: Path, seed: int) -> "Task[Any]":
    """Construct a task of that class, as the training loop takes it."""
    from knee_tune.tasks.simple import AsTask, SimpleTask

    constructed = task_type(recipe, data_dir=data_dir, seed=seed)
    built: Task[Any] = AsTask(constructed) if isinstance(constructed, SimpleTask) else constructed
    return built


@cache
def recipe_of(task_type: Any) -> type[Recipe]:
    """Return the recipe of a task's class: what stands in its brackets, with its metrics.

    UserError if it names none, or what it says of its metrics cannot be.
    """
    from knee_tune.config.recipe import SimpleRecipe
    from knee_tune.tasks.simple import SimpleTask

    simple = issubclass(task_type, SimpleTask)
    default = SimpleRecipe if simple else None
    declared: type[Recipe] | None = next(_in_brackets(task_type), default)
    where = f"{task_type.__module__}.{task_type.__name__}"
    if declared is None:
        raise UserError(f"{where}: it names no recipe; derive it from knee_tune.Task[MyRecipe]")
    if not simple or not hasattr(task_type, "metrics"):
        if not declared.metrics:
            raise UserError(f'{where}: it has no metrics; as in metrics = {{"loss": "minimize"}}')
        return declared
    metrics = _metrics(task_type.metrics, where)
    watched = getattr(task_type, "watched", metrics[0].name)
    if watched not in [metric.name for metric in metrics]:
        names = ", ".join(metric.name for metric in metrics)
        raise UserError(f"{where}: watched is {watched!r}; it must be one of its metrics, {names}")
    objective = declared.model_fields["objective"]
    annotations: dict[str, Any] = {
        "metrics": ClassVar[tuple[Metric, ...]],
        "watched": ClassVar[str],
        "objective": objective.annotation,
    }
    said = {
        "__module__": task_type.__module__,
        "__doc__": declared.__doc__,
        "__annotations__": annotations,
        "metrics": metrics,
        "watched": watched,
        "objective": objective.get_default() or watched,
    }
    kind: Any = type(declared)
    made: type[Recipe] = kind(declared.__name__, (declared,), said)
    return made


def _in_brackets(task_type: type) -> Iterator[type[Recipe]]:
    for each in task_type.__mro__:
        for base in vars(each).get("__orig_bases__", ()):
            for argument in get_args(base):
                if inspect.isclass(argument) and issubclass(argument, Recipe):
                    yield argument


def _metrics(declared: Any, where: str) -> tuple[Metric, ...]:
    try:
        if isinstance(declared, Mapping):
            found = [Metric(name=name, direction=way) for name, way in declared.items()]
        else:
            found = [Metric.model_validate(metric) for metric in declared]
    except (ValidationError, TypeError):
        found = []
    if not found:
        raise UserError(
            f'{where}: metrics must be as in {{"loss": "minimize", "accuracy": "maximize"}}, or '
            "several knee_tune.Metric"
        )
    return tuple(found)


def space_of(task: str, task_type: Any) -> Document:
    """Return the search space: the YAML beside the task's file, or what its class says.

    Without either: a decade around the recipe's seed LR on both sides, and all explore fractions.
    """
    place = task.rpartition(":")[0]
    source = place if place.endswith(".py") else inspect.getfile(task_type)
    file = Path(source).with_suffix(".yaml")
    description = (inspect.getdoc(task_type) or task_type.__name__).splitlines()[0]
    usual: dict[str, Any] = {
        "description": description,
        "default_preset": "default",
        "presets": {"default": {"description": "the recipe as it is"}},
    }
    if file.is_file():
        read = read_document(file, str(file))
        said = {**usual, "space": _usual_space(task_type), **read.data, "task": task}
        return Document(label=read.label, data=said, lines=read.lines)
    space = {**_usual_space(task_type), **getattr(task_type, "space", {})}
    label = f"{task_type.__module__}.{task_type.__name__}"
    return Document(label=label, data=usual | {"task": task, "space": space}, lines={})


def _usual_space(task_type: Any) -> dict[str, Any]:
    lr = recipe_of(task_type).model_fields["seed_lr"].default
    if not isinstance(lr, float | int):
        raise UserError(
            f"{task_type.__module__}.{task_type.__name__}: its recipe has no default for seed_lr; "
            "give it one, the search is anchored there"
        )
    return {
        "seed_lr": {"low": float(f"{lr / 10:.3g}"), "high": float(f"{lr * 10:.3g}")}
        | {"per_decade": 4},
        "explore_fraction": {"low": 0.0, "high": 0.9, "step": 0.1},
    }


def _import_trouble(task: str, module: str, error: Exception) -> str:
    """What kept the module from being imported, with the innermost place in files of its folder."""
    if isinstance(error, ModuleNotFoundError) and str(error.name) in _and_parents(module):
        return f"`task` {task}: there is no module {error.name}"
    said = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {said}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not each.filename.startswith("<") and _is_own(each.filename)]
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else f"`task` {task}"
    return f"{place}: {said}"


def _and_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _is_own(file: str) -> bool:
    """Whether it is neither of this package nor of an installed library, nor Python's."""
    package = Path(__file__).parents[1]
    path = Path(file)
    libraries = {
        "site-packages",
        "dist-packages",
        f"python{sys.version_info[0]}.{sys.version_info[1]}",
    }
    return not path.is_relative_to(package) and libraries.isdisjoint(path.parts)
