"""Where studies, records and data go: is it there, does it answer? Creates nothing."""

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import sqlalchemy

from knee_tune.doctor.check import Check
from knee_tune.errors import first_line
from knee_tune.urls import is_url, shown_url, sqlite_file

TIMEOUT = 3.0
"""Seconds that a storage or a tracking server has to answer."""
ENOUGH_DISK = 2 * 2**30
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "fuse.sshfs"}


def check_home(home: Path) -> Iterator[Check]:
    """Whether studies can be written, with room for them, on a disk that SQLite can lock."""
    place = _existing(home)
    yield Check(
        "home",
        place.is_dir() and os.access(place, os.W_OK | os.X_OK),
        f"{home}" + ("" if home.exists() else " (will be created)"),
        f"{place} cannot be written to: choose another place with --home",
    )
    free = shutil.disk_usage(place).free
    yield Check(
        "disk",
        free >= ENOUGH_DISK,
        f"{free / 2**30:.1f} GiB free",
        "checkpoints need room: free some, or choose another place with --home",
    )
    kind = _file_system(place)
    yield Check(
        "file system",
        kind not in NETWORK_FILE_SYSTEMS,
        kind or "unknown",
        "SQLite is not safe on a network file system: use a local --home, or PostgreSQL with "
        "--storage",
    )


def check_storage(url: str) -> Check:
    """Whether the study's storage answers."""
    shown = shown_url(url, password="***")
    if not is_url(url):
        return Check("storage", False, f"{shown}: no URL", "--storage must be a SQLAlchemy URL")
    parsed = sqlalchemy.make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _check_sqlite("storage", url)
    limits = {"postgresql": "connect_timeout", "mysql": "connect_timeout"}
    arguments = {limits[backend]: int(TIMEOUT)} if backend in limits else {}
    advice = "start the database or correct --storage (or OPTUNA_STORAGE)"
    try:
        engine = sqlalchemy.create_engine(parsed, connect_args=arguments)
        with engine.connect():
            return Check("storage", True, f"{shown} answers")
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        return Check("storage", False, f"{shown}: {first_line(error)}", advice)


def check_tracking(uri: str) -> Check:
    """Whether the MLflow server, or the place of its file, answers."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        return _check_sqlite("tracking", uri)
    shown = shown_url(uri)
    if parts.scheme not in ("http", "https"):
        return Check("tracking", True, f"{shown} (not asked)")
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT):
            return Check("tracking", True, f"{shown} answers")
    except urllib.error.HTTPError as error:
        return Check("tracking", error.code < 500, f"{shown} answers with {error.code}")
    except (OSError, ValueError) as error:
        return Check(
            "tracking",
            False,
            f"{shown}: {first_line(error)}",
            "start the server or correct --tracking-uri; a run keeps its records until it answers",
        )


def check_data(data_dir: Path) -> Check:
    """Which data sets are prepared; none is fine for the embedded ones."""
    found = sorted(path.parent.name for path in data_dir.glob("*/manifest.json"))
    nothing = "none prepared (the embedded ones need no preparation)"
    return Check("data", True, f"{', '.join(found) or nothing} in {data_dir}")


def _existing(path: Path) -> Path:
    """``path`` or its nearest parent that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.access(place, os.F_OK))


def _file_system(place: Path) -> str:
    """Type of the file system that ``place`` lies on; empty if the system does not say."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    resolved = place.resolve()
    return next(
        (mounts[str(p)] for p in (resolved, *resolved.parents) if str(p) in mounts),
        "",
    )


def _check_sqlite(name: str, url: str) -> Check:
    shown, path = shown_url(url), sqlite_file(url)
    if path is None:
        return Check(name, False, f"{shown} is in memory", "name a file: nothing would be kept")
    place = _existing(path)
    if place != path.absolute():
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        return Check(name, writable, f"{shown} (will be created)", f"cannot write to {place}")
    try:
        with path.open("r+b") as file:
            header = file.read(16)
    except OSError as error:
        return Check(name, False, f"{shown}: {first_line(error)}", f"cannot write to {path}")
    usable = header in (b"", b"SQLite format 3\0")
    return Check(name, usable, shown, f"{path} is not an SQLite file: name another place")
