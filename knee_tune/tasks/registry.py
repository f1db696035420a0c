"""The registry of tasks: names and references become entries, and entries become tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knee_tune.config.recipe import task_slug
from knee_tune.config.strict_yaml import Document, nearest, read_named
from knee_tune.errors import UserError
from knee_tune.plans.plan import SCRIPT
from knee_tune.tasks import outside

if TYPE_CHECKING:
    from knee_tune.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """Locations of a task's recipe (imports no torch) and of its code, as ``module:Class``."""

    task: str
    recipe: str = ""
    """Empty: the task's class says it, which takes the import of torch."""
    fuses: bool = False
    """Whether it is meant to be trained as one batched model; the workers look whether it can."""
    extra: str | None = None
    """The optional dependency group it needs, as in ``pip install knee-tune[extra]``."""

    prepare: str | None = None
    """The function that prepares its data, as ``module:function``; None: it needs nothing."""

    reference: str = ""
    """How a task outside this package was named, with its file's whole path; empty: by name."""

    def load_prepare(self) -> Callable[..., Any] | None:
        """Import that function: keyword-only, ``data_root`` and the task's own options."""
        if self.prepare is None:
            return None
        loaded: Callable[..., Any] = self._load(self.prepare)
        return loaded

    def recipe_type(self) -> type[Any]:
        """Import the recipe class, without torch if it can be.

        UserError if one of its libraries is missing.
        """
        if not self.recipe:
            return outside.recipe_of(self.task_type())
        loaded: type[Any] = self._load(self.recipe)
        return loaded

    def task_type(self) -> Any:
        """Import the task's class; UserError if it is not there, or a library of it is missing."""
        if self.recipe:
            return self._load(self.task)
        return outside.load_class(self.reference or self.task)

    def modules(self, recipe: Mapping[str, Any]) -> tuple[str, ...]:
        """The modules that are imported to train this recipe; imports no torch."""
        task = self.task.partition(":")[0]
        if not self.recipe:
            return (task,)
        return (task, *self.recipe_type().model_validate(recipe).modules)

    def build(self, recipe: Mapping[str, Any], *, data_dir: Path, seed: int) -> "Task[Any]":
        """Construct the task with this recipe; imports torch and the task's libraries.

        UserError if one of them is missing.
        """
        settings = self.recipe_type().model_validate(recipe)
        return outside.made(self.task_type(), settings, data_dir=data_dir, seed=seed)

    def read_space(self, name: str) -> Document:
        """Read the search space of the task of that name or reference."""
        if name in TASKS:
            return read_named("search_spaces", name)
        return outside.space_of(self.reference or name, self.task_type())

    def check_serves(self) -> None:
        """Raise UserError if the task's models answer nothing, so that none can be registered."""
        task_type = self.task_type()
        if not outside.answers(task_type):
            raise UserError(
                f"{task_type.__name__} has no method predict, so its models cannot be registered; "
                "add predict(self, model, inputs)"
            )

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


# Ours. pyproject.toml names each in the entry-point group, as other distributions name theirs.

_TABULAR = "knee_tune.tasks.tabular"
_VISION = "knee_tune.tasks.vision"
_TRANSLATION = "knee_tune.tasks.translation"
_LANGUAGE = "knee_tune.tasks.language"
_BERT = "knee_tune.tasks.bert"

DIGITS = TaskEntry(
    recipe=f"{_TABULAR}.recipe:DigitsRecipe", task=f"{_TABULAR}.task:DigitsTask", fuses=True
)
DIGITS_CLEAN = TaskEntry(
    recipe=f"{_TABULAR}.recipe:CleanDigitsRecipe", task=f"{_TABULAR}.task:DigitsTask", fuses=True
)
BREAST_CANCER = TaskEntry(
    recipe=f"{_TABULAR}.recipe:BreastCancerRecipe",
    task=f"{_TABULAR}.task:BreastCancerTask",
    fuses=True,
)
IWSLT = TaskEntry(
    recipe=f"{_TRANSLATION}.recipe:TranslationRecipe",
    task=f"{_TRANSLATION}.task:TranslationTask",
    prepare=f"{_TRANSLATION}.prepare:prepare",
    extra="translation",
)
TRANSLATION = TaskEntry(
    recipe=f"{_TRANSLATION}.recipe:OwnTranslationRecipe",
    task=f"{_TRANSLATION}.task:TranslationTask",
    prepare=f"{_TRANSLATION}.prepare:prepare_own",
    extra="translation",
)
WMT14 = TaskEntry(
    recipe=f"{_TRANSLATION}.recipe:Wmt14Recipe",
    task=f"{_TRANSLATION}.task:TranslationTask",
    prepare=f"{_TRANSLATION}.wmt14:prepare",
    extra="translation",
)
CIFAR10 = TaskEntry(
    recipe=f"{_VISION}.recipe:Cifar10Recipe",
    task=f"{_VISION}.cifar10:Cifar10Task",
    prepare=f"{_VISION}.cifar10_prepare:prepare",
    extra="vision",
)
IMAGENET = TaskEntry(
    recipe=f"{_VISION}.recipe:ImageNetRecipe",
    task=f"{_VISION}.imagenet:ImageNetTask",
    prepare=f"{_VISION}.imagenet_index:prepare",
    extra="vision",
)
GPT = TaskEntry(
    recipe=f"{_LANGUAGE}.recipe:GptRecipe",
    task=f"{_LANGUAGE}.task:GptTask",
    prepare=f"{_LANGUAGE}.text:prepare",
)
BERT = TaskEntry(
    recipe=f"{_BERT}.pretraining_recipe:BertRecipe",
    task=f"{_BERT}.pretraining:BertTask",
    prepare=f"{_BERT}.pretraining_text:prepare",
    extra="language",
)
SQUAD = TaskEntry(
    recipe=f"{_BERT}.squad_recipe:SquadRecipe",
    task=f"{_BERT}.squad:SquadTask",
    prepare=f"{_BERT}.squad_prepare:prepare",
    extra="language",
)

TASKS: Mapping[str, TaskEntry] = {
    "digits": DIGITS,
    "digits-clean": DIGITS_CLEAN,
    "breast-cancer": BREAST_CANCER,
    "iwslt": IWSLT,
    "wmt14": WMT14,
    "translation": TRANSLATION,
    "cifar10": CIFAR10,
    "imagenet": IMAGENET,
    "gpt": GPT,
    "bert": BERT,
    "squad": SQUAD,
}
"""Ours by name, known without a look at what is installed, which takes 0.1 s."""


_SCRIPT = TaskEntry(
    recipe="knee_tune.scripts.recipe:ScriptRecipe", task="knee_tune.scripts.job:run_script"
)
"""What stands for a training script: no task, but it has a recipe, and modules that train it."""


def task_entry(name: str) -> TaskEntry:
    """The entry of the task of that name or reference; UserError if there is none."""
    if name == SCRIPT:
        return _SCRIPT
    if name in TASKS:
        return TASKS[name]
    if outside.is_reference(name):
        reference = outside.canonical(name)
        slug = task_slug(reference)
        if slug in TASKS:
            raise UserError(
                f"`task` {name}: its study and its model would have the name of the task {slug}; "
                "rename the class"
            )
        return TaskEntry(task=outside.module_of(reference), reference=reference)
    others = installed_tasks()
    if name in others:
        return others[name]()
    known = [*TASKS, *others]
    close = nearest(name, known)
    meant = f"did you mean '{close}'? " if close else ""
    raise UserError(f"`task` {name}: no such task; {meant}the tasks are {', '.join(known)}")


def installed_tasks() -> dict[str, Callable[[], TaskEntry]]:
    """The tasks that other distributions name, each with what gives its entry.

    An entry point names a :class:`TaskEntry`, whose recipe can be had without the import of torch,
    or the task's class itself. Ours keep their names.
    """

    def loaded(point: EntryPoint) -> TaskEntry:
        entry = outside.load_installed(point)
        return entry if isinstance(entry, TaskEntry) else TaskEntry(task=point.value)

    points = sorted(entry_points(group=outside.GROUP), key=lambda point: point.name)
    return {point.name: partial(loaded, point) for point in points if point.name not in TASKS}
