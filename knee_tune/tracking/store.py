"""Where MLflow keeps things: tracking URIs, the local store, links, and a quiet client."""

import fcntl
import getpass
import hashlib
import json
import logging
import os
import platform
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from knee_tune import __version__
from knee_tune.errors import UserError, first_line, one_line
from knee_tune.files import whole
from knee_tune.records.events import RunLink, StudyStarted
from knee_tune.urls import in_memory, is_url, shown_url, sqlite_file, sqlite_url

if TYPE_CHECKING:
    from mlflow import MlflowClient

UI_ADDRESS = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` listens unless told otherwise."""

AS_TRAINING = "workflowType=machine_learning"
"""Has MLflow's pages show training runs; else a browser that is new to it sees language models'."""

STUDY_UID = "knee.study_uid"
"""Tag of all runs of a study."""

VIEW_KEY = "viewStateShareKey"
"""How the address of MLflow's list of runs names a view that is among the experiment's tags."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")

PATIENCE = 3
"""Seconds a tracking server may take to answer."""

MAX_PATIENCE = 60

LOCK_PATIENCE = 60
"""Seconds that MLflow waits while another process writes to a local store; its own default is 5."""


def resolve_tracking_uri(home: Path, uri: str | None = None) -> str | None:
    """``uri``, else ``<home>/mlflow.db``; None for ``none``.

    The command line is where ``MLFLOW_TRACKING_URI`` counts, as the default of its flag.
    UserError for what is no URL, or has a scheme that MLflow 3 does not serve (file stores are
    refused), or would be gone with this process.
    """
    chosen = uri or local_store(home)
    if chosen == "none":
        return None
    shown = f"`tracking_uri` {shown_url(chosen)}"
    advice = "use http(s)://SERVER, sqlite:///FILE, another database, or none"
    if chosen.partition(":")[0].partition("+")[0] not in SCHEMES:
        raise UserError(f"{shown}: {advice}")
    if not (chosen.startswith("databricks") or is_url(chosen)):
        raise UserError(f"{shown}: not a URL; {advice}, with @ and / in a password as %40 and %2F")
    if in_memory(chosen):
        raise UserError(f"{shown}: a database in memory keeps nothing; {advice}")
    return chosen


def local_store(home: Path) -> str:
    """The tracking URI of the store in ``home``."""
    return sqlite_url(home / "mlflow.db")


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a file of this machine: never away, at most slow."""
    return not is_server(uri) and sqlite_file(uri) is not None


def experiment_name(subject: str) -> str:
    """Return ``MLFLOW_EXPERIMENT_NAME``, else ``knee-tune-<subject>``: the task, or its data."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"knee-tune-{subject}"


def artifact_location(home: Path, uri: str, experiment: str) -> str | None:
    """Return where a new experiment keeps artifacts; None leaves it to the server."""
    if is_server(uri):
        return None
    return f"{(home.absolute() / 'artifacts').as_uri()}/{quote(experiment, safe='')}"


def run_link(uri: str, *, experiment_id: str, run_id: str) -> RunLink:
    """The page of a run: on the server, else where ``mlflow ui`` would show it."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}?{AS_TRAINING}"
    return RunLink(run_id=run_id, url=f"{_pages(uri)}/{page}")


def table_link(uri: str, *, experiment_id: str, run_id: str, view: str) -> RunLink:
    """The page of a study's run that lists its trials, as :func:`shared_view` ``view`` says."""
    page = f"#/experiments/{experiment_id}/runs?{VIEW_KEY}={view}&{AS_TRAINING}"
    return RunLink(run_id=run_id, url=f"{_pages(uri)}/{page}")


def view_of(study: StudyStarted) -> str:
    """Name the view of a study's runs."""
    return hashlib.sha256(study.uid.encode()).hexdigest()[:16]


def shared_view(study: StudyStarted) -> dict[str, str]:
    """The experiment's tag that has MLflow list a study's runs: the best first, in columns."""
    objective = f"metrics.`{study.objective}`"
    view = {
        "searchFilter": f"tags.`{STUDY_UID}` = '{study.uid}'",
        "orderByKey": objective,
        "orderByAsc": study.ascending,
        "selectedColumns": ["params.`seed_lr`", "params.`explore_fraction`", objective],
        "compareRunsMode": "TABLE",
    }
    return {f"mlflow.sharedViewState.{view_of(study)}": json.dumps(view)}


def model_url(uri: str, *, name: str, version: int) -> str:
    """The page of a model version."""
    return f"{_pages(uri)}/#/models/{name}/versions/{version}"


def ui_command(uri: str, *, mlflow: str = "mlflow") -> str:
    """What to run (a database) or open in a browser (a server) to look at the runs.

    Without the password, which is not to be left on a terminal: who has set it adds it.
    """
    shown = shown_url(uri)
    return shown if is_server(uri) else shlex.join([mlflow, "ui", "--backend-store-uri", shown])


def deleted(uri: str, kind: Literal["experiment", "run"], name: str, identity: str) -> str:
    """Say that something was deleted in MLflow, and how people bring it back."""
    store = shlex.quote(shown_url(uri))
    return (
        f"MLflow: {kind} {one_line(name)} was deleted; to bring it back: "
        f"MLFLOW_TRACKING_URI={store} mlflow {kind}s restore --{kind}-id {identity}"
    )


def trouble(error: BaseException) -> str:
    """Say what is wrong with a store, from what MLflow raised: ``does not answer (...)``."""
    said = one_line(first_line(error), longest=200)
    if "API request to http" in said:
        return f"does not answer ({said})"
    return f"refuses ({said})" if "API request" in said else f"cannot be used ({said})"


def is_away(error: BaseException, uri: str) -> bool:
    """Whether the server of ``uri`` was away: nothing is wrong with what it was asked."""
    from requests import ConnectionError as NoConnection
    from requests import Timeout

    from knee_tune.databases import is_outage

    if "API request to http" in str(error) or isinstance(error, NoConnection | Timeout):
        return True
    return is_outage(error) and not is_local(uri)


def connect(uri: str) -> "MlflowClient":
    """A client of ``uri``. Takes 1-3 s (import), 7-9 s more when the local store is new."""
    file = None if is_server(uri) else sqlite_file(uri)
    if file is not None:  # before what takes seconds, in which a home may be deleted
        file.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    for chatter in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(chatter).setLevel(logging.ERROR)
    if file is not None:
        refuse_damaged(uri)
        _create_database(file)
        uri = _patient(uri)
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


def refuse_damaged(uri: str) -> None:
    """Raise UserError if a local store is no SQLite file; MLflow tries for 100 s to open one.

    One that is not there yet is fine, and is not made.
    """
    file = None if is_server(uri) else sqlite_file(uri)
    if file is None or not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_PATIENCE)) as store:
            store.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        raise UserError(
            f"`tracking_uri` {shown_url(uri)}: cannot be opened ({first_line(error)}); put a copy "
            "of the file back, or move it away to begin a new one"
        ) from error


def _patient(uri: str) -> str:
    """A local store's URI, as MLflow takes it: no lock is too long, no folder made of an escape."""
    from sqlalchemy.engine import make_url  # slow

    url = make_url(uri).set(drivername="sqlite+pysqlite")
    if "timeout" not in url.query:
        url = url.update_query_dict({"timeout": str(LOCK_PATIENCE)})
    return url.render_as_string()


def _create_database(path: Path) -> None:
    """Make MLflow's schema in a file that appears whole: half of its 50 migrations stay broken."""
    if path.exists():
        return
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # drivers may start together
        if path.exists():
            return
        for left in path.parent.glob(f".{escape(path.name)}.*"):  # by one that was killed
            left.unlink(missing_ok=True)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with whole(path) as draft:
            store: Any = SqlAlchemyStore(  # type: ignore[no-untyped-call]
                sqlite_url(draft), (path.parent.absolute() / "artifacts").as_uri()
            )
            store.engine.dispose()


def is_server(uri: str) -> bool:
    """Whether MLflow is asked there, and not a database."""
    return uri.startswith(("http:", "https:", "databricks"))


def _pages(uri: str) -> str:
    return shown_url(uri).rstrip("/") if uri.startswith("http") else UI_ADDRESS


# Where a study comes from: who ran which version of what. As tags for ``StudyStarted``.

LIBRARIES = ("torch", "numpy", "optuna", "mlflow", "fairseq-fixed")


def provenance() -> dict[str, str]:
    """Return MLflow's tags for user, source, commit and ``version.<library>``; imports no library.

    Takes some 20 ms. What cannot be found out (no git, no user name) is left out.
    """
    tags = {
        "mlflow.source.name": "knee-tune",
        "mlflow.source.type": "LOCAL",
        "version.knee-tune": __version__,
        "version.python": platform.python_version(),
        "platform": platform.platform(),
    }
    for library in LIBRARIES:
        try:
            tags[f"version.{library}"] = version(library)
        except PackageNotFoundError:
            continue
    with suppress(OSError, KeyError):  # a container's user id may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


# A home that was moved, or copied to another machine: MLflow notes absolute paths in its store.

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Tables and columns that say where artifacts are, as a path or as a ``file:`` URI."""


def follow_home(home: Path, uri: str) -> None:
    """Have the store in ``home`` look for its artifacts in there, wherever the home was before.

    Any other store is left alone. MLflow creates the default experiment with the store, so its
    artifact location tells where the home was then.
    """
    path = home.absolute() / "mlflow.db"
    if uri != local_store(home) or not path.is_file():
        return
    now = path.parent / "artifacts"
    with closing(sqlite3.connect(path, timeout=60)) as store, store:
        default = store.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0")
        before = _path(next(default, (str(now / "0"),))[0]).parent
        if before == now or not before.is_absolute():
            return
        for old, new in ((str(before), str(now)), (before.as_uri(), now.as_uri())):
            for table, column in _PLACES:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def _path(location: str) -> Path:
    return Path(url2pathname(urlsplit(location).path) if location.startswith("file:") else location)
