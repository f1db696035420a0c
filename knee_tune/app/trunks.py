"""Commands about the trunk store: what is in it, and making room."""

from dataclasses import dataclass
from datetime import timedelta

from pydantic import ByteSize, TypeAdapter, ValidationError

from knee_tune.app.home import Home
from knee_tune.errors import UserError
from knee_tune.runs.trunks import Cleared, TrunkEntry, TrunkStore


@dataclass(frozen=True, kw_only=True)
class StoredTrunks:
    """What ``knee-tune trunks list`` shows."""

    trunks: tuple[TrunkEntry, ...]
    limit: int | None
    """In bytes, as the last run had it; None before the first one."""

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(entry.size for entry in self.trunks)


def list_trunks(home: Home) -> StoredTrunks:
    """The trunks of a home, the one used last first; UserError if there is no such home."""
    store = _store(home)
    return StoredTrunks(trunks=tuple(store.entries()), limit=store.note.limit)


def clear_trunks(home: Home, *, task: str | None, older_than_days: float | None) -> Cleared:
    """Remove the trunks of a task (None: of all) that were not used for so many days.

    UserError if there is no such home, or if it cannot be written to.
    """
    older_than = None if older_than_days is None else timedelta(days=older_than_days)
    store = _store(home)
    try:
        return store.clear(task=task, older_than=older_than)
    except PermissionError as error:
        raise UserError(
            f"--home {home.root}: {error.filename} cannot be removed ({error.strerror}); "
            "clear it as the user it belongs to"
        ) from error


def size_of_cache(text: str) -> int:
    """The bytes of ``20GB``, ``500MiB`` or ``0``; UserError for anything else."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError) as error:
        raise UserError(
            f"--trunk-cache {text}: not a size; write it as in 20GB or 500MB, or 0 to share no "
            "trunks"
        ) from error


def _store(home: Home) -> TrunkStore:
    if not home.root.is_dir():
        raise UserError(f"--home {home.root}: no such folder; name the one your studies are in")
    return TrunkStore(home.trunks, limit=0)
