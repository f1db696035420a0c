"""The registry of tasks: the only place that names concrete ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knee_tune.config.strict_yaml import nearest
from knee_tune.errors import UserError
from knee_tune.plans.plan import SCRIPT

if TYPE_CHECKING:
    from knee_tune.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """Locations of a task's recipe (imports no torch) and of its code, as ``module:Class``."""

    recipe: str
    task: str
    fuses: bool = False
    """Whether it is meant to be trained as one batched model; the workers look whether it can."""
    extra: str | None = None
    """The optional dependency group it needs, as in ``pip install knee-tune[extra]``."""

    prepare: str | None = None
    """The function that prepares its data, as ``module:function``; None: it needs nothing."""

    def load_prepare(self) -> Callable[..., Any] | None:
        """Import that function: keyword-only, ``data_root`` and the task's own options."""
        if self.prepare is None:
            return None
        loaded: Callable[..., Any] = self._load(self.prepare)
        return loaded

    def recipe_type(self) -> type[Any]:
        """Import the recipe class, without torch. UserError if one of its libraries is missing."""
        loaded: type[Any] = self._load(self.recipe)
        return loaded

    def build(self, recipe: Mapping[str, Any], *, data_dir: Path, seed: int) -> "Task[Any]":
        """Construct the task with this recipe; imports torch and the task's libraries.

        UserError if one of them is missing.
        """
        task_type: type[Task[Any]] = self._load(self.task)
        return task_type(self.recipe_type().model_validate(recipe), data_dir=data_dir, seed=seed)

    def _load(self, reference: str) -> Any:
        module, _, attribute = reference.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if missing.partition(".")[0] == "knee_tune":
                raise  # a mistake of ours
            name = next((name for name, entry in TASKS.items() if entry is self), self.task)
            extra = f"[{self.extra}]" if self.extra else ""
            raise UserError(
                f"task {name}: {missing} is not installed; "
                f"pip install 'knee-tune{extra}' (README, Install)"
            ) from error


TASKS: Mapping[str, TaskEntry] = {
    "digits": TaskEntry(
        recipe="knee_tune.tasks.tabular.recipe:DigitsRecipe",
        task="knee_tune.tasks.tabular.task:DigitsTask",
        fuses=True,
    ),
    "digits-clean": TaskEntry(
        recipe="knee_tune.tasks.tabular.recipe:CleanDigitsRecipe",
        task="knee_tune.tasks.tabular.task:DigitsTask",
        fuses=True,
    ),
    "breast-cancer": TaskEntry(
        recipe="knee_tune.tasks.tabular.recipe:BreastCancerRecipe",
        task="knee_tune.tasks.tabular.task:BreastCancerTask",
        fuses=True,
    ),
    "iwslt": TaskEntry(
        recipe="knee_tune.tasks.translation.recipe:TranslationRecipe",
        task="knee_tune.tasks.translation.task:TranslationTask",
        prepare="knee_tune.tasks.translation.prepare:prepare",
        extra="translation",
    ),
    "cifar10": TaskEntry(
        recipe="knee_tune.tasks.vision.recipe:Cifar10Recipe",
        task="knee_tune.tasks.vision.cifar10:Cifar10Task",
        prepare="knee_tune.tasks.vision.cifar10_prepare:prepare",
        extra="vision",
    ),
    "imagenet": TaskEntry(
        recipe="knee_tune.tasks.vision.recipe:ImageNetRecipe",
        task="knee_tune.tasks.vision.imagenet:ImageNetTask",
        prepare="knee_tune.tasks.vision.imagenet_index:prepare",
        extra="vision",
    ),
}


_SCRIPT = TaskEntry(
    recipe="knee_tune.scripts.recipe:ScriptRecipe", task="knee_tune.scripts.job:run_script"
)
"""What stands for a training script: no task, but it has a recipe, and modules that train it."""


def task_entry(name: str) -> TaskEntry:
    """The entry of the task called ``name``; UserError if there is none."""
    if name == SCRIPT:
        return _SCRIPT
    try:
        return TASKS[name]
    except KeyError:
        close = nearest(name, TASKS)
        meant = f"did you mean '{close}'? " if close else ""
        known = ", ".join(TASKS)
        raise UserError(f"`task` {name}: no such task; {meant}the tasks are {known}") from None
