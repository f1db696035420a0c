"""The trunk store: checkpoints that many runs start from, below one folder.

``<root>/<trunk key>/step-00001200/`` are written by ranks (``training/checkpoint.py``), and
``<root>/<trunk key>/trunk.json``, which says what it is a trunk of, by drivers. Everything may
vanish at any time: a run then starts from a lower checkpoint.
"""

import math
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from knee_tune.config.recipe import Spec, task_slug
from knee_tune.files import write_whole
from knee_tune.plans.plan import TrainPlan, checkpoint_path, checkpoint_paths, checkpoint_step
from knee_tune.runs.locks import file_lock, try_lock
from knee_tune.schedules import Exploring

# What the trunk store writes down beside the checkpoints: small JSON files that may be lost.

N = TypeVar("N", bound=Spec)


class TrunkNote(Spec):
    """A trunk, described for people, and its last use."""

    task: str
    seed_lr: float
    warmup_steps: int
    seed: int | None = None
    """None, as the world size is, for one of a :class:`knee_tune.TrunkCache`."""
    world_size: int | None = None
    made: datetime
    used: datetime
    use: int
    """The number, in the store, of the last run that used it."""


class StoreNote(Spec):
    """The uses and the limit of the whole store."""

    uses: int = 0
    """Runs that used any trunk."""
    limit: int | None = None
    """In bytes, as the last run had it."""


def read_note(path: Path, kind: type[N]) -> N | None:
    """The note at ``path``; None if it is missing or damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_note(path: Path, note: Spec) -> None:
    """Write ``note``, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    write_whole(path, note.model_dump_json())


# Which trunk checkpoints to drop when they take too much room: the rule "gap".


@dataclass(frozen=True, kw_only=True)
class TrunkCheckpoint:
    """One checkpoint of a trunk."""

    trunk: str
    step: int
    size: int
    """In bytes."""
    idle: int
    """Runs of the store since the one that used this trunk last."""
    in_use: bool = False
    """Whether its trunk is being trained: then it stays."""


def to_drop(checkpoints: Iterable[TrunkCheckpoint], *, limit: int) -> list[TrunkCheckpoint]:
    """The checkpoints to drop, in order, until what is left takes at most ``limit`` bytes.

    First goes the one with the smallest distance to the next lower checkpoint of its trunk, which
    is what a run has to train again, over ``sqrt(1 + idle)``. Sizes do not enter: where a
    checkpoint is big, a step is dear, too.
    """
    kept = sorted(checkpoints, key=lambda checkpoint: (checkpoint.trunk, checkpoint.step))
    scores = [
        _score(lower, checkpoint) for lower, checkpoint in zip([None, *kept], kept, strict=False)
    ]
    size = sum(checkpoint.size for checkpoint in kept)
    dropped = []
    while size > limit and (lowest := min(scores)) < math.inf:
        index = scores.index(lowest)
        dropped.append(kept.pop(index))
        size -= dropped[-1].size
        scores.pop(index)
        if index < len(kept):  # the one above is further from its neighbour now
            scores[index] = _score(kept[index - 1] if index else None, kept[index])
    return dropped


def _score(lower: TrunkCheckpoint | None, checkpoint: TrunkCheckpoint) -> float:
    if checkpoint.in_use:
        return math.inf
    start = lower.step if lower is not None and lower.trunk == checkpoint.trunk else 0
    return (checkpoint.step - start) / math.sqrt(1 + checkpoint.idle)


@dataclass(frozen=True, kw_only=True)
class TrunkEntry:
    """One trunk with its checkpoints."""

    key: str
    note: TrunkNote | None
    """None if it is lost; the trunk serves all the same."""
    used: datetime
    """When a run used it last."""
    sizes: dict[int, int]
    """Bytes of the checkpoint of each step, ascending."""

    @property
    def size(self) -> int:
        """Size of all checkpoints, in bytes."""
        return sum(self.sizes.values())


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """The result of :meth:`TrunkStore.clear`."""

    removed: tuple[TrunkEntry, ...]
    in_use: tuple[TrunkEntry, ...]
    """Asked for too, but left: a run is training them."""


class TrunkStore:
    """The trunks below ``root``, which may take ``limit`` bytes. Making one touches nothing."""

    def __init__(self, root: Path, *, limit: int) -> None:
        self.root, self.limit = root, limit

    def lock(self, key: str) -> FileLock:
        """Return the lock of the one run that trains this trunk on."""
        return file_lock(self.root / f"{key}.lock")

    def use(self, plan: TrainPlan) -> None:
        """Note that a run is about to start from its trunk, and to add to it."""
        if plan.trunk is not None and isinstance(plan.schedule, Exploring):
            self.note_use(
                plan.trunk.key,
                task_slug(plan.task),
                plan.schedule,
                seed=plan.seed,
                world_size=plan.placement.world_size,
            )

    def note_use(
        self,
        key: str,
        task: str,
        schedule: Exploring,
        *,
        seed: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Note a use of the trunk ``key``, and what it is a trunk of."""
        now = datetime.now(UTC)
        with self._alone():
            uses = self.note.uses + 1
            write_note(self._note_path, StoreNote(uses=uses, limit=self.limit))
            path = self.root / key / "trunk.json"
            known = read_note(path, TrunkNote)
            note = TrunkNote(
                task=task,
                seed_lr=schedule.seed_lr,
                warmup_steps=schedule.warmup_steps,
                seed=seed,
                world_size=world_size,
                made=known.made if known else now,
                used=now,
                use=uses,
            )
            write_note(path, note)

    @property
    def note(self) -> StoreNote:
        """The uses and the limit of the whole store."""
        return read_note(self._note_path, StoreNote) or StoreNote()

    def entries(self) -> list[TrunkEntry]:
        """Every trunk, the one used last first."""
        found = [_entry(path) for path in self.root.glob("[!.]*") if path.is_dir()]
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def shrink(self) -> int:
        """Drop checkpoints until the store is within its limit; how many were dropped.

        A trunk that is being trained is left alone. Files that checkpoints share count for each.
        """
        with self._alone(), ExitStack() as locks:
            entries = self.entries()
            if sum(entry.size for entry in entries) <= self.limit:
                return 0
            uses = self.note.uses
            checkpoints = []
            for entry in entries:
                lock = self.lock(entry.key)
                locks.callback(lock.release)
                idle = uses - entry.note.use if entry.note else uses
                in_use = not try_lock(lock)
                checkpoints += [
                    TrunkCheckpoint(trunk=entry.key, step=step, size=size, idle=idle, in_use=in_use)
                    for step, size in entry.sizes.items()
                ]
            dropped = to_drop(checkpoints, limit=self.limit)
            self._remove(
                checkpoint_path(self.root / checkpoint.trunk, step=checkpoint.step)
                for checkpoint in dropped
            )
            return len(dropped)

    def clear(self, *, task: str | None = None, older_than: timedelta | None = None) -> Cleared:
        """Remove the trunks of ``task`` that no run used for ``older_than`` (None: any)."""
        if not self.root.is_dir():
            return Cleared(removed=(), in_use=())
        since = datetime.now(UTC) - (older_than or timedelta())
        removed, in_use = [], []
        with self._alone():
            for entry in self.entries():
                of_task = task is None or (entry.note is not None and entry.note.task == task)
                if not of_task or entry.used > since:
                    continue
                lock = self.lock(entry.key)
                if not try_lock(lock):
                    in_use.append(entry)
                    continue
                try:
                    self._remove([self.root / entry.key])
                finally:
                    lock.release()
                removed.append(entry)
        return Cleared(removed=tuple(removed), in_use=tuple(in_use))

    @property
    def _note_path(self) -> Path:
        return self.root / "store.json"

    def _alone(self) -> FileLock:
        """Return the lock of whoever counts a use or removes something: for a moment."""
        return file_lock(self.root / ".lock")

    def _remove(self, folders: Iterable[Path]) -> None:
        """Delete folders that others may be reading: each is gone at once, or not at all."""
        trash = self.root / ".trash"
        trash.mkdir(exist_ok=True)
        for folder in folders:
            with suppress(FileNotFoundError):
                folder.rename(trash / uuid.uuid4().hex)
        shutil.rmtree(trash, ignore_errors=True)  # with what a killed driver left in it


def _entry(folder: Path) -> TrunkEntry:
    note = read_note(folder / "trunk.json", TrunkNote)
    sizes = {checkpoint_step(path): _size(path) for path in reversed(checkpoint_paths(folder))}
    return TrunkEntry(
        key=folder.name, note=note, used=note.used if note else _changed(folder), sizes=sizes
    )


def _size(folder: Path) -> int:
    try:
        with os.scandir(folder) as files:
            return sum(file.stat().st_size for file in files)
    except FileNotFoundError:
        return 0  # dropped just now


def _changed(folder: Path) -> datetime:
    try:
        return datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    except FileNotFoundError:
        return datetime.now(UTC)
