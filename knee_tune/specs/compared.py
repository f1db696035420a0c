"""The runs of a study that trains the rows of a table instead of searching."""

from pydantic import Field

from knee_tune.specs.base import Spec
from knee_tune.specs.steps import StepCount


class ComparedRun(Spec):
    """One row of the table, trained with one random seed."""

    row: int = Field(ge=0, description="its place in the study's ``compare.rows``")
    seed: int
    state: str = Field(description="complete, pruned (it diverged) or failed")
    reason: str = Field(default="", description="why it is not complete, one line")
    metrics: dict[str, float] = Field(
        default_factory=dict,
        description="by name and split: valid_accuracy, test_accuracy, train_loss; and what "
        "analyses found: sharpness, fisher",
    )
    steps: StepCount = StepCount()
    budget: int = Field(default=0, ge=0, description="steps of its schedule")
    answered: bool = Field(default=False, description="by the record of the same run")
    started: float | None = Field(default=None, description="seconds since 1970, UTC")
    seconds: float = Field(default=0.0, ge=0, description="of training")
    checkpoint: str | None = None
    code: str = Field(default="", description="fingerprint of what trained it; empty: not noted")
