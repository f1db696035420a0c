"""What the trunk store writes down beside the checkpoints: small JSON files that may be lost."""

from datetime import datetime
from pathlib import Path
from typing import TypeVar

from knee_tune.specs.base import Spec

N = TypeVar("N", bound=Spec)


class TrunkNote(Spec):
    """What a trunk is, for people, and when it was used last."""

    task: str
    seed_lr: float
    warmup_steps: int
    seed: int
    world_size: int
    made: datetime
    used: datetime
    use: int
    """The number, in the store, of the last run that used it."""


class StoreNote(Spec):
    """What the store knows as a whole."""

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
    draft = path.with_suffix(".draft")
    draft.write_text(note.model_dump_json())
    draft.replace(path)
