"""When an MLflow run is open and when it is over, whatever order the events about it come in.

Drivers that share a study each have an outbox, and that of a killed one may come when another has
long finished what it began. So a start or an end takes no effect on a run that began anew or ended
later: the newest word on a run counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from knee_tune.tracking.entries import flatten, log_entries

TRIAL_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
STUDY_STATUS = {"COMPLETE": "FINISHED", "INTERRUPTED": "KILLED", "FAIL": "FAILED"}

LAST_START = "knee.last_start"
"""Tag with the time, in ms since 1970, at which the run last began: MLflow has only the first."""


def begin_run(
    client: MlflowClient,
    run_id: str,
    at: int,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> None:
    """Make the run RUNNING; params are immutable, so only those it lacks are written.

    So it is with the tags of an outdated start, which makes nothing RUNNING.
    """
    run = client.get_run(run_id)
    tags = {**tags, LAST_START: f"{at}"}
    if is_outdated(at, run):
        tags = {k: v for k, v in tags.items() if k not in run.data.tags}
    elif run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    new = {k: v for k, v in flatten(params).items() if k not in run.data.params}
    log_entries(client, run_id, params=new, tags=tags)


def end_run(
    client: MlflowClient,
    run_id: str,
    at: int,
    *,
    status: str,
    metrics: Sequence[Metric],
    tags: Mapping[str, str],
) -> None:
    """End the run. Of an outdated end only the metrics are written, which have a time each."""
    outdated = is_outdated(at, client.get_run(run_id))
    log_entries(client, run_id, metrics=metrics, tags=None if outdated else tags)
    if not outdated:
        client.set_terminated(run_id, status, end_time=at)


def is_outdated(at: int, run: Run) -> bool:
    """Whether the run began anew or ended after ``at`` (ms since 1970).

    A run that is open again still has its last end: MLflow keeps it.
    """
    return at < max(run.info.end_time or 0, int(run.data.tags.get(LAST_START, 0)))
