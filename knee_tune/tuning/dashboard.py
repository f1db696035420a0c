"""Optuna Dashboard, and what it shows beside its own plots: notes, the only place for links."""

from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage

from knee_tune.specs.records import StudyRecord
from knee_tune.tuning.events import Ending
from knee_tune.tuning.trial import TrialRun


def write_trial_note(run: TrialRun, ending: Ending) -> None:
    """What a trial was and where its MLflow run is."""
    from optuna_dashboard import save_note  # slow

    lines = [
        f"**Seed LR {run.seed_lr:g}, explore {run.explore_fraction:.0%}**: {ending.end}",
        ending.reason,
        f"Steps trained: {run.counts['steps_trained']:,} of {run.budget:,}, "
        f"reused: {run.counts['steps_reused']:,}",
        _replicates(run),
        f"[MLflow run]({run.url})" if run.url else "",
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


def write_study_note(study: optuna.Study, record: StudyRecord) -> None:
    """The state of the search, in words."""
    from optuna_dashboard import save_note  # slow

    best, counts = record.best, record.counts
    lines = [f"# {record.name}", record.spec.description]
    if best is not None:
        lines.append(
            f"Best so far: **seed LR {best.seed_lr:g}, explore {best.explore_fraction:.0%}** with "
            f"{record.metric} = {best.value:.4g} (trial {best.number})."
        )
    if record.confirmation is not None:
        lines.append(f"Fresh random seeds: {record.confirmation.words}.")
    lines.append(
        f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed trials"
    )
    lines += record.steps.words
    save_note(study, "\n\n".join(line for line in lines if line))


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
