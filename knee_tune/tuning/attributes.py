"""What a study keeps beside its trials: the runs and findings of other commands."""

from typing import Any, Protocol

import optuna

from knee_tune.specs.audit import Audit, AuditedTrial
from knee_tune.specs.compared import ComparedRun
from knee_tune.specs.confirmation import Confirmation
from knee_tune.specs.steps import StepCount

CONFIRMATION = "confirmation"
"""Study attribute with the newest confirmation."""

AUDIT_PREFIX = "audit:"
"""Study attributes with the audited trials, one each: two audits at a time lose nothing."""

COMPARED_PREFIX = "compared:"
"""Study attributes with the runs of a comparison, one for every row and random seed."""

STEPS_PREFIX = "steps:"
"""Study attributes that count the steps of runs outside the search."""


class Attributes(Protocol):
    """Where facts are kept beside runs, as an Optuna study does it."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Everything that is kept."""
        ...

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        ...


def extra_steps(study: Attributes, key: str) -> StepCount:
    """What an extra run has cost so far, over all commands that trained it.

    Who notes more must have read it while nobody else could: what is noted replaces it.
    """
    known = study.user_attrs.get(f"{STEPS_PREFIX}{key}")
    return StepCount() if known is None else StepCount.model_validate(known)


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
    study.set_user_attr(f"{COMPARED_PREFIX}{run.row}:{run.seed}", run.model_dump(mode="json"))


def known_compared(study: Attributes) -> tuple[ComparedRun, ...]:
    """Every run of a comparison that has ended, by row and random seed."""
    kept = (
        ComparedRun.model_validate(value)
        for name, value in study.user_attrs.items()
        if name.startswith(COMPARED_PREFIX)
    )
    return tuple(sorted(kept, key=lambda run: (run.row, run.seed)))
