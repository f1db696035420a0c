"""The recipe of a training script: what the command line and ``join`` say of it. Without torch."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from knee_tune.config.recipe import MOST_EVALUATIONS, BaseRecipe, Direction, Metric, Spec

DEFAULT_METRIC = "valid_loss"
"""What a script is taken to minimize unless it or the command line names another metric."""

JOINED = "joined"
"""In the answer of a job that describes: what the script says to ``join``."""

EVALUATIONS = 20
"""Of a run whose script does not say how often it evaluates."""


class ScriptRecipe(BaseRecipe):
    """A script, its arguments, and how long and by what it trains.

    Model, data, optimizer and arithmetic are the script's own. Budgets count steps, and metrics
    have the names under which the script reports them.
    """

    script: Path = Field(description="the script's file")
    arguments: tuple[str, ...] = Field(default=(), description="what its command line gets")
    steps: int = Field(gt=0, description="training budget, in steps")
    evaluate_every: int = Field(gt=0, description="steps from one evaluation to the next")
    direction: Direction = Field(default="minimize", description="in which the metric improves")
    amp: bool = Field(default=False, exclude=True, description="a script decides that itself")
    keep: Literal["best", "last"] = Field(
        default="last", description="which weights a trial is judged by and registered with"
    )

    @property
    def budget_field(self) -> str:
        """See :class:`~knee_tune.config.recipe.BaseRecipe`."""
        return "steps"

    @property
    def budget_unit(self) -> str:
        """See :class:`~knee_tune.config.recipe.BaseRecipe`."""
        return "steps"

    @property
    def subject(self) -> str:
        """The script's name, as names have it."""
        return subject_of(self.script)

    @property
    def objective_metric(self) -> Metric:
        """See :class:`~knee_tune.config.recipe.BaseRecipe`."""
        return Metric(name=self.objective, direction=self.direction)

    @property
    def watched_metric(self) -> Metric:
        """The same metric: a script reports one that it is judged by."""
        return self.objective_metric

    def total_steps(self, steps_per_epoch: int) -> int:
        """See :class:`~knee_tune.config.recipe.BaseRecipe`."""
        return self.steps

    def steps_per_evaluation(self, steps_per_epoch: int) -> int:
        """See :class:`~knee_tune.config.recipe.BaseRecipe`."""
        return min(self.steps, max(self.evaluate_every, self.steps // MOST_EVALUATIONS))


class Joined(Spec):
    """What a script says of its training to ``join``: the study's where nothing else is said."""

    steps: int | None
    evaluate_every: int | None
    objective: str
    direction: Direction
    seed_lr: float
    warmup_steps: int

    def settings(self, steps: int | None = None) -> dict[str, Any]:
        """The recipe's fields, at a budget of ``steps``, or its own; those that it does not say
        are left out.
        """
        said = self.model_dump(exclude_none=True) | ({"steps": steps} if steps else {})
        if "steps" in said:
            said.setdefault("evaluate_every", max(1, said["steps"] // EVALUATIONS))
        return said


def subject_of(script: Path) -> str:
    """Name the subject of a script's studies, as experiment and model are named: ``my-train``."""
    return re.sub(r"[^a-z0-9]+", "-", script.stem.lower()).strip("-")[:64] or "script"
