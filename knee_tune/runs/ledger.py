"""The record of a finished run, beside its weights: who wants the same run is answered from it."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from knee_tune.distributed.protocol import Done, Report
from knee_tune.planning.plan import TrainPlan
from knee_tune.specs.base import Spec

RECORD = "finished.json"
"""Its name in the run's checkpoint folder."""


class KeptWeights(Spec):
    """The weights file that a record speaks of."""

    name: str
    size: int
    sha256: str


class FinishedRun(Spec):
    """Everything that training the same run again would tell."""

    run: dict[str, Any]
    """What was trained; the rest is in the folder's name (see ``planning/keys.py``)."""
    reports: tuple[Report, ...]
    outcome: Done
    """Without the path of the weights: a home may be moved."""
    weights: KeptWeights | None

    @property
    def steps(self) -> int:
        """The last step of the run."""
        return self.outcome.step

    def answer(self, plan: TrainPlan) -> Done:
        """The outcome of an attempt that finds everything done."""
        result = dict(self.outcome.result)
        if self.weights is not None:
            result["weights"] = str(plan.checkpoint_dir / self.weights.name)
        return self.outcome.model_copy(update={"first_step": self.steps, "result": result})


def write_record(plan: TrainPlan, outcome: Done, reports: Sequence[Report]) -> bool:
    """Record a run that would end the same way again; False if this one might not.

    That is a complete run with finite metrics and its weights in the checkpoint folder, and on a
    CPU, where the same run has the same bits, one that diverged. OSError if it cannot be written.
    """
    weights = None
    if outcome.state == "complete":
        path = Path(outcome.result.get("weights", ""))
        finite = all(map(math.isfinite, outcome.result.get("metrics", {}).values()))
        if not finite or path.parent != plan.checkpoint_dir or not path.is_file():
            return False
        weights = _kept(path)
    elif outcome.state != "diverged" or plan.placement.device != "cpu":
        return False
    result = {name: value for name, value in outcome.result.items() if name != "weights"}
    record = FinishedRun(
        run=_identity(plan),
        reports=tuple(reports),
        outcome=outcome.model_copy(update={"result": result}),
        weights=weights,
    )
    plan.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    draft = plan.checkpoint_dir / f"{RECORD}.draft"
    draft.write_text(record.model_dump_json())
    draft.replace(plan.checkpoint_dir / RECORD)
    return True


def read_record(plan: TrainPlan, *, on_line: Callable[[str], None]) -> FinishedRun | None:
    """The record of this run, or None: it is to be trained.

    A record that is damaged, is another run's or has lost its weights is passed over with a line.
    """
    path = plan.checkpoint_dir / RECORD
    try:
        record = FinishedRun.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        on_line(f"{path}: damaged ({problem}); the run is trained again")
        return None
    if record.run != _identity(plan):
        on_line(f"{path}: the record of another run; this one is trained")
        return None
    if record.weights is not None:
        weights = plan.checkpoint_dir / record.weights.name
        if not weights.is_file() or _kept(weights) != record.weights:
            on_line(f"{weights}: missing or damaged; the run is trained again")
            return None
    return record


def _identity(plan: TrainPlan) -> dict[str, Any]:
    shared = {"task", "recipe", "seed", "schedule", "replicas", "steps_per_evaluation"}
    placement = plan.placement.model_dump(include={"world_size", "device", "amp"})
    return plan.model_dump(mode="json", include=shared) | placement


def _kept(path: Path) -> KeptWeights:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return KeptWeights(name=path.name, size=path.stat().st_size, sha256=digest)
