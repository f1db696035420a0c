"""Checkpoints of a run and of its trunk: written whole, loaded without pickle, and started from.

``step-00001200/{state.pt, weights.safetensors, manifest.json}`` in a run's checkpoint folder, or
in a trunk's. The weights are the kept ones of a run that keeps its
best. Of a sharded model every rank writes what it has, ``state-rank-1.pt`` beside rank 0's
``state.pt``. The manifest, written last, holds the checksums and whose state it is; the folder gets
its name by a rename after everything is written. What does not match its manifest, or is another
run's, is no good.
"""

import errno
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from knee_tune.errors import FULL, UserError, first_line
from knee_tune.files import checksum, draft_of, drafts, link_or_copy, remove, whole
from knee_tune.plans.identity import digest_of, measured_alike, run_identity
from knee_tune.plans.plan import (
    CHECKPOINT_MANIFEST,
    KEPT_WEIGHTS,
    TrainPlan,
    TrunkPlan,
    checkpoint_path,
    checkpoint_paths,
    checkpoint_step,
)
from knee_tune.schedules import Exploring
from knee_tune.workers.group import Group, ran_out_of_memory

FORMAT = 3
"""Changes with what a state holds, so that no state of another version is loaded."""

STATE, WEIGHTS, MANIFEST = "state.pt", KEPT_WEIGHTS, CHECKPOINT_MANIFEST

_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    pickle.UnpicklingError,
)


class DamagedError(Exception):
    """A checkpoint is no good; the text says why, in a few words."""


class UnreadableError(DamagedError):
    """A checkpoint may be sound, but its disk, or the machine that has it, did not give it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a sound checkpoint."""

    step: int
    state: dict[str, Any]
    """On the CPU. What belongs on a GPU goes there when it is loaded into the model and the
    optimizer: some optimizers count their steps on the CPU."""

    weights: Path | None
    """The kept weights."""


def run_fingerprint(plan: TrainPlan) -> str:
    """Name the run whose states these are, and their format: only the same run goes on from one.

    A run is what :func:`knee_tune.plans.identity.run_identity` says.
    """
    return digest_of(run_identity(plan) | {"format": FORMAT})


def state_file(rank: int) -> str:
    """The file in a checkpoint with the state that a rank has of a sharded model, rank 0 of any."""
    return f"state-rank-{rank}.pt" if rank else STATE


_SHARD = re.compile(r"state-rank-(\d+)\.pt")

ALONE = Group()
"""Of whoever has the whole state."""


def save_checkpoint(
    directory: Path,
    *,
    run: str,
    step: int,
    state: dict[str, Any],
    weights: Path | None = None,
    durable: bool = True,
    group: Group = ALONE,
) -> Path:
    """Write ``state`` (tensors, numbers, strings, and containers of them) as of ``step``.

    ``run`` is the :func:`run_fingerprint`, or the key of the trunk. ``weights`` share their disk
    space with the file given, which must be replaced, never written into. A checkpoint that is not
    ``durable`` waits for no disk: a crash of the machine may damage it, which its checksums show.
    If there is one of this step already, that one stays. OSError if the disk is full; then nothing
    is left behind.

    ``group``: ranks that have a state each, of a sharded model. Every one of them calls this and
    writes its own; rank 0 gathers the files and writes the manifest. An error of any is raised on
    rank 0 alone. UserError there if it does not see another one's file.
    """
    target = checkpoint_path(directory, step=step)
    shards = group.gather(_write_shard(target, {"step": step, "state": state}, durable=durable))
    if not group.leads:
        return target
    try:
        with whole(target, durable=durable) as draft:
            draft.mkdir()
            checksums = {
                state_file(rank): _take_shard(shard, draft / state_file(rank), rank=rank)
                for rank, shard in enumerate(shards)
            }
            if weights is not None:
                checksums[WEIGHTS] = checksum(link_or_copy(weights, draft / WEIGHTS))
            (draft / MANIFEST).write_text(json.dumps({"run": run, "sha256": checksums}))
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and target.is_dir():
            return target
        if error.errno not in FULL:
            raise
        needed = f"{error.strerror}: a checkpoint needs {_size_of(state, weights) / 1e6:.1f} MB"
        raise OSError(error.errno, needed, str(directory)) from error
    finally:
        for draft, *_ in shards:
            remove(draft)
    return target


_Shard = tuple[Path, str, tuple[int | None, str] | None]
"""A rank's state, in a draft of its own: where it is, its checksum, and what stopped the rank."""


def _write_shard(target: Path, content: dict[str, Any], *, durable: bool) -> _Shard:
    """Write what this rank has. What stops it is told, for every other rank waits to hear of it."""
    draft = draft_of(target)
    try:
        target.parent.mkdir(exist_ok=True)
        return draft, _write_state(draft, content, durable=durable), None
    except OSError as error:
        remove(draft)
        return draft, "", (error.errno, error.strerror or str(error))


def _take_shard(shard: _Shard, file: Path, *, rank: int) -> str:
    """Move what a rank has written to its place in the checkpoint; its checksum."""
    draft, noted, trouble = shard
    if trouble is not None:
        code, said = trouble
        raise OSError(code, f"{said} (rank {rank})" if rank else said, str(draft.parent))
    try:
        draft.rename(file)
    except FileNotFoundError:
        raise UserError(
            f"{draft.parent}: rank 0 does not find what rank {rank} wrote here; "
            "put it on a file system that all their machines share"
        ) from None
    return noted


def load_checkpoint(folder: Path, *, run: str, rank: int = 0) -> Checkpoint:
    """Load what ``rank`` needs of the checkpoint in ``folder``: its own state, or rank 0's.

    DamagedError unless it is sound and of ``run``. A rank trusts that the owners of other files
    look at them: rank 0 at all that are no other rank's. Where memory runs out nothing is said of
    the checkpoint: that error is raised on.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["run"] != run:
            raise ValueError("of another run")
        for name, noted in manifest["sha256"].items():
            if _owner(name) == rank and checksum(folder / name) != noted:
                raise ValueError(f"{name} does not match its checksum")
        own = state_file(rank) if state_file(rank) in manifest["sha256"] else STATE
        saved = torch.load(folder / own, map_location="cpu", weights_only=True)
        if saved["step"] != checkpoint_step(folder):
            raise ValueError("of another step")
    except _DAMAGE as error:
        if ran_out_of_memory(error):
            raise
        raise _kind_of(error)(first_line(error)) from error
    weights = folder / WEIGHTS if WEIGHTS in manifest["sha256"] else None
    return Checkpoint(step=saved["step"], state=saved["state"], weights=weights)


def _owner(name: str) -> int:
    """The rank that looks at a file of a checkpoint."""
    found = _SHARD.fullmatch(name)
    return int(found[1]) if found else 0


def _looks_at(folder: Path, rank: int) -> bool:
    """Whether a rank looks at checksums of a checkpoint: rank 0, and who has a state of its own."""
    if rank == 0:
        return True
    try:
        noted = json.loads((folder / MANIFEST).read_text())["sha256"]
    except _DAMAGE:
        return False
    return state_file(rank) in noted


def _kind_of(error: Exception) -> type[DamagedError]:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return UnreadableError if isinstance(error, OSError) and not missing else DamagedError


def sweep_drafts(directory: Path, *, seconds: float = 0.0) -> None:
    """Delete what killed runs left half-written at least so many ``seconds`` ago."""
    for draft in drafts(directory):
        with suppress(OSError):  # another run swept it
            if time.time() - draft.stat().st_mtime >= seconds:
                remove(draft)


def save_weights(path: Path, model: nn.Module, *, durable: bool = True) -> None:
    """Write ``model``'s weights as a safetensors file, which appears whole or not at all.

    What is not ``durable`` waits for no disk: a crash of the machine may damage it.
    """
    path.parent.mkdir(exist_ok=True)
    with whole(path, durable=durable) as draft:
        save_model(model, str(draft))


def take_weights(path: Path, source: Path) -> None:
    """Make ``path`` the weights in ``source``; it changes whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with whole(path, durable=True) as draft:
        link_or_copy(source, draft)


def _size_of(state: Any, weights: Path | None) -> int:
    """Bytes of all tensors in ``state`` and of the file of ``weights``, about."""
    match state:
        case torch.Tensor():
            return state.nbytes
        case dict():
            size = sum(_size_of(each, None) for each in state.values())
        case list() | tuple():
            size = sum(_size_of(each, None) for each in state)
        case _:
            size = len(str(state))
    return size + (weights.stat().st_size if weights is not None else 0)


def _write_state(path: Path, content: dict[str, Any], *, durable: bool) -> str:
    """Write ``content``; its checksum. OSError if there is no room for it."""
    with _Hashing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own word for what the file said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        if durable:  # by whoever wrote it: another machine cannot
            file.flush()
            os.fsync(file.fileno())
    return file.digest.hexdigest()


class _Hashing(io.BufferedWriter):
    """A new file that takes the checksum of what is written, so that nothing is read again."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


ABANDONED_SECONDS = 3600.0
"""Age from which a half-written one is nobody's: runs of one trunk write one after the other."""


class Trunk:
    """The trunk of one run, as its rank 0 sees it; ``say`` tells the people who watch.

    Its checkpoints are of warmup and explore, which runs of every explore fraction and budget have
    in common: a run may start from them, and leaves some for other branches. Writing one never
    ends a run, and none has to be sound: what a run cannot use it trains itself.
    """

    def __init__(self, plan: TrainPlan, trunk: TrunkPlan, say: Callable[[str], None]) -> None:
        self.key = trunk.key
        self._plan, self._trunk, self._say = plan, trunk, say
        self._told = False

    def checkpoints(self) -> list[Path]:
        """Everything that the run may start from, the highest first, sound or not."""
        sweep_drafts(self._trunk.folder, seconds=ABANDONED_SECONDS)
        found = checkpoint_paths(self._trunk.folder)
        return [path for path in found if self.reaches(checkpoint_step(path))]

    def reaches(self, step: int) -> bool:
        """Whether the run is on its trunk at ``step``: a run of any budget would be the same."""
        plan, schedule = self._plan, self._plan.schedule
        on_trunk = isinstance(schedule, Exploring) and step <= schedule.knee_step
        return on_trunk and measured_alike(
            step, plan.evaluation_steps(), every=plan.steps_per_evaluation
        )

    def keeps(self, step: int) -> bool:
        """Whether the state at ``step`` is one to keep."""
        return step in self._trunk.checkpoint_steps

    def wants(self, step: int) -> bool:
        """Whether the state at ``step`` is not there yet."""
        return not self._path(step).is_dir()

    def save(
        self, step: int, state: dict[str, Any], *, weights: Path | None, group: Group = ALONE
    ) -> None:
        """Keep the state at ``step``, of all of the ``group``.

        A full disk costs a word to the people who watch, no more.
        """
        try:
            save_checkpoint(
                self._trunk.folder,
                run=self.key,
                step=step,
                state=state,
                weights=weights,
                durable=False,
                group=group,
            )
        except OSError as error:
            if not self._told:
                self._say(f"{self._path(step)}: not saved, other runs train it again: {error}")
            self._told = True

    def _path(self, step: int) -> Path:
        return checkpoint_path(self._trunk.folder, step=step)


def find_start(
    plan: TrainPlan, trunk: Trunk | None, group: Group, say: Callable[[str], None]
) -> Checkpoint | None:
    """Load the run's newest checkpoint or its trunk's highest, on every rank; None: from scratch.

    What is no good on any rank is named to the people who watch, and removed: the run is going to
    save that step itself. What only could not be read stays where it is. UserError if the ranks do
    not see the same files.
    """
    candidates = _candidates(plan, trunk) if group.leads else None
    for folder, run in group.gather(candidates)[0] or []:
        found, problem, readable = None, "", True
        try:
            found = load_checkpoint(folder, run=run, rank=group.rank)
        except DamagedError as error:
            problem, readable = str(error), not isinstance(error, UnreadableError)
        looked = found is None and _looks_at(folder, group.rank)
        problems = [each for each in group.gather((problem, readable, looked)) if each[0]]
        if not problems:
            return found
        # Asked now that every rank has looked: another driver may have dropped it in between.
        there = group.agree(not problem and folder.is_dir())
        if there and not all(looked for *_, looked in problems):
            raise UserError(
                f"{folder}: not every rank finds this checkpoint; "
                "put it on a file system that all their machines share"
            )
        if group.leads:
            say(f"{folder}: no good, starting from an earlier checkpoint: {problems[0][0]}")
            if all(readable for _, readable, looked in problems if looked):
                shutil.rmtree(folder, ignore_errors=True)
    return None


def _candidates(plan: TrainPlan, trunk: Trunk | None) -> list[tuple[Path, str]]:
    """Checkpoints and whose state they must be, the furthest first."""
    sweep_drafts(plan.checkpoint_dir)
    own = [(path, run_fingerprint(plan)) for path in checkpoint_paths(plan.checkpoint_dir)]
    shared = [] if trunk is None else [(path, trunk.key) for path in trunk.checkpoints()]
    return sorted(own + shared, key=lambda found: checkpoint_step(found[0]), reverse=True)
