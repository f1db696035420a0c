"""Events become MLflow runs: a parent run per study, a child run per trial. The only mapping.

Runs are found by a unique tag before they are created, metrics carry the time of their event, so
delivering an event twice changes nothing.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException

from knee_tune.leftovers import scratch_folder
from knee_tune.records.events import (
    STORED,
    Attached,
    Recorded,
    RunLink,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from knee_tune.records.values import RunEnd
from knee_tune.tracking.sender import DeletedError, ForbiddenError, RejectedError
from knee_tune.tracking.store import (
    MAX_PATIENCE,
    PATIENCE,
    STUDY_UID,
    artifact_location,
    deleted,
    patience,
    run_link,
    shared_view,
    table_link,
    view_of,
)

# What goes into a run, cut to what MLflow takes: names, batches, artifacts.

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

            plotly.io.write_html(artifact.figure, path, include_plotlyjs="cdn")
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
    """Return ``name`` with what MLflow allows: letters, digits, ``_-./`` and spaces."""
    return re.sub(r"[^\w\-./ ]", "_", name)


# When an MLflow run is open and when it is over, whatever order the events about it come in.
#
# Drivers that share a study each have an outbox, and that of a killed one may come when another
# has long finished what it began. So a start or an end takes no effect on a run that began anew or
# ended later: the newest word on a run counts.

TRIAL_STATUS = {
    RunEnd.COMPLETE: "FINISHED",
    RunEnd.PRUNED: "KILLED",
    RunEnd.DIVERGED: "KILLED",
    RunEnd.FAILED: "FAILED",
}

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
    """End the run. Of an outdated end only the metrics are written, which have a time each.

    A trial ends twice if its driver is killed between telling MLflow and telling Optuna; what the
    first end has measured is not written again under the time of the second.
    """
    run = client.get_run(run_id)
    outdated = is_outdated(at, run)
    metrics = [each for each in metrics if run.data.metrics.get(each.key) != each.value]
    log_entries(client, run_id, metrics=metrics, tags=None if outdated else tags)
    if not outdated:
        client.set_terminated(run_id, status, end_time=at)


def is_outdated(at: int, run: Run) -> bool:
    """Whether the run began anew or ended after ``at`` (ms since 1970).

    A run that is open again still has its last end: MLflow keeps it.
    """
    return at < max(run.info.end_time or 0, int(run.data.tags.get(LAST_START, 0)))


RUN_KEY = "knee.run_key"
"""Tag that a run is found again by: ``<study uid>`` or ``<study uid>/<trial key>``."""


REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")

FORBIDDEN = 403

_OF_NO_STUDY = (401, 408, 425, 429)
"""Answers to whoever is unknown, or asks too often."""


@dataclass
class _StudyRuns:
    """The runs of one study on the server, as far as they are known."""

    experiment_id: str
    ids: dict[str, str] = field(default_factory=dict)
    """Run id by run key."""
    deleted: dict[str, str] = field(default_factory=dict)
    """Of runs that people deleted: they can be restored, and are not made a second time."""
    steps: dict[tuple[str, int], set[int]] = field(default_factory=dict)
    """Steps reported so far, by run id and replicate, loaded when first needed."""


class RunWriter:
    """Delivers events to MLflow. One thread writes, any thread may ask for links."""

    def __init__(self, client: MlflowClient, *, uri: str, home: Path) -> None:
        self._client, self._uri, self._home = client, uri, home
        self._studies: dict[str, _StudyRuns] = {}
        self._links: dict[str, RunLink] = {}
        self._failures = 0

    def link(self, run_key: str) -> RunLink | None:
        """Where the run with this key is, if that is known by now."""
        return self._links.get(run_key)

    def apply(self, study: StudyStarted, events: Sequence[Recorded]) -> None:
        """Write ``events``, metrics in batches; RejectedError if MLflow refuses one for good.

        DeletedError if the experiment, or the run of one, was deleted; ForbiddenError if the study
        is not ours to write.
        """
        with self._asking(study):
            self._apply(study, events)

    def still_running(
        self, study: StudyStarted, began: Mapping[str | None, int]
    ) -> set[str | None]:
        """See :class:`knee_tune.tracking.sender.Delivery`."""
        with self._asking(study):
            condition = f"tags.`{STUDY_UID}` = '{study.uid}' and attributes.status = 'RUNNING'"
            found = self._search(self._studies[study.uid].experiment_id, condition)
        running = {run.data.tags[RUN_KEY]: run for run in found}
        runs = {key: running.get(run_key_of(study.uid, key)) for key in began}
        return {key for key, run in runs.items() if run and not is_outdated(began[key], run)}

    @contextmanager
    def _asking(self, study: StudyStarted) -> Iterator[None]:
        """Have the runs of ``study`` known; RejectedError or ForbiddenError if MLflow refuses."""
        try:
            # More patience after every failure: a slow server is late, not dead.
            with patience(min(PATIENCE * 2**self._failures, MAX_PATIENCE)):
                if study.uid not in self._studies:
                    self._studies[study.uid] = self._load(study)
                yield
            self._failures = 0
        except Exception as error:
            self._studies.clear()  # a call may have worked although its answer was lost
            if _refused(error):
                raise RejectedError(str(error)) from error
            if _forbidden(error):
                raise ForbiddenError(str(error)) from error
            self._failures += 1
            raise

    def _apply(self, study: StudyStarted, events: Sequence[Recorded]) -> None:
        reports: dict[str, list[tuple[int, TrialReported]]] = {}
        for at, event in ((recorded.at, recorded.event) for recorded in events):
            match event:
                case TrialReported():
                    reports.setdefault(event.key, []).append((at, event))
                case StudyStarted():
                    self._start_study(study, event, at)
                case TrialStarted():
                    self._report(study, event.key, reports.pop(event.key, []))
                    self._start_trial(study, event, at)
                case TrialFinished():
                    self._report(study, event.key, reports.pop(event.key, []))
                    self._finish_trial(study, event, at)
                case Attached():
                    run_id = self._run_id(study, event.key)
                    log_artifact(self._client, run_id, event, home=self._home)
                case StudyFinished():
                    run_id, status = self._run_id(study, None), STUDY_STATUS[event.state]
                    metrics = [Metric(k, v, at, 0) for k, v in event.metrics.items()]
                    end_run(
                        self._client, run_id, at, status=status, metrics=metrics, tags=event.tags
                    )
        for key, pending in reports.items():
            self._report(study, key, pending)

    def _load(self, study: StudyStarted) -> _StudyRuns:
        """The experiment, created if need be, and the study's runs in it."""
        experiment = self._client.get_experiment_by_name(study.experiment)
        if experiment is None:
            location = artifact_location(self._home, self._uri, study.experiment)
            try:
                identity = self._client.create_experiment(study.experiment, location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return self._load(study)  # another driver was quicker
        else:
            identity = experiment.experiment_id
            refuse_deleted(experiment, uri=self._uri)
        runs = _StudyRuns(identity)
        condition = f"tags.`{STUDY_UID}` = '{study.uid}'"
        for run in self._search(identity, condition, view=ViewType.ALL):
            run_key = run.data.tags[RUN_KEY]
            if run.info.lifecycle_stage == "deleted":
                runs.deleted[run_key] = run.info.run_id
            else:
                self._know(study, runs, run_key, run.info.run_id)
        return runs

    def _search(
        self, experiment_id: str, condition: str, *, view: int = ViewType.ACTIVE_ONLY
    ) -> list[Run]:
        """All runs that match, the oldest last, so that it wins in a dict."""
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([experiment_id], condition, view, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id), reverse=True)

    def _know(self, study: StudyStarted, runs: _StudyRuns, run_key: str, run_id: str) -> None:
        runs.ids[run_key] = run_id
        where = {"experiment_id": runs.experiment_id, "run_id": run_id}
        self._links[run_key] = (
            table_link(self._uri, view=view_of(study), **where)
            if study.objective and run_key == run_key_of(study.uid, None)
            else run_link(self._uri, **where)
        )

    def _start_study(self, study: StudyStarted, event: StudyStarted, at: int) -> None:
        run_id = self._run_id(study, None)
        tags = dict(event.tags)
        if event.description:
            tags["mlflow.note.content"] = event.description
        begin_run(self._client, run_id, at, params=event.params, tags=tags)
        if event.objective:
            experiment = self._studies[study.uid].experiment_id
            with suppress(MlflowException):  # an experiment of somebody else's: any columns do
                for name, view in shared_view(event).items():
                    self._client.set_experiment_tag(experiment, name, view)

    def _start_trial(self, study: StudyStarted, event: TrialStarted, at: int) -> None:
        run_id = self._run_id(study, event.key, name=event.name, at=at)
        facts = {
            "optuna.trial_number": event.number,
            "knee.schedule": event.schedule,
            "knee.seed_lr": event.seed_lr,
            "knee.explore_fraction": event.explore_fraction,
            "knee.decay": event.decay,
        }
        tags = {name: f"{value}" for name, value in facts.items() if value is not None}
        params = {
            "seed_lr": event.seed_lr,
            "explore_fraction": event.explore_fraction,
            "schedule": event.schedule,
            **({"decay": event.decay} if event.decay else {}),
            **event.params,
        }
        tags |= {"optuna.state": "RUNNING"} | event.tags
        begin_run(self._client, run_id, at, params=params, tags=tags)

    def _finish_trial(self, study: StudyStarted, event: TrialFinished, at: int) -> None:
        run_id = self._run_id(study, event.key)
        tags = {"optuna.state": STORED[event.state], **event.tags}
        if event.reason:
            tags["knee.reason"] = event.reason
        metrics = [Metric(k, v, at, event.step) for k, v in event.metrics.items()]
        status = TRIAL_STATUS[event.state]
        end_run(self._client, run_id, at, status=status, metrics=metrics, tags=tags)

    def _report(
        self, study: StudyStarted, key: str, reports: Sequence[tuple[int, TrialReported]]
    ) -> None:
        """Write metrics of new steps: those of a retried trial continue its curves."""
        if not reports:
            return
        run_id = self._run_id(study, key)
        steps = self._studies[study.uid].steps
        batch: list[Metric] = []
        for at, report in reports:
            prefix = f"replicate_{report.replicate + 1}/" if report.replicate else ""
            known = (run_id, report.replicate)
            if known not in steps:
                history = self._client.get_metric_history(run_id, f"{prefix}lr")
                steps[known] = {metric.step for metric in history}
            if report.step in steps[known]:
                continue
            values = {**report.metrics, "lr": report.lr}
            batch += [
                Metric(mlflow_name(f"{prefix}{k}"), v, at, report.step) for k, v in values.items()
            ]
            steps[known].add(report.step)
        log_entries(self._client, run_id, metrics=batch)

    def _run_id(
        self,
        study: StudyStarted,
        key: str | None,
        *,
        name: str | None = None,
        at: int | None = None,
    ) -> str:
        """The run of a trial, or of the study (None), created if MLflow has none."""
        runs = self._studies[study.uid]
        run_key = run_key_of(study.uid, key)
        if run_key in runs.ids:
            return runs.ids[run_key]
        if run_key in runs.deleted:
            shown = key or f"of study {study.name}"
            raise DeletedError(deleted(self._uri, "run", shown, runs.deleted[run_key]))
        tags = {
            RUN_KEY: run_key,
            STUDY_UID: study.uid,
            "optuna.study_name": study.name,
            **{k: v for k, v in study.tags.items() if k.startswith("mlflow.")},
        }
        if key is not None:
            tags["mlflow.parentRunId"] = self._run_id(study, None)
        run = self._client.create_run(
            runs.experiment_id,
            start_time=at or time.time_ns() // 1_000_000,
            tags=tags,
            run_name=name or key or study.name,
        )
        run_id = str(run.info.run_id)
        if key is None:
            run_id = self._oldest(runs, run_key, run_id)
        else:
            runs.steps[run_id, 0] = set()
        self._know(study, runs, run_key, run_id)
        return run_id

    def _oldest(self, runs: _StudyRuns, run_key: str, created: str) -> str:
        """Keep the oldest of the parent runs that drivers may create if they start together."""
        oldest = self._search(runs.experiment_id, f"tags.`{RUN_KEY}` = '{run_key}'")[-1]
        if oldest.info.run_id != created:
            self._client.delete_run(created)
        return str(oldest.info.run_id)


def run_key_of(study_uid: str, key: str | None) -> str:
    """The value of the tag ``knee.run_key`` of a trial, or of the study itself (None)."""
    return study_uid if key is None else f"{study_uid}/{key}"


def known_run(
    client: MlflowClient, *, uri: str, experiment: str, study_uid: str, key: str
) -> Run | None:
    """The run of a trial, or of a row, ``key``; None if there is none, DeletedError if deleted."""
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return None
    refuse_deleted(known, uri=uri)
    condition = f"tags.`{RUN_KEY}` = '{run_key_of(study_uid, key)}'"
    found = list(client.search_runs([known.experiment_id], condition, ViewType.ALL))
    found.sort(key=lambda run: run.info.lifecycle_stage == "deleted")
    if found:
        refuse_deleted(found[0], uri=uri)
    return found[0] if found else None


def refuse_deleted(found: Experiment | Run, *, uri: str) -> None:
    """Raise DeletedError if people deleted it."""
    if isinstance(found, Run):
        if found.info.lifecycle_stage == "deleted":
            raise DeletedError(deleted(uri, "run", found.info.run_name, found.info.run_id))
    elif found.lifecycle_stage == "deleted":
        raise DeletedError(deleted(uri, "experiment", found.name, found.experiment_id))


def _refused(error: Exception) -> bool:
    """Whether MLflow itself said no. An error page of some proxy in between is no answer."""
    if not isinstance(error, MlflowException) or error.error_code not in REFUSALS:
        return False
    return isinstance(error, RestException) or "API request" not in str(error)


def _forbidden(error: Exception) -> bool:
    """Whether people must see to what MLflow said no to: a permission, a name that is taken."""
    if not isinstance(error, MlflowException):
        return False
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    if isinstance(error, RestException):
        return 400 < status < 500 and status not in _OF_NO_STUDY
    return status == FORBIDDEN  # which MLflow's own accounts say in plain text
