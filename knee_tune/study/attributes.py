"""What a study and its trials keep as attributes: findings, runs outside the search, replicates."""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any, Protocol

import optuna
from pydantic import TypeAdapter

from knee_tune.records.findings import Audit, AuditedTrial, Confirmation
from knee_tune.records.study import ComparedRun
from knee_tune.records.values import RunRecord, StepCount

CONFIRMATION = "confirmation"
"""Study attribute with the newest confirmation."""

AUDIT_PREFIX = "audit:"
"""Study attributes with the audited trials, one each: two audits at a time lose nothing."""

COMPARED_PREFIX = "compared:"
"""Study attributes with the runs of a comparison, one for every row and random seed."""

STEPS_PREFIX = "steps:"
"""Study attributes that count the steps of runs outside the search."""


class Attributes(Protocol):
    """Store of facts beside runs, as an Optuna study is one."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Everything that is kept."""
        ...

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        ...


def extra_steps(study: Attributes, key: str) -> StepCount:
    """Read what an extra run has cost so far, over all commands that trained it.

    Who notes more must have read it while nobody else could: what is noted replaces it.
    """
    known = study.user_attrs.get(f"{STEPS_PREFIX}{key}")
    return StepCount() if known is None else StepCount.model_validate(known)


def all_extra_steps(study: Attributes) -> StepCount:
    """Read what all runs outside the search have cost so far."""
    kept = (value for name, value in study.user_attrs.items() if name.startswith(STEPS_PREFIX))
    return sum(map(StepCount.model_validate, kept), StepCount())


def note_extra_steps(study: Attributes, key: str, steps: StepCount) -> None:
    """Keep what an extra run has cost."""
    study.set_user_attr(f"{STEPS_PREFIX}{key}", steps.model_dump(mode="json"))


def record_confirmation(study: optuna.Study, confirmation: Confirmation) -> None:
    """Keep what a confirmation found; it replaces the one before."""
    study.set_user_attr(CONFIRMATION, confirmation.model_dump(mode="json"))


def known_confirmation(study: optuna.Study) -> Confirmation | None:
    """The newest confirmation, if there was one."""
    known = study.user_attrs.get(CONFIRMATION)
    return None if known is None else Confirmation.model_validate(known)


def record_audit(study: optuna.Study, trial: AuditedTrial) -> None:
    """Keep what a pruned trial came to; the trial itself stays as it is."""
    study.set_user_attr(f"{AUDIT_PREFIX}{trial.number}", trial.model_dump(mode="json"))


def known_audit(study: optuna.Study) -> Audit:
    """Every pruned trial that was trained to its end, in the order of their numbers."""
    kept = (
        AuditedTrial.model_validate(value)
        for name, value in study.user_attrs.items()
        if name.startswith(AUDIT_PREFIX)
    )
    return Audit(trials=tuple(sorted(kept, key=lambda trial: trial.number)))


def record_compared(study: Attributes, run: ComparedRun) -> None:
    """Keep what is known of a row trained with a random seed; it replaces what was known before."""
    kept = run.model_dump(mode="json", exclude={"value", "curve"})
    study.set_user_attr(f"{COMPARED_PREFIX}{run.row}:{run.seed}", kept)


def known_compared(study: Attributes) -> tuple[ComparedRun, ...]:
    """Every run of a comparison that has ended, by row and random seed."""
    kept = (
        ComparedRun.model_validate(value)
        for name, value in study.user_attrs.items()
        if name.startswith(COMPARED_PREFIX)
    )
    return tuple(sorted(kept, key=lambda run: (run.row, run.seed)))


# A trial's replicates that train one after another have an attribute each. Those of a fused trial
# are written all at once, hundreds of them, so they share one, their curves over the same steps as
# bare numbers.

REPLICATE_PREFIX = "replicate:"
"""Trial attributes that hold its replicates, counted from 0."""

FUSED = "fused"
"""Trial attribute that holds all replicates of a fused trial."""

SAID_OF_TRIAL = {"reason", "budget", "started", "seconds", "code"}
"""What is kept of a trial once, and not of each of its replicates."""

_RECORDS = TypeAdapter(tuple[RunRecord, ...])


def replicate_attr(index: int) -> str:
    """The trial attribute that holds a replicate."""
    return f"{REPLICATE_PREFIX}{index}"


def replicates_of(attrs: Mapping[str, Any]) -> tuple[RunRecord, ...]:
    """The replicates among a trial's attributes that were begun, in their order."""
    if FUSED in attrs:
        return _unpacked(attrs[FUSED])
    noted = takewhile(lambda name: name in attrs, map(replicate_attr, count()))
    return tuple(RunRecord.model_validate(attrs[name]) for name in noted)


def runs_of(attrs: Mapping[str, Any]) -> int:
    """Number of replicates that a trial is to have."""
    if FUSED in attrs:
        return len(attrs[FUSED]["replicates"])
    runs: int = attrs.get("replicates", 1)
    return runs


def fused_attr(replicates: Sequence[RunRecord], *, watched: str, run: StepCount) -> dict[str, Any]:
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
    """Steps that the one run of a fused trial has cost so far."""
    noted = attrs.get(FUSED)
    return StepCount() if noted is None else StepCount.model_validate(noted["run"])


def _unpacked(noted: Mapping[str, Any]) -> tuple[RunRecord, ...]:
    """Validate as a whole: a study may have tens of thousands of evaluations."""
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
