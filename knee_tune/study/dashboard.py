"""Optuna Dashboard, and what it shows beside its own plots: notes, the only place for links."""

import json
import mimetypes
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.storages import BaseStorage

from knee_tune.files import link_or_copy, whole
from knee_tune.records.shown import sentence, setting
from knee_tune.study.events import Ending, Watcher
from knee_tune.study.trial import TrialRun


def write_trial_note(run: TrialRun, ending: Ending) -> None:
    """Write what a trial was and where its MLflow run is."""
    from optuna_dashboard import save_note  # slow

    point = sentence(setting(*run.point))
    lines = [
        f"**{point}**: {ending.state}",
        ending.reason,
        f"Steps trained: {run.counts['steps_trained']:,} of {run.budget:,}, "
        f"reused: {run.counts['steps_reused']:,}",
        _replicates(run),
        _link(run.url) if run.url else "",
    ]
    save_note(run.trial, "\n\n".join(filter(None, lines)))


def _replicates(run: TrialRun) -> str:
    """The value of every random seed; nothing if there is but one."""
    if len(run.replicates) == 1:
        return ""
    values = (
        f"seed {replicate.seed}: "
        + (replicate.state if replicate.value is None else f"{replicate.value:.4g}")
        for replicate in run.replicates
    )
    return f"{run.metric} of its replicates: {', '.join(values)}"


def write_study_note(study: optuna.Study, text: str) -> None:
    """Show ``text`` (Markdown) as the note of the study, in place of the one before."""
    from optuna_dashboard import save_note  # slow

    save_note(study, text)


def link_trials(study: optuna.Study, urls: Mapping[int, str]) -> None:
    """Add the address of its MLflow run to the note of every trial (by number) that lacks it.

    A trial may end before its run is known: MLflow's first start takes longer than training it.
    """
    from optuna_dashboard import get_note, save_note  # slow

    trials = study.get_trials(deepcopy=False)
    for number, url in urls.items():
        ended = cast(optuna.Trial, _Ended(study, trials[number]._trial_id))
        note = get_note(ended)
        if url not in note:
            save_note(ended, "\n\n".join(filter(None, (note, _link(url)))))


def show_figures(study: optuna.Study, figures: Mapping[str, dict[str, Any]]) -> None:
    """Show plotly figures (as dicts) on the page of the study; a name is shown once, the newest."""
    from optuna_dashboard import save_plotly_graph_object  # slow
    from plotly.graph_objects import Figure  # slow

    for name, figure in figures.items():
        save_plotly_graph_object(study, Figure(figure), graph_object_id=name)


@dataclass(frozen=True)
class _Ended:
    """A finished trial as the dashboard takes it for notes; Optuna's own is for running ones."""

    study: optuna.Study
    _trial_id: int

    @property
    def storage(self) -> BaseStorage:
        return self.study._storage


def _link(url: str) -> str:
    return f"[MLflow run]({url})"


def serve_dashboard(storage: BaseStorage, *, port: int, artifact_dir: Path) -> None:
    """Serve on 127.0.0.1 until interrupted; artifacts of trials come from ``artifact_dir``."""
    from optuna_dashboard import run_server  # slow

    artifact_dir.mkdir(parents=True, exist_ok=True)
    run_server(
        storage,
        host="127.0.0.1",
        port=port,
        artifact_store=FileSystemArtifactStore(artifact_dir),
    )


# A file gets the same artifact id whenever it is attached, so a newer one takes its place.

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
    with whole(store / identity) as draft:
        os.utime(link_or_copy(file, draft))  # by the file's own time it would count as left behind
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


def record_end(run: TrialRun, ending: Ending, *, watcher: Watcher) -> None:
    """Record how a trial ended everywhere but in its state, which Optuna is told next."""
    run.note_steps(pruned=ending.state == "pruned")
    if ending.reason:
        run.note(reason=ending.reason)
    run.note_link()
    write_trial_note(run, ending)
    run.events.finished(ending, **run.counts)
    watcher.trial_finished(
        run.number,
        ending.state,
        value=ending.metrics.get(run.metric),
        reason=ending.reason,
    )
