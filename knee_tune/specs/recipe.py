"""A recipe: the fixed training settings of a task (budget, batch, optimizer, warmup)."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from knee_tune.specs.base import Spec
from knee_tune.specs.space import PositiveLR

Direction = Literal["minimize", "maximize"]

MOST_EVALUATIONS = 1_000_000
"""Of a run, and so the most epochs: plans and records list every one of them."""

Epochs = Annotated[int, Field(gt=0, le=MOST_EVALUATIONS, description="training budget, in epochs")]

DATA_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a prepared set may be called: it names folders, studies and models."""

Beta = Annotated[float, Field(ge=0, lt=1)]


class Metric(Spec):
    """A named number of an evaluation and the direction in which it improves."""

    name: str
    direction: Direction
    percent: bool = Field(default=False, description="measured in percent, 0 to 100")

    def better(self, new: float, old: float) -> bool:
        """Whether ``new`` is strictly better than ``old``."""
        return new < old if self.direction == "minimize" else new > old


class Optimizer(Spec):
    """A ``torch.optim`` optimizer; its LR is written by the training loop at every step."""

    name: Literal["sgd", "adam", "adamw", "radam"]
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD only")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="Adam family only")
    eps: float = Field(default=1e-8, gt=0, description="Adam family only")
    weight_decay: float = Field(default=0.0, ge=0)


class Recipe(Spec):
    """What every task's recipe has; a task adds its model and data settings in a subclass.

    ``metrics`` names every number the task's evaluations return. ``watched`` is the metric of
    the learning curve: trials are pruned on it and the best checkpoint is chosen by it. The study
    optimises ``objective``, which may be a dearer metric of the final evaluation.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    watched: ClassVar[str] = ""

    epochs: Epochs
    seed_lr: PositiveLR = Field(description="the paper's default seed LR for this task")
    warmup_steps: int = Field(default=0, ge=0, description="linear warmup, in steps")
    # Never stored: whoever opens a study makes steps of it, and from then on there are only those.
    warmup: str | None = Field(
        default=None,
        exclude=True,
        description="linear warmup as a share of the budget, as in 5%; instead of warmup_steps",
    )
    optimizer: Optimizer
    clip_norm: float | None = Field(default=None, gt=0, description="gradient norm limit")
    accumulate: int = Field(default=1, gt=0, description="micro-batches per step and rank")
    amp: bool = Field(default=False, description="bf16 autocast on a GPU; a CPU stays in float32")
    evaluations_per_epoch: int = Field(default=1, gt=0)
    keep: Literal["best", "last"] = Field(
        default="last", description="which weights a trial is judged by and registered with"
    )
    objective: str = Field(description="the metric that the study optimises")

    @field_validator("warmup")
    @classmethod
    def _warmup_is_a_share(cls, warmup: str | None) -> str | None:
        if warmup is not None and not re.fullmatch(r"\d{1,2}(\.\d+)?%", warmup):
            raise ValueError("must be a share of the budget below 100%, as in 5%")
        return warmup

    @model_validator(mode="after")
    def _one_warmup(self) -> "Recipe":
        if self.warmup is not None and self.warmup_steps:
            raise ValueError("warmup and warmup_steps: give one of them, not both")
        return self

    @model_validator(mode="after")
    def _objective_is_a_metric(self) -> "Recipe":
        names = [metric.name for metric in self.metrics]
        if self.metrics and self.objective not in names:
            raise ValueError(f"objective must be one of {', '.join(names)}")
        return self

    def with_warmup_of(self, budget: int) -> Self:
        """This recipe with its warmup counted in steps, should it be a share of a ``budget``."""
        if self.warmup is None:
            return self
        share = float(self.warmup.removesuffix("%")) / 100
        steps = max(1, round(share * budget)) if share else 0
        return self.model_copy(update={"warmup": None, "warmup_steps": steps})

    @model_validator(mode="after")
    def _evaluations_can_be_listed(self) -> "Recipe":
        if self.epochs * self.evaluations_per_epoch > MOST_EVALUATIONS:
            raise ValueError(
                f"epochs={self.epochs} times evaluations_per_epoch={self.evaluations_per_epoch} "
                f"are more than {MOST_EVALUATIONS:,} evaluations; use fewer"
            )
        return self

    def metric(self, name: str) -> Metric:
        """The metric called ``name``; KeyError if the task has none of that name."""
        return {metric.name: metric for metric in self.metrics}[name]
