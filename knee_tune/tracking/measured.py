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

    Raises what MLflow raises when it does not answer.
    """
    with patience(MAX_PATIENCE):
        send_leftovers(home=home, uri=uri)  # the run may still wait in an outbox
        client = connect(uri)
        from mlflow.entities import Metric

        from knee_tune.tracking.entries import log_entries
        from knee_tune.tracking.runs import RUN_KEY, run_key_of

        known = client.get_experiment_by_name(experiment)
        if known is None:
            return None
        condition = f"tags.`{RUN_KEY}` = '{run_key_of(study_uid, key)}'"
        found = client.search_runs([known.experiment_id], condition)
        if not found:
            return None
        run_id = str(found[0].info.run_id)
        now = time.time_ns() // 1_000_000
        measured = [Metric(name, value, now, 0) for name, value in metrics.items()]
        log_entries(client, run_id, metrics=measured, tags=tags)
        return run_link(uri, experiment_id=known.experiment_id, run_id=run_id)
