"""Files that Optuna Dashboard offers with a study and its trials: the report, the weights.

A file gets the same artifact id whenever it is attached, so a newer one takes its place.
"""

import json
import mimetypes
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path

import optuna
from optuna.artifacts import ArtifactMeta

OF_STUDY = "artifacts:"
"""Study attributes by which Optuna lists a study's artifacts."""

OF_TRIAL = "dashboard:artifacts:{trial_id}:"
"""Study attributes by which the dashboard lists a trial's artifacts.

Optuna's own place for them are the trial's attributes, which nobody may write once it has ended.
"""


def attach_to_study(study: optuna.Study, file: Path, *, name: str, store: Path) -> None:
    """Offer ``file`` on the study's page, called ``name``. OSError if it cannot be kept."""
    _attach(study, file, name=name, prefix=OF_STUDY, store=store)


def attach_weights(study: optuna.Study, *, winner: int, weights: Path, store: Path) -> None:
    """Offer the winner's ``weights`` on its trial's page, and those of no other trial.

    They are not copied if the file system has hard links. OSError if they cannot be kept.
    """
    known = study._storage.get_study_system_attrs(study._study_id)
    for trial in study.get_trials(deepcopy=False):
        name = f"trial-{trial.number:04d}-weights.safetensors"
        prefix = OF_TRIAL.format(trial_id=trial._trial_id)
        attribute = f"{prefix}{_identity(study, name)}"
        if trial.number != winner and json.loads(known.get(attribute, "null")):
            study._storage.set_study_system_attr(study._study_id, attribute, json.dumps(None))
            (store / _identity(study, name)).unlink(missing_ok=True)
        elif trial.number == winner and weights.is_file():
            _attach(study, weights, name=name, prefix=prefix, store=store)


def _attach(study: optuna.Study, file: Path, *, name: str, prefix: str, store: Path) -> None:
    identity = _identity(study, name)
    for folder in (store.parent, store):
        folder.mkdir(exist_ok=True)
    draft = store / f"{identity}.{uuid.uuid4().hex}.draft"
    try:
        _link_or_copy(file, draft)
        draft.replace(store / identity)
    finally:
        draft.unlink(missing_ok=True)  # also left by replacing a link of the same file
    mimetype, encoding = mimetypes.guess_type(name)
    meta = ArtifactMeta(
        artifact_id=identity,
        filename=name,
        mimetype=mimetype or "application/octet-stream",
        encoding=encoding,
    )
    study._storage.set_study_system_attr(
        study._study_id, f"{prefix}{identity}", json.dumps(asdict(meta))
    )


def _identity(study: optuna.Study, name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"knee-tune:{study.user_attrs['key']}/{name}"))


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
    else:
        os.utime(target)  # it is new: by the file's own time it would be swept as left behind
