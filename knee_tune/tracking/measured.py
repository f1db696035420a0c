"""What is measured of a run long after it ended: further metrics of an MLflow run there is."""

import time
from collections.abc import Mapping
from pathlib import Path

from knee_tune.specs.tracking import RunLink
from knee_tune.tracking.store import MAX_PATIENCE, connect, patience, run_link
from knee_tune.tracking.tracker import send_leftovers


def add_metrics(
    metrics: Mapping[str, float],
    *,
    tags: Mapping[str, str],
    study_uid: str,
    key: str,
    experiment: str,
    home: Path,
    uri: str,
) -> RunLink | None:
    """Add ``metrics`` to the run of a trial, or of a row, ``key``; None if it has none there.

    Raises what MLflow raises when it does not answer, DeletedError if the run was deleted.
    """
    with patience(MAX_PATIENCE):
        send_leftovers(home=home, uri=uri)  # the run may still wait in an outbox
        client = connect(uri)
        from mlflow.entities import Metric

        from knee_tune.tracking.entries import log_entries
        from knee_tune.tracking.runs import known_run

        run = known_run(client, uri=uri, experiment=experiment, study_uid=study_uid, key=key)
        if run is None:
            return None
        run_id = str(run.info.run_id)
        now = time.time_ns() // 1_000_000
        measured = [Metric(name, value, now, 0) for name, value in metrics.items()]
        log_entries(client, run_id, metrics=measured, tags=tags)
        return run_link(uri, experiment_id=run.info.experiment_id, run_id=run_id)
