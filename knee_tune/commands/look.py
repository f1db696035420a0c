"""Commands that only look: at a study, at Optuna Dashboard, at the tasks there are."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from pydantic import ByteSize, TypeAdapter, ValidationError

from knee_tune.commands.doctor import Check, examine
from knee_tune.commands.home import Home, Places
from knee_tune.config.resolve import read_space
from knee_tune.config.strict_yaml import parse_value
from knee_tune.errors import UserError
from knee_tune.records.study import StudyRecord
from knee_tune.runs.object_store import ObjectStore, StoreError, open_store
from knee_tune.runs.sharing import clear, stored_trunks
from knee_tune.runs.trunks import Cleared, TrunkEntry, TrunkStore
from knee_tune.study.storage import open_storage, refuse_missing
from knee_tune.study.study import Study, load_study, spec_of, study_names, study_record
from knee_tune.tasks.registry import TASKS, installed_tasks, task_entry


def find_study(places: Places, name: str | None) -> Study:
    """The study of that name; without a name, the only one there is. Its trials are not read yet.

    UserError if it does not exist, or if there are several and none was named.
    """
    refuse_missing(places.storage_url)
    storage = open_storage(places.storage_url)
    if name is None:
        names = study_names(storage)
        if len(names) != 1:
            known = ", ".join(names) or "none yet; start one with knee-tune run --task digits"
            raise UserError(f"name a study; there are: {known}")
        name = names[0]
    return load_study(storage, name)


def find_search(places: Places, name: str | None) -> Study:
    """As :func:`find_study`, for what only a search has: UserError for a study that compares."""
    study = find_study(places, name)
    if spec_of(study).compare is not None:
        raise UserError(
            f"study {study.study_name}: it compares schedules and searches nothing, so it has no "
            f"trials; see knee-tune status {study.study_name}"
        )
    return study


def look_at(places: Places, name: str | None) -> StudyRecord:
    """What :func:`find_study` finds, with its trials."""
    return study_record(find_study(places, name))


def keep_looking(places: Places, name: str | None) -> Iterator[StudyRecord]:
    """What :func:`look_at` finds, as it stands whenever the next one is asked for; endless."""
    study = find_study(places, name)
    while True:
        yield study_record(study)


def look_at_search(places: Places, name: str | None) -> StudyRecord:
    """What :func:`find_search` finds, with its trials."""
    return study_record(find_search(places, name))


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One line of ``knee-tune tasks``."""

    name: str
    description: str
    default_preset: str
    presets: dict[str, str]


def list_tasks() -> list[TaskInfo]:
    """Every task with its presets."""
    infos = []
    for name in [*TASKS, *installed_tasks()]:
        entry = task_entry(name)
        space = read_space(entry.read_space(name), lambda task: task_entry(task).recipe_type())
        presets = {preset: value.description for preset, value in space.presets.items()}
        infos.append(
            TaskInfo(
                name=name,
                description=space.description,
                default_preset=space.default_preset,
                presets=presets,
            )
        )
    return infos


def serve(places: Places, name: str | None, *, port: int, on_line: Callable[[str], None]) -> None:
    """Serve Optuna Dashboard on this machine only, until it is interrupted.

    ``on_line`` is told the address; with a ``name``, the page of that study. UserError if the
    study does not exist or the port is taken.
    """
    from knee_tune.study.dashboard import serve_dashboard  # with all that trains

    refuse_missing(places.storage_url)
    storage = open_storage(places.storage_url)
    page = ""
    if name is not None:
        load_study(storage, name)
        page = f"/studies/{storage.get_study_id_from_name(name)}"
    on_line(f"Optuna Dashboard: http://127.0.0.1:{port}/dashboard{page} (Ctrl-C ends it)")
    try:
        serve_dashboard(storage, port=port, artifact_dir=places.home.dashboard_artifacts)
    except OSError as error:
        raise UserError(f"`port` {port}: {error.strerror}; choose another port") from error


@dataclass(frozen=True, kw_only=True)
class StoredTrunks:
    """What ``knee-tune trunks list`` shows."""

    trunks: tuple[TrunkEntry, ...]
    limit: int | None
    """In bytes, as the last run had it; None before the first one."""

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(entry.size for entry in self.trunks)


def list_trunks(home: Home) -> StoredTrunks:
    """The trunks of a home, the one used last first; UserError if there is no such home."""
    store = _store(home)
    return StoredTrunks(trunks=tuple(store.entries()), limit=store.note.limit)


def clear_trunks(home: Home, *, task: str | None, older_than_days: float | None) -> Cleared:
    """Remove the trunks of a task (None: of all) that were not used for so many days.

    UserError if there is no such home, or if it cannot be written to.
    """
    older_than = None if older_than_days is None else timedelta(days=older_than_days)
    store = _store(home)
    try:
        return store.clear(task=task, older_than=older_than)
    except PermissionError as error:
        raise UserError(
            f"`home` {home.root}: {error.filename} cannot be removed ({error.strerror}); "
            "clear it as the user it belongs to"
        ) from error


def list_shared_trunks(url: str) -> StoredTrunks:
    """The trunks that homes share at ``url``, the one that got a checkpoint last first.

    UserError if nothing can be read there.
    """
    with _shared_store(url) as store:
        return StoredTrunks(trunks=tuple(stored_trunks(store)), limit=None)


def clear_shared_trunks(url: str, *, task: str | None, older_than_days: float | None) -> Cleared:
    """Remove the trunks at ``url`` that got no checkpoint for so many days; of a task, if named.

    UserError if nothing can be removed there.
    """
    older_than = None if older_than_days is None else timedelta(days=older_than_days)
    with _shared_store(url) as store:
        return clear(store, task=task, older_than=older_than)


@contextmanager
def _shared_store(url: str) -> Iterator[ObjectStore]:
    """Open a store that is there already; what it does not do is an error of whoever named it."""
    store = open_store(url, make=False)
    try:
        yield store
    except StoreError as error:
        raise UserError(f"`shared` {store.url}: {error}") from None


def size_of_cache(text: str) -> int:
    """The bytes of ``20GB``, ``500MiB`` or ``0``; UserError for anything else."""
    return _size(text, field="trunk_cache", example="20GB or 500MB, or 0 to share no trunks")


def size_of_limit(text: str | None) -> int | None:
    """The bytes of ``2TB``, None of nothing; UserError for anything else."""
    return None if text is None else _size(text, field="shared_limit", example="500GB or 2TB")


def _size(text: str, *, field: str, example: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError) as error:
        raise UserError(f"`{field}` {text}: not a size; write it as in {example}") from error


def _store(home: Home) -> TrunkStore:
    if not home.root.is_dir():
        raise UserError(f"`home` {home.root}: no such folder; name the one your studies are in")
    return TrunkStore(home.trunks, limit=0)


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
        raise UserError(f"data prepare {task}: `{name}` is no option of this task; leave it out")
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
