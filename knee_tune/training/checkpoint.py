"""Checkpoints: a folder appears whole or not at all, and is loaded without pickle.

``step-00001200/{state.pt, weights.safetensors, manifest.json}`` in a run's checkpoint folder, or
in a trunk's, where it is called a knot. The weights are the kept ones of a run that keeps its
best. The manifest holds the checksums and whose state it is; the folder gets its name by a rename
after everything is written. What does not match its manifest, or is another run's, is no good.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from knee_tune.distributed.out_of_memory import ran_out_of_memory
from knee_tune.errors import FULL, first_line
from knee_tune.planning.checkpoint_folder import (
    DRAFT,
    KEPT_WEIGHTS,
    checkpoint_path,
    checkpoint_step,
)
from knee_tune.planning.keys import digest_of, run_identity
from knee_tune.planning.plan import TrainPlan

FORMAT = 3
"""Changes with what a state holds, so that no state of another version is loaded."""

STATE, WEIGHTS, MANIFEST = "state.pt", KEPT_WEIGHTS, "manifest.json"

_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    pickle.UnpicklingError,
)


class DamagedError(Exception):
    """Why a checkpoint is no good, in a few words."""


class UnreadableError(DamagedError):
    """It may be sound: the disk, or the machine that has it, did not give it this time."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a sound checkpoint holds."""

    step: int
    state: dict[str, Any]
    """On the CPU. What belongs on a GPU goes there when it is loaded into the model and the
    optimizer: some optimizers count their steps on the CPU."""

    weights: Path | None
    """The kept weights."""


def run_fingerprint(plan: TrainPlan) -> str:
    """Names the run whose states these are, and their format: only the same run goes on from one.

    A run is what :func:`knee_tune.planning.keys.run_identity` says.
    """
    return digest_of(run_identity(plan) | {"format": FORMAT})


def save_checkpoint(
    directory: Path,
    *,
    run: str,
    step: int,
    state: dict[str, Any],
    weights: Path | None = None,
    durable: bool = True,
) -> Path:
    """Write ``state`` (tensors, numbers, strings, and containers of them) as of ``step``.

    ``run`` is the :func:`run_fingerprint`, or the key of the trunk. ``weights`` share their disk
    space with the file given, which must be replaced, never written into. A checkpoint that is not
    ``durable`` waits for no disk: a crash of the machine may damage it, which its checksums show.
    If there is one of this step already, that one stays. OSError if the disk is full; then nothing
    is left behind.
    """
    directory.mkdir(exist_ok=True)
    target, draft = checkpoint_path(directory, step=step), directory / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        draft.mkdir()
        checksums = {STATE: _write_state(draft / STATE, {"step": step, "state": state})}
        if weights is not None:
            checksums[WEIGHTS] = _sha256(share_file(weights, draft / WEIGHTS))
        (draft / MANIFEST).write_text(json.dumps({"run": run, "sha256": checksums}))
        if durable:
            for path in (*draft.iterdir(), draft):
                _sync(path)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        if durable:
            _sync(directory)
    except OSError as error:
        if error.errno not in FULL:
            raise
        needed = f"{error.strerror}: a checkpoint needs {_size_of(state, weights) / 1e6:.1f} MB"
        raise OSError(error.errno, needed, str(directory)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def load_checkpoint(folder: Path, *, run: str, verify: bool = True) -> Checkpoint:
    """The checkpoint in ``folder``, if it is sound and of ``run``; otherwise DamagedError.

    ``verify=False`` trusts the checksums, which another rank has looked at. Where memory runs out
    nothing is said of the checkpoint: that error is raised on.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["run"] != run:
            raise ValueError("of another run")
        for name, checksum in manifest["sha256"].items():
            if verify and _sha256(folder / name) != checksum:
                raise ValueError(f"{name} does not match its checksum")
        saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if saved["step"] != checkpoint_step(folder):
            raise ValueError("of another step")
    except _DAMAGE as error:
        if ran_out_of_memory(error):
            raise
        raise _kind_of(error)(first_line(error)) from error
    weights = folder / WEIGHTS if WEIGHTS in manifest["sha256"] else None
    return Checkpoint(step=saved["step"], state=saved["state"], weights=weights)


def _kind_of(error: Exception) -> type[DamagedError]:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return UnreadableError if isinstance(error, OSError) and not missing else DamagedError


def sweep_drafts(directory: Path, *, seconds: float = 0.0) -> None:
    """Delete what killed runs left half-written at least so many ``seconds`` ago."""
    for draft in directory.glob(f"{DRAFT}*"):
        try:
            if time.time() - draft.stat().st_mtime >= seconds:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError:
            continue  # another run swept it


def save_weights(path: Path, model: nn.Module, *, durable: bool = True) -> None:
    """Write ``model``'s weights as a safetensors file, which appears whole or not at all.

    What is not ``durable`` waits for no disk: a crash of the machine may damage it.
    """
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)  # a killed run may have left a link to a knot's weights
    save_model(model, str(draft))
    if durable:
        _sync(draft)
    draft.replace(path)


def take_weights(path: Path, source: Path) -> None:
    """Make ``path`` the weights in ``source``; it changes whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    share_file(source, draft)
    _sync(draft)
    draft.replace(path)


def share_file(source: Path, target: Path) -> Path:
    """Make ``target`` the same file as ``source``, or a copy where file systems have no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
    return target


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


def _write_state(path: Path, content: dict[str, Any]) -> str:
    """Write ``content``; its checksum. OSError if there is no room for it."""
    with _Hashing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own word for what the file said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    return file.digest.hexdigest()


class _Hashing(io.BufferedWriter):
    """A new file that takes the checksum of what is written, so that nothing is read again."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
