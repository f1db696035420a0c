"""Where a run's checkpoints and weights are, for those who only need to find or delete them."""

import shutil
from pathlib import Path

KEPT_WEIGHTS = "weights.safetensors"
"""The file in a run's checkpoint folder with the weights that the run keeps."""

DRAFT = ".draft-"
"""How a checkpoint is called that is not whole yet; a file has the suffix ``.draft``."""


def checkpoint_path(directory: Path, *, step: int) -> Path:
    """The folder of one checkpoint."""
    return directory / f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def checkpoint_paths(directory: Path) -> list[Path]:
    """Every checkpoint in ``directory``, the newest first, sound or not."""
    found = (path for path in directory.glob("step-*") if path.name[5:].isdecimal())
    return sorted(found, key=checkpoint_step, reverse=True)


def drafts(directory: Path) -> list[Path]:
    """What is not whole yet in ``directory``: being written, or left by whoever was killed."""
    return [*directory.glob(f"{DRAFT}*"), *directory.glob("*.draft")]


def discard_checkpoints(directory: Path, *, keep: int = 0) -> None:
    """Delete all but the ``keep`` newest; the kept weights beside them stay."""
    for old in checkpoint_paths(directory)[keep:]:
        shutil.rmtree(old)
