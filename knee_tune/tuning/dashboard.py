"""Optuna Dashboard, and what it shows beside its own plots: notes, the only place for links."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage

from knee_tune.specs.shown import learning_rate, percent
from knee_tune.tuning.events import Ending
from knee_tune.tuning.trial import TrialRun


def write_trial_note(run: TrialRun, ending: Ending) -> None:
    """What a trial was and where its MLflow run is."""
    from optuna_dashboard import save_note  # slow

    point = f"Seed LR {learning_rate(run.seed_lr)}, explore {percent(run.explore_fraction)}"
    lines = [
        f"**{point}**: {ending.end}",
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
