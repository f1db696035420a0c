"""A home that was moved, or copied to another machine: MLflow notes absolute paths in its store."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from knee_tune.tracking.store import local_store

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
