"""Checkpoints: a folder appears whole or not at all, and is loaded without pickle.

``<checkpoint_dir>/step-00001200/{state.pt, manifest.json}``. The manifest, written last, holds the
checksum and what it is a checkpoint of; the folder gets its name by a rename after everything is
on disk. Whatever does not match its manifest, or belongs to another run, is skipped with a
warning, and the checkpoint before it is used. One process writes to a folder, rank 0 of the run
that it belongs to.
"""

import hashlib
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from knee_tune.planning.checkpoint_folder import (
    checkpoint_path,
    checkpoint_paths,
    discard_checkpoints,
)
from knee_tune.planning.plan import TrainPlan

KEPT = 2
"""Checkpoints kept of one run: the newest, and the one before in case the newest is damaged."""

_DAMAGE = (OSError, ValueError, TypeError, LookupError, RuntimeError, pickle.UnpicklingError)


def run_fingerprint(plan: TrainPlan) -> str:
    """Tells runs apart whose states differ: same schedule, recipe, seed and world size, same run.

    Not in it: where data and logs are, and the devices.
    """
    parts = plan.model_dump(mode="json", include={"task", "recipe", "seed", "schedule"})
    parts["world_size"] = plan.placement.world_size
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def save_checkpoint(directory: Path, *, run: str, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors, numbers, strings, and containers of them) as of ``step``.

    ``run`` is the :func:`run_fingerprint`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target, draft = checkpoint_path(directory, step=step), directory / ".draft"
    shutil.rmtree(draft, ignore_errors=True)  # what a killed run left behind
    draft.mkdir()
    torch.save({"step": step, "state": state}, draft / "state.pt")
    manifest = {"run": run, "sha256": _sha256(draft / "state.pt")}
    (draft / "manifest.json").write_text(json.dumps(manifest))
    for name in ("state.pt", "manifest.json", "."):
        _sync(draft / name)
    shutil.rmtree(target, ignore_errors=True)  # there if it was damaged
    draft.rename(target)
    _sync(directory)
    discard_checkpoints(directory, keep=KEPT)
    return target


def load_newest_checkpoint(directory: Path, *, run: str) -> tuple[int, dict[str, Any]] | None:
    """Step and state (on the CPU) of the newest sound checkpoint of ``run`` in ``directory``.

    None if there is none. What belongs on a GPU goes there when it is loaded into the model and
    the optimizer: some optimizers count their steps on the CPU.
    """
    for folder in checkpoint_paths(directory):
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if _sha256(folder / "state.pt") != manifest["sha256"]:
                raise ValueError("its checksum does not match its manifest")
            if manifest["run"] != run:
                warnings.warn(
                    f"not resuming from {folder}: it is of a run with another schedule, recipe, "
                    "seed or world size",
                    stacklevel=2,
                )
                continue
            saved = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            return saved["step"], saved["state"]
        except _DAMAGE as error:
            warnings.warn(f"skipping damaged checkpoint {folder}: {error}", stacklevel=2)
    return None


def save_weights(path: Path, model: nn.Module) -> None:
    """Write ``model``'s weights as a safetensors file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    save_model(model, str(draft))
    _sync(draft)
    draft.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
