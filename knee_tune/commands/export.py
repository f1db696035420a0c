"""``knee-tune best --save``: a finished model in a folder, as other programs read it."""

from pathlib import Path

from knee_tune.commands.analyse import Subject, subjects_of
from knee_tune.commands.home import Places
from knee_tune.commands.look import find_study
from knee_tune.errors import UserError
from knee_tune.jobs import finished_model
from knee_tune.plans.plan import SCRIPT
from knee_tune.study.study import spec_of
from knee_tune.tasks.prepared_folder import new_folder
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.group import Group


def save_model(places: Places, name: str | None, folder: Path, *, row: int | None) -> Subject:
    """Write the winner's model of a study, or of a comparison a row's, into the new ``folder``.

    Rows are counted from 1; of several random seeds it is the first. UserError if there is no such
    model, its weights are gone, its task writes none, or the folder is there already.
    """
    if folder.exists():
        raise UserError(f"`save` {folder}: it is there already; name a new folder")
    study = find_study(places, name)
    spec = spec_of(study)
    subject, *_ = subjects_of(places.home, study, spec, number=None, row=row)
    if spec.task == SCRIPT:
        raise UserError(
            f"`save` {folder}: a script's weights are its own to read ({subject.weights})"
        )
    task = task_entry(spec.task).build(spec.recipe, data_dir=places.home.data, seed=subject.seed)
    model = finished_model(task, subject.weights, Group())
    with new_folder(folder.absolute()) as draft:
        task.export(model, draft)
    return subject
