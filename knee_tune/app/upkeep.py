"""Commands around the studies: prepare data, look at the machine."""

import json
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from knee_tune.app.home import Home, Places
from knee_tune.doctor import Check, examine
from knee_tune.errors import UserError
from knee_tune.specs.strict_yaml import parse_value
from knee_tune.tasks.registry import TASKS, task_entry


class PreparedSet(Protocol):
    """What a task's own ``prepare`` answers: a dataclass with at least these."""

    folder: Path
    name: str
    seconds: float
    reused: bool
    warnings: Sequence[str]

    def contents(self) -> str:
        """What is in it, in a few words."""


def prepare_data(task: str, home: Home, options: Mapping[str, Any]) -> PreparedSet:
    """Prepare a task's data below ``home.data``.

    UserError for a task that needs no preparation, for an ``option`` that is given (not None) but
    not this task's, and for whatever is wrong with the input.
    """
    prepare = task_entry(task).load_prepare()
    if prepare is None:
        known = ", ".join(name for name, entry in TASKS.items() if entry.prepare)
        raise UserError(f"data prepare {task}: it needs no preparation; those that do: {known}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - signature(prepare).parameters.keys():
        option = "--" + name.replace("_", "-")
        raise UserError(f"data prepare {task}: {option} is no option of this task; leave it out")
    prepared: PreparedSet = prepare(data_root=home.data, **given)
    return prepared


def training_command(task: str, home: Home, data: str) -> str:
    """The command that trains on the prepared set called ``data``, as it is to be typed."""
    value = data if parse_value(data) == data else json.dumps(data)  # 2016 would be a number
    places = Places.of(home, storage=None, tracking_uri=None)
    return places.command("run", "--task", task, "--set", f"recipe.data={value}")


def check_up(places: Places) -> tuple[Check, ...]:
    """Everything that a study on this machine may stumble over."""
    return examine(
        home=places.home.root,
        data_dir=places.home.data,
        storage_url=places.storage_url,
        tracking_uri=places.tracking_uri or "none",
    )
