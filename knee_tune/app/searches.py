"""Budget searches that are kept: one JSON file each, in ``<home>/budgets``."""

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from knee_tune.app.home import Home
from knee_tune.errors import UserError, disk_trouble
from knee_tune.specs.budget import BudgetRecord

FIXED_FIELDS = ("task", "recipe", "nproc", "data_fingerprint", "metric", "direction")
"""What may not change while a search lives: its runs would no longer be comparable."""


class KeptSearch:
    """The file of one search: its record, and the attributes that count its steps."""

    def __init__(
        self, path: Path, record: BudgetRecord, attributes: dict[str, Any] | None = None
    ) -> None:
        self._path, self._record, self._attributes = path, record, attributes or {}
        self._lock = threading.Lock()

    @property
    def record(self) -> BudgetRecord:
        """What was found so far."""
        return self._record

    @property
    def user_attrs(self) -> dict[str, Any]:
        """As an Optuna study has them."""
        return self._attributes

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold; from any thread."""
        with self._lock:
            self._attributes[key] = value
            self._write()

    def keep(self, record: BudgetRecord) -> None:
        """Replace the record."""
        with self._lock:
            self._record = record
            self._write()

    def _write(self) -> None:
        """The file appears whole or not at all."""
        draft = self._path.with_suffix(".draft")
        kept = {"search": self._record.model_dump(mode="json"), "attributes": self._attributes}
        draft.write_text(json.dumps(kept))
        draft.replace(self._path)


@contextmanager
def continued_search(home: Home, record: BudgetRecord) -> Iterator[KeptSearch]:
    """The search that is kept under ``record.name``, made if it is new, for this command alone.

    It keeps its key; everything else is as asked now. UserError if it was made with another recipe,
    world size or data, or if another command is at it.
    """
    folder = _folder(home)
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / f"{record.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"budget search {record.name}: another command is at it; wait, or choose another --name"
        ) from None
    try:
        path = folder / f"{record.name}.json"
        key, attributes = uuid.uuid4().hex[:8], None
        if path.exists():
            known, attributes = _read(path)
            _refuse_changes(known, record)
            key = known.key
        kept = KeptSearch(path, record, attributes)
        kept.keep(record.model_copy(update={"key": key}))
        yield kept
    finally:
        lock.release()


def known_search(home: Home, name: str | None) -> BudgetRecord:
    """The search of that name; without a name, the only one there is. UserError otherwise."""
    names = [path.stem for path in sorted(_folder(home).glob("*.json"))]
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        known = ", ".join(names) or "none yet; start one with --task, --target and --budgets"
        asked = "name a budget search with --name" if name is None else f"--name {name}: not here"
        raise UserError(f"{asked}; there are: {known}")
    return _read(_folder(home) / f"{name}.json")[0]


def _folder(home: Home) -> Path:
    return home.root.absolute() / "budgets"


def _read(path: Path) -> tuple[BudgetRecord, dict[str, Any]]:
    try:
        kept = json.loads(path.read_text())
        return BudgetRecord.model_validate(kept["search"]), dict(kept["attributes"])
    except (OSError, ValueError, LookupError, TypeError, ValidationError) as error:
        if disk_trouble(error):
            raise
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); delete it, what was trained is kept "
            "elsewhere"
        ) from error


def _refuse_changes(old: BudgetRecord, new: BudgetRecord) -> None:
    for field in FIXED_FIELDS:
        if getattr(old, field) != getattr(new, field):
            raise UserError(
                f"budget search {new.name}: it was made with another {field}; choose another --name"
            )
