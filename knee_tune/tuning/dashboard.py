"""Optuna Dashboard, and what it shows beside its own plots: notes, the only place for links."""

from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage
from optuna_dashboard import run_server, save_note

from knee_tune.specs.records import StudyRecord, TrialRecord


def write_trial_note(study: optuna.Study, record: TrialRecord) -> None:
    """What a trial was and where its run is."""
    lines = [
        f"**Seed LR {record.seed_lr:g}, explore {record.explore_fraction:.0%}**: {record.state}"
    ]
    if record.reason:
        lines.append(record.reason)
    lines.append(f"Steps trained: {record.steps_trained:,} of {record.steps_budget:,}")
    if record.run_url:
        lines.append(f"[MLflow run]({record.run_url})")
    trial = optuna.trial.Trial(study, study.trials[record.number]._trial_id)
    save_note(trial, "\n\n".join(lines))


def write_study_note(study: optuna.Study, record: StudyRecord) -> None:
    """The state of the search, in words."""
    best, counts, steps = record.best, record.counts, record.steps
    lines = [f"# {record.name}", record.spec.description]
    if best is not None:
        lines.append(
            f"Best so far: **seed LR {best.seed_lr:g}, explore {best.explore_fraction:.0%}** with "
            f"{record.metric} = {best.value:.4g} (trial {best.number})."
        )
    lines.append(
        f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed; "
        f"{steps.trained:,} steps trained, {steps.independent:,} if every trial were trained to "
        "its end."
    )
    save_note(study, "\n\n".join(line for line in lines if line))


def serve_dashboard(storage: BaseStorage, *, port: int, artifact_dir: Path) -> None:
    """Serve on 127.0.0.1 until interrupted; artifacts of trials come from ``artifact_dir``."""
    artifact_dir.mkdir(parents=True, exist_ok=True)
    run_server(
        storage,
        host="127.0.0.1",
        port=port,
        artifact_store=FileSystemArtifactStore(artifact_dir),
    )
