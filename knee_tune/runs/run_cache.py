"""The run cache: a finished run is recorded beside its weights, and not trained again.

It serves only as it was written: record and weights must match their checksums.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from knee_tune.config.recipe import Spec
from knee_tune.errors import first_line
from knee_tune.files import checksum
from knee_tune.plans.identity import run_identity
from knee_tune.plans.plan import TrainPlan
from knee_tune.runs.trunks import write_note
from knee_tune.workers.protocol import Done, ReplicaDone, Report

RECORD = "finished.json"
"""Its name in the run's checkpoint folder."""


class KeptWeights(Spec):
    """The weights file that a record speaks of."""

    name: str
    size: int
    sha256: str


class FinishedRun(Spec):
    """Record of a finished run: all that training it again would tell."""

    run: dict[str, Any]
    """What was trained (see ``plans/identity.py``)."""
    reports: tuple[Report, ...]
    outcome: Done
    """Without the folder of the weights: a home may be moved."""
    weights: tuple[KeptWeights, ...]
    """All that it left, the one to be registered first: of a fused run those of every replica."""

    @property
    def steps(self) -> int:
        """The last step of the run."""
        return self.outcome.step

    def answer(self, plan: TrainPlan) -> Done:
        """The outcome of an attempt that finds everything done."""
        result = dict(self.outcome.result)
        if self.weights:
            result["weights"] = str(plan.checkpoint_dir / self.weights[0].name)
        replicas = _moved(self.outcome.replicas, lambda name: plan.checkpoint_dir / name)
        return self.outcome.model_copy(
            update={"first_step": self.steps, "result": result, "replicas": replicas}
        )


class Sealed(Spec):
    """A record as its file has it."""

    sha256: str
    """Of the record (see :func:`_seal`)."""
    record: FinishedRun


def write_record(plan: TrainPlan, outcome: Done, reports: Sequence[Report]) -> bool:
    """Record a run that would end the same way again; False if this one might not.

    That is a complete run with finite metrics and its weights in the checkpoint folder, and on a
    CPU, where the same run has the same bits, one that diverged. Of a fused run the replicas may
    have diverged there, and the others have weights files of their own. OSError if it cannot be
    written.
    """
    paths: tuple[Path, ...] = ()
    if outcome.state == "complete":
        path = Path(outcome.result.get("weights", ""))
        finite = all(map(math.isfinite, outcome.result.get("metrics", {}).values()))
        if not finite or path.parent != plan.checkpoint_dir or not path.is_file():
            return False
        if not all(_would_end_so_again(replica, plan) for replica in outcome.replicas):
            return False
        parts = (Path(each.weights) for each in outcome.replicas if each.weights is not None)
        paths = tuple(dict.fromkeys((path, *parts)))
    elif outcome.state != "diverged" or plan.placement.device != "cpu":
        return False
    result = {name: value for name, value in outcome.result.items() if name != "weights"}
    replicas = _moved(outcome.replicas, lambda path: Path(path).relative_to(plan.checkpoint_dir))
    record = FinishedRun(
        run=run_identity(plan),
        reports=tuple(reports),
        outcome=outcome.model_copy(update={"result": result, "replicas": replicas}),
        weights=tuple(_kept(path, plan.checkpoint_dir) for path in paths),
    )
    sealed = Sealed(sha256=_seal(record.model_dump(mode="json")), record=record)
    write_note(plan.checkpoint_dir / RECORD, sealed)
    return True


def read_record(plan: TrainPlan, *, on_line: Callable[[str], None]) -> FinishedRun | None:
    """The record of this run, or None: it is to be trained.

    A record that is damaged, is another run's, has lost its weights or is of a version that gave
    it no checksum is passed over with a line.
    """
    path = plan.checkpoint_dir / RECORD
    try:
        kept = json.loads(path.read_bytes())
        if "sha256" not in kept:
            on_line(f"{path}: of an earlier version, without a checksum; the run is trained again")
            return None
        if _seal(kept["record"]) != kept["sha256"]:
            raise ValueError("it does not match its checksum")
        record = Sealed.model_validate(kept).record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        on_line(f"{path}: damaged ({first_line(error)}); the run is trained again")
        return None
    if record.run != run_identity(plan):
        on_line(f"{path}: the record of another run; this one is trained")
        return None
    for weights in record.weights:
        if not _is_sound(weights, plan.checkpoint_dir):
            place = plan.checkpoint_dir / weights.name
            on_line(f"{place}: missing or damaged; the run is trained again")
            return None
    return record


def _seal(record: dict[str, Any]) -> str:
    """The checksum of a record as JSON reads it, however its file is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


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


def _is_sound(weights: KeptWeights, folder: Path) -> bool:
    try:
        return _kept(folder / weights.name, folder) == weights
    except OSError:
        return False


def _kept(path: Path, folder: Path) -> KeptWeights:
    name = path.relative_to(folder).as_posix()
    return KeptWeights(name=name, size=path.stat().st_size, sha256=checksum(path))
