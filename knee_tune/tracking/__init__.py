"""Tracking in MLflow, which this package alone imports, and never when it is itself imported."""

from knee_tune.tracking.sender import EXIT_PATIENCE
from knee_tune.tracking.store import (
    experiment_name,
    local_store,
    provenance,
    refuse_damaged,
    resolve_tracking_uri,
    ui_command,
)
from knee_tune.tracking.tracker import (
    MlflowTracker,
    NullTracker,
    Tracker,
    open_tracker,
    send_leftovers,
    unsent_notice,
)

__all__ = [
    "EXIT_PATIENCE",
    "MlflowTracker",
    "NullTracker",
    "Tracker",
    "experiment_name",
    "local_store",
    "open_tracker",
    "provenance",
    "refuse_damaged",
    "resolve_tracking_uri",
    "send_leftovers",
    "ui_command",
    "unsent_notice",
]
