"""The model registry: a study's winner as a model people can call with raw inputs."""

import hashlib
import json
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical_name

from knee_tune import __version__
from knee_tune.config.recipe import task_slug
from knee_tune.errors import MachineError, UserError, disk_trouble
from knee_tune.leftovers import scratch_folder
from knee_tune.plans.plan import SCRIPT
from knee_tune.records.events import Alias, RegisteredModel, TrainedModel
from knee_tune.tasks.registry import TASKS, TaskEntry, task_entry
from knee_tune.tracking.script_model import save_script_model
from knee_tune.tracking.sender import DeletedError
from knee_tune.tracking.store import (
    MAX_PATIENCE,
    connect,
    follow_home,
    is_away,
    model_url,
    patience,
    trouble,
)
from knee_tune.tracking.tracker import send_leftovers
from knee_tune.training.fingerprint import TrainingCode
from knee_tune.urls import shown_url

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CANDIDATE, CHALLENGER = "champion", "candidate", "challenger"

WEIGHTS_HASH, CONFIRMED = "knee.weights_sha256", "knee.confirmed"


def register(model: TrainedModel, *, home: Path, uri: str) -> RegisteredModel:
    """Put ``model`` into the registry as ``knee-tune-<subject>``, with the alias it asks for.

    Where a new champion comes, the one before it becomes ``challenger``. The same weights of the
    same run are one version: a candidate that becomes champion is no candidate any more, and what
    is champion already stays so. UserError if the trial's run is not in MLflow, the server refuses,
    or the saved model does not answer as the trained one; MachineError if the server is away.
    """
    with _one_line_errors(uri), patience(MAX_PATIENCE):
        send_leftovers(home=home, uri=uri)  # the winner's run may still wait in an outbox
        follow_home(home, uri)
        client = connect(uri)
        run = _source_run(client, model, uri)
        name = f"knee-tune-{model.subject or task_slug(model.task)}"
        digest = hashlib.sha256(model.weights.read_bytes()).hexdigest()
        known = _known_version(client, name, run_id=run.info.run_id, digest=digest)
        version = known or _create_version(client, model, run, name=name, digest=digest, home=home)
        client.set_model_version_tag(name, version.version, CONFIRMED, model.confirmed)
        alias = _set_alias(client, version, model.alias)
    return RegisteredModel(
        name=name,
        version=int(version.version),
        model_id=str(version.source).removeprefix("models:/"),
        run_id=run.info.run_id,
        uri=f"models:/{name}@{alias}",
        url=model_url(uri, name=name, version=int(version.version)),
        alias=alias,
        confirmed=model.confirmed,
        new=known is None,
        answers=model.task != SCRIPT or model.serve is not None,
    )


def _known_version(
    client: "MlflowClient", name: str, *, run_id: str, digest: str
) -> "ModelVersion | None":
    """The newest version that has this run's weights."""
    versions = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    same = [version for version in versions if version.tags.get(WEIGHTS_HASH) == digest]
    return max(same, key=lambda version: int(version.version), default=None)


def _set_alias(client: "MlflowClient", version: "ModelVersion", alias: Alias) -> Alias:
    """Give a version the alias, unless it is champion already; what it is called in the end."""
    name = version.name
    champion = _by_alias(client, name, CHAMPION)
    if champion is not None and champion.version == version.version:
        return "champion"
    if alias == CHAMPION:
        if champion is not None:
            client.set_registered_model_alias(name, CHALLENGER, champion.version)
        candidate = _by_alias(client, name, CANDIDATE)
        if candidate is not None and candidate.version == version.version:
            client.delete_registered_model_alias(name, CANDIDATE)
    client.set_registered_model_alias(name, alias, version.version)
    return alias


def _create_version(
    client: "MlflowClient",
    model: TrainedModel,
    run: "Run",
    *,
    name: str,
    digest: str,
    home: Path,
) -> "ModelVersion":
    """Upload the model, tie it and its metrics to the run it comes from, add a version.

    A registration that was killed on its way is gone on with.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    tags = _tags(model) | {WEIGHTS_HASH: digest}
    logged = _begun(client, run, name=name, digest=digest) or client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run.info.run_id,
        tags=tags,
        params=run.data.params,
        model_type="knee-tune",
    )
    try:
        with scratch_folder() as place:
            folder = _save(model, place, run_id=run.info.run_id, logged=logged)
            home.stat()  # which MLflow would make anew
            client.log_model_artifacts(logged.model_id, str(folder))
    except Exception:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    # At a time of its own for every model: what is sent twice stands there once.
    metrics = [
        Metric(f"{split}/{metric}", value, logged.creation_timestamp, 0, model_id=logged.model_id)
        for split, values in model.metrics.items()
        for metric, value in values.items()
    ]
    outputs = client.get_run(run.info.run_id).outputs
    tied = outputs.model_outputs if outputs else []
    if not any(each.model_id == logged.model_id for each in tied):
        client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    client.log_batch(run.info.run_id, metrics=metrics, synchronous=True)
    client.finalize_logged_model(logged.model_id, "READY")
    _ensure_registered(client, name, task_slug(model.task))
    with _as_default_store(client.tracking_uri):  # where MLflow looks for models:/<model id>
        return client.create_model_version(
            name,
            source=f"models:/{logged.model_id}",
            run_id=run.info.run_id,
            model_id=logged.model_id,
            tags=tags,
            description=f"Trial {model.number} of study {model.study}: seed LR "
            f"{model.seed_lr:g}, explore fraction {model.explore_fraction}"
            + (f", {model.decay} decay" if model.decay else ""),
        )


def _begun(client: "MlflowClient", run: "Run", *, name: str, digest: str) -> Any:
    """The logged model of these weights that no version was made of, if there is one."""
    found = client.search_logged_models(
        [run.info.experiment_id], f"tags.`{WEIGHTS_HASH}` = '{digest}'"
    )
    of_run = (each for each in found if (each.source_run_id, each.name) == (run.info.run_id, name))
    return next((each for each in of_run if each.status != "FAILED"), None)


def _save(model: TrainedModel, place: Path, *, run_id: str, logged: Any) -> Path:
    """The model's folder, tried out before anybody can get it: it loads and answers the same."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, infer_signature
    from mlflow.types import Schema, TensorSpec

    from knee_tune.tracking import serving

    described = Model(
        run_id=run_id, model_id=logged.model_id, artifact_path=logged.artifact_location
    )
    if model.task == SCRIPT:
        return save_script_model(model, place, described)
    entry = task_entry(model.task)
    task = entry.build(model.recipe, data_dir=model.data_dir, seed=model.seed)
    artifacts = {serving.ORDER: place / "order.json", serving.WEIGHTS: model.weights}
    code = None if model.task in TASKS else _code_of(entry, type(task.recipe).__module__)
    order = {"task": _where(model.task, entry), "recipe": model.recipe, "seed": model.seed}
    artifacts[serving.ORDER].write_text(json.dumps(order, indent=2))
    for relative, source in task.assets().items():
        artifacts[serving.ASSETS] = place / serving.ASSETS
        target = artifacts[serving.ASSETS] / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    served = serving.ServedTask()
    served.load(artifacts)
    examples = task.examples()
    example: Any = examples if isinstance(examples[0], str | dict) else np.asarray(examples)
    answers = served.predict(None, example)
    folder = place / "model"
    extra = f"[{entry.extra}]" if entry.extra else ""
    requirements = [f"knee-tune{extra}=={__version__}", *(_beside(code) if code else ())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # integers cannot be missing: they are not
        signature = infer_signature(example, answers)
    if isinstance(example, np.ndarray):
        sizes = (*[-1] * task.open_dimensions, *example.shape[task.open_dimensions :])
        signature.inputs = Schema([TensorSpec(example.dtype, sizes)])
    mlflow.pyfunc.save_model(
        folder,
        python_model=serving.__file__,
        artifacts={name: path.absolute().as_uri() for name, path in artifacts.items()},
        signature=signature,
        input_example=example,
        pip_requirements=requirements,
        code_paths=_copied(code, place / "code") if code else None,
        mlflow_model=described,
    )
    found = sys.path  # to which MLflow adds the folder of the code, which will be gone
    try:
        served_answers = mlflow.pyfunc.load_model(folder.as_uri()).predict(example)
    finally:
        sys.path = found
    if not _same(served_answers, answers):
        raise UserError(
            f"{model.weights}: the model of {task_slug(model.task)} saved from it does not answer "
            "as the trained one; report this with the trial's recipe"
        )
    return folder


# A task outside this package: its code travels with the model.


def _where(task: str, entry: TaskEntry) -> str:
    """What names the task wherever the model is loaded: its class, unless an entry says more."""
    return task if entry.recipe else entry.task


def _code_of(entry: TaskEntry, *others: str) -> TrainingCode:
    return TrainingCode(entry.task.partition(":")[0], *others)


def _copied(code: TrainingCode, place: Path) -> list[str]:
    """Copy the modules that the task is made of, its helpers too, as Python will look for them."""
    for name, file in code.files.items():
        folder, _, last = name.replace(".", "/").rpartition("/")
        if file.stem == "__init__":
            folder = name.replace(".", "/")
        target = place / folder / (file.name if file.stem == "__init__" else last + file.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return sorted(str(each) for each in place.iterdir())


def _beside(code: TrainingCode) -> list[str]:
    """The libraries that the task imports and knee-tune does not bring."""
    brought = {canonical_name(Requirement(each).name) for each in requires("knee-tune") or ()}
    versions = {name: v for name, v in code.libraries.items() if name != "python"} | code.home
    return [
        f"{name}=={version.partition('+')[0]}"
        for name, version in sorted(versions.items())
        if canonical_name(name) not in brought
    ]


def _same(answers: Any, others: Any) -> bool:
    """Whether these are the same answers; class scores may differ in their last bits."""
    import numpy as np

    one, other = np.asarray(answers), np.asarray(others)
    if one.dtype.kind == other.dtype.kind == "f":
        return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-4)
    return np.array_equal(one, other)


def _source_run(client: "MlflowClient", model: TrainedModel, uri: str) -> "Run":
    from knee_tune.tracking.runs import known_run, refuse_deleted

    if model.run_id is not None:
        named = client.get_run(model.run_id)
        refuse_deleted(named, uri=uri)
        return named
    experiment, study = model.experiment, model.study_uid
    run = known_run(client, uri=uri, experiment=experiment, study_uid=study, key=model.key)
    if run is not None:
        return run
    raise UserError(
        f"`tracking_uri` {shown_url(uri)}: it has no run of {model.key} of study "
        f"{model.study}; name the store that the study was tracked in"
    )


def _by_alias(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _ensure_registered(client: "MlflowClient", name: str, task: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=f"Winners of knee-tune studies on {task}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(model: TrainedModel) -> dict[str, str]:
    """Return what people look for in the registry; metrics by split, as in ``valid/accuracy``."""
    facts = {
        "optuna.study_name": model.study,
        "optuna.trial_number": model.number,
        "knee.task": task_slug(model.task),
        "knee.seed_lr": model.seed_lr,
        "knee.explore_fraction": model.explore_fraction,
        "knee.decay": model.decay,
        "knee.data_fingerprint": model.data_fingerprint,
    }
    scores = {
        f"{split}/{metric}": f"{value:.6g}"
        for split, values in model.metrics.items()
        for metric, value in values.items()
    }
    return {name: f"{value}" for name, value in facts.items() if value is not None} | scores


@contextmanager
def _as_default_store(uri: str) -> Iterator[None]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


@contextmanager
def _one_line_errors(uri: str) -> Iterator[None]:
    """Turn what a registry refuses or a store cannot do into a UserError.

    A server that is away is a MachineError; trouble with a disk stays what it is.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except DeletedError as error:
        raise UserError(f"`tracking_uri` {shown_url(uri)}: {error}") from error
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        if disk_trouble(error):
            raise
        kind = MachineError if is_away(error, uri) else UserError
        raise kind(f"`tracking_uri` {shown_url(uri)}: {trouble(error)}") from error
