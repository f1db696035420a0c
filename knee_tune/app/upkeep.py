"""Commands around the studies: prepare data, look at the machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from knee_tune.app.home import Home, Places
from knee_tune.doctor import Check, examine
from knee_tune.errors import UserError
from knee_tune.tasks.registry import TASKS, task_entry


class PreparedSet(Protocol):
    """What a task's own ``prepare`` answers: a dataclass with at least these."""

    folder: Path
    name: str
    pairs: Mapping[str, int]
    vocabulary: Mapping[str, int]
    dropped: int
    seconds: float
    reused: bool
    warnings: Sequence[str]


def prepare_data(task: str, home: Home, options: Mapping[str, Any]) -> PreparedSet:
    """Prepare a task's data below ``home.data``.

    UserError for a task that needs no preparation, and for whatever is wrong with the input.
    """
    prepare = task_entry(task).load_prepare()
    if prepare is None:
        known = ", ".join(name for name, entry in TASKS.items() if entry.prepare)
        raise UserError(f"data prepare {task}: it needs no preparation; those that do: {known}")
    prepared: PreparedSet = prepare(data_root=home.data, **options)
    return prepared


def check_up(places: Places) -> tuple[Check, ...]:
    """Everything that a study on this machine may stumble over."""
    return examine(
        home=places.home.root,
        data_dir=places.home.data,
        storage_url=places.storage_url,
        tracking_uri=places.tracking_uri or "none",
    )
