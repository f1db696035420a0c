"""What goes into a run, cut to what MLflow takes: names, batches, artifacts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from knee_tune.leftovers import scratch_folder
from knee_tune.specs.tracking import Attached
from knee_tune.tracking.sender import RejectedError

MAX_METRICS, MAX_TEXTS = 1000, 100
"""Metrics, params and tags that one call of ``log_batch`` takes; 1000 entries in all."""

MAX_VALUE = 5000
"""Characters of a param or tag."""


def log_entries(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write everything, in as few calls as MLflow allows."""
    all_params = [Param(mlflow_name(k), v[:MAX_VALUE]) for k, v in (params or {}).items()]
    all_tags = [RunTag(mlflow_name(k), v[:MAX_VALUE]) for k, v in (tags or {}).items()]
    for first in range(0, max(len(all_params), len(all_tags)), MAX_TEXTS):
        part = slice(first, first + MAX_TEXTS)
        client.log_batch(run_id, params=all_params[part], tags=all_tags[part], synchronous=True)
    for first in range(0, len(metrics), MAX_METRICS):
        part = slice(first, first + MAX_METRICS)
        client.log_batch(run_id, metrics=metrics[part], synchronous=True)


def log_artifact(client: MlflowClient, run_id: str, artifact: Attached, *, home: Path) -> None:
    """Write one artifact; RejectedError if its file is gone, FileNotFoundError if ``home`` is."""
    folder, _, name = artifact.name.rpartition("/")
    with scratch_folder() as place:
        path = place / name
        if artifact.file is not None:
            if not artifact.file.is_file():
                raise RejectedError(f"{artifact.file} is gone")
            path.symlink_to(artifact.file)
        elif artifact.text is not None:
            path.write_text(artifact.text, encoding="utf-8")
        else:
            import plotly.io  # slow to import

            plotly.io.write_html(artifact.figure, path, include_plotlyjs=artifact.offline or "cdn")
        home.stat()  # which MLflow would make anew
        client.log_artifact(run_id, str(path), folder or None)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``{"recipe.model.dropout": "0.3"}``; None is left out."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = f"{value}"
    return flat


def mlflow_name(name: str) -> str:
    """MLflow allows letters, digits, ``_-./`` and spaces in names."""
    return re.sub(r"[^\w\-./ ]", "_", name)
