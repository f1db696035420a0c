"""Where MLflow keeps things: tracking URIs, the local store, links, and a quiet client."""

import fcntl
import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knee_tune.errors import UserError
from knee_tune.specs.tracking import RunLink

if TYPE_CHECKING:
    from mlflow import MlflowClient

UI_ADDRESS = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` listens unless told otherwise."""

AS_TRAINING = "workflowType=machine_learning"
"""Has MLflow's pages show training runs; else a browser that is new to it sees language models'."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")

PATIENCE = 3
"""Seconds a tracking server may take to answer."""

MAX_PATIENCE = 60

_SQLITE = "sqlite:///"


def resolve_tracking_uri(home: Path, uri: str | None = None) -> str | None:
    """``uri``, else ``<home>/mlflow.db``; None for ``none``.

    The command line is where ``MLFLOW_TRACKING_URI`` counts, as the default of its flag.
    UserError for a scheme that MLflow 3 does not serve (file stores are refused).
    """
    chosen = uri or local_store(home)
    if chosen == "none":
        return None
    scheme = chosen.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES:
        raise UserError(
            f"--tracking-uri {without_password(chosen)}: use http(s)://SERVER, {_SQLITE}FILE, "
            "another database, or none"
        )
    return chosen


def local_store(home: Path) -> str:
    """The tracking URI of the store in ``home``."""
    return f"{_SQLITE}{home.absolute() / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """``uri`` as people may see it: ``http://ann:secret@server`` becomes ``http://ann@server``."""
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1@", uri)


def experiment_name(subject: str) -> str:
    """Of a task, or of its data: ``MLFLOW_EXPERIMENT_NAME``, else ``knee-tune-<subject>``."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"knee-tune-{subject}"


def artifact_root(home: Path, uri: str) -> str | None:
    """Where new experiments keep artifacts; None leaves it to the server."""
    return None if _is_server(uri) else (home.absolute() / "artifacts").as_uri()


def run_link(uri: str, *, experiment_id: str, run_id: str) -> RunLink:
    """The page of a run: on the server, else where ``mlflow ui`` would show it."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}?{AS_TRAINING}"
    return RunLink(run_id=run_id, url=f"{_pages(uri)}/{page}")


def model_url(uri: str, *, name: str, version: int) -> str:
    """The page of a model version."""
    return f"{_pages(uri)}/#/models/{name}/versions/{version}"


def ui_command(uri: str) -> str:
    """What to run (a database) or open in a browser (a server) to look at the runs.

    Without the password, which is not to be left on a terminal: who has set it adds it.
    """
    shown = without_password(uri)
    return shown if _is_server(uri) else f"mlflow ui --backend-store-uri {shown}"


def connect(uri: str) -> "MlflowClient":
    """A client of ``uri``. Takes 1-3 s (import), 7-9 s more when the local store is new."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    for chatter in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(chatter).setLevel(logging.ERROR)
    if uri.startswith(_SQLITE):
        _create_database(Path(uri.removeprefix(_SQLITE)))
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Give up on a server that does not answer in time; what people have set themselves stays.

    MLflow reads these variables at every request. Its own defaults block a call for 4 minutes.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(seconds)),
    }
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _create_database(path: Path) -> None:
    """MLflow's schema in a file that appears whole: 50 migrations killed half-way stay broken."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # drivers may start together
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            store: Any = SqlAlchemyStore(  # type: ignore[no-untyped-call]
                f"{_SQLITE}{draft}", str(path.parent / "artifacts")
            )
            store.engine.dispose()
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http:", "https:", "databricks"))


def _pages(uri: str) -> str:
    return without_password(uri).rstrip("/") if uri.startswith("http") else UI_ADDRESS
