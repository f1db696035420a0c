"""How a trial's replicates stand among its attributes.

Those that train one after another have an attribute each. Those of a fused trial are written all
at once, hundreds of them, so they share one, their curves over the same steps as bare numbers.
"""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from pydantic import TypeAdapter

from knee_tune.specs.records import ReplicateRecord
from knee_tune.specs.steps import StepCount

REPLICATE_PREFIX = "replicate:"
"""Trial attributes that hold its replicates, counted from 0."""

FUSED = "fused"
"""Trial attribute that holds all replicates of a fused trial."""

_RECORDS = TypeAdapter(tuple[ReplicateRecord, ...])


def replicate_attr(index: int) -> str:
    """The trial attribute that holds a replicate."""
    return f"{REPLICATE_PREFIX}{index}"


def replicates_of(attrs: Mapping[str, Any]) -> tuple[ReplicateRecord, ...]:
    """The replicates among a trial's attributes that were begun, in their order."""
    if FUSED in attrs:
        return _unpacked(attrs[FUSED])
    noted = takewhile(lambda name: name in attrs, map(replicate_attr, count()))
    return tuple(ReplicateRecord.model_validate(attrs[name]) for name in noted)


def runs_of(attrs: Mapping[str, Any]) -> int:
    """How many replicates a trial is to have."""
    if FUSED in attrs:
        return len(attrs[FUSED]["replicates"])
    runs: int = attrs.get("replicates", 1)
    return runs


def fused_attr(
    replicates: Sequence[ReplicateRecord], *, watched: str, run: StepCount
) -> dict[str, Any]:
    """The value of :data:`FUSED`; ``run`` is what their one run has cost so far."""
    curves = [
        {evaluation.step: evaluation.metrics[watched] for evaluation in replicate.curve}
        for replicate in replicates
    ]
    steps = sorted({step for curve in curves for step in curve})
    return {
        "watched": watched,
        "run": run.model_dump(),
        "steps": steps,
        "curves": [[curve.get(step) for step in steps] for curve in curves],
        "replicates": [
            replicate.model_dump(mode="json", exclude={"curve"}, exclude_defaults=True)
            for replicate in replicates
        ],
    }


def run_of(attrs: Mapping[str, Any]) -> StepCount:
    """What the one run of a fused trial has cost so far."""
    noted = attrs.get(FUSED)
    return StepCount() if noted is None else StepCount.model_validate(noted["run"])


def _unpacked(noted: Mapping[str, Any]) -> tuple[ReplicateRecord, ...]:
    """Validated as a whole: a study may have tens of thousands of evaluations."""
    watched, steps = noted["watched"], noted["steps"]
    return _RECORDS.validate_python(
        [
            fields
            | {
                "curve": [
                    {"step": step, "metrics": {watched: value}}
                    for step, value in zip(steps, curve, strict=True)
                    if value is not None
                ]
            }
            for fields, curve in zip(noted["replicates"], noted["curves"], strict=True)
        ]
    )
