"""Commands that only look: at a study, at Optuna Dashboard, at the tasks there are."""

from collections.abc import Callable
from dataclasses import dataclass

from knee_tune.app.home import Places
from knee_tune.errors import UserError
from knee_tune.specs.files import find
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.resolve import read_space
from knee_tune.specs.strict_yaml import read_document
from knee_tune.tasks.registry import TASKS, task_entry
from knee_tune.tuning.dashboard import serve_dashboard
from knee_tune.tuning.storage import open_storage, refuse_missing
from knee_tune.tuning.study import Study, load_study, spec_of, study_names, study_record


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
    for name in TASKS:
        path = find("search_spaces", name)
        space = read_space(
            read_document(path, str(path)), lambda task: task_entry(task).recipe_type()
        )
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
        raise UserError(f"--port {port}: {error.strerror}; choose another port") from error
