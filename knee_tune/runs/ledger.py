"""The record of a finished run, beside its weights: who wants the same run is answered from it."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from knee_tune.distributed.protocol import Done, ReplicaDone, Report
from knee_tune.errors import first_line
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
    """Without the folder of the weights: a home may be moved."""
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
        replicas = _moved(self.outcome.replicas, lambda name: plan.checkpoint_dir / name)
        return self.outcome.model_copy(
            update={"first_step": self.steps, "result": result, "replicas": replicas}
        )


def write_record(plan: TrainPlan, outcome: Done, reports: Sequence[Report]) -> bool:
    """Record a run that would end the same way again; False if this one might not.

    That is a complete run with finite metrics and its weights in the checkpoint folder, and on a
    CPU, where the same run has the same bits, one that diverged. Of a fused run the replicas may
    have diverged there, and the others have weights files of their own. OSError if it cannot be
    written.
    """
    weights = None
    if outcome.state == "complete":
        path = Path(outcome.result.get("weights", ""))
        finite = all(map(math.isfinite, outcome.result.get("metrics", {}).values()))
        if not finite or path.parent != plan.checkpoint_dir or not path.is_file():
            return False
        if not all(_would_end_so_again(replica, plan) for replica in outcome.replicas):
            return False
        weights = _kept(path)
    elif outcome.state != "diverged" or plan.placement.device != "cpu":
        return False
    result = {name: value for name, value in outcome.result.items() if name != "weights"}
    replicas = _moved(outcome.replicas, lambda path: Path(path).relative_to(plan.checkpoint_dir))
    record = FinishedRun(
        run=_identity(plan),
        reports=tuple(reports),
        outcome=outcome.model_copy(update={"result": result, "replicas": replicas}),
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
        on_line(f"{path}: damaged ({first_line(error)}); the run is trained again")
        return None
    if record.run != _identity(plan):
        on_line(f"{path}: the record of another run; this one is trained")
        return None
    for name in (replica.weights for replica in record.outcome.replicas):
        if name is not None and not (plan.checkpoint_dir / name).is_file():  # thousands: no look in
            on_line(f"{plan.checkpoint_dir / name}: missing; the run is trained again")
            return None
    if record.weights is not None:
        weights = plan.checkpoint_dir / record.weights.name
        if not weights.is_file() or _kept(weights) != record.weights:
            on_line(f"{weights}: missing or damaged; the run is trained again")
            return None
    return record


def _would_end_so_again(replica: ReplicaDone, plan: TrainPlan) -> bool:
    if replica.state == "complete":
        path = Path(replica.weights or "")
        finite = all(map(math.isfinite, replica.metrics.values()))
        return finite and path.is_relative_to(plan.checkpoint_dir) and path.is_file()
    return replica.state == "diverged" and plan.placement.device == "cpu"


def _moved(
    replicas: Iterable[ReplicaDone], place: Callable[[str], Path]
) -> tuple[ReplicaDone, ...]:
    """``replicas`` with the paths of their weights files elsewhere."""
    return tuple(
        replica.model_copy(update={"weights": str(place(replica.weights))})
        if replica.weights is not None
        else replica
        for replica in replicas
    )


def _identity(plan: TrainPlan) -> dict[str, Any]:
    shared = {"task", "recipe", "seed", "schedule", "replicas", "steps_per_evaluation"}
    placement = plan.placement.model_dump(include={"world_size", "device", "amp", "compile"})
    return plan.model_dump(mode="json", include=shared) | placement


def _kept(path: Path) -> KeptWeights:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return KeptWeights(name=path.name, size=path.stat().st_size, sha256=digest)
