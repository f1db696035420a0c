"""One Optuna trial on its way through the driver: its parameters, its notes, its steps."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from knee_tune.distributed.protocol import Done, Outcome
from knee_tune.planning.plan import TrainPlan
from knee_tune.specs.recipe import Recipe
from knee_tune.tuning.recovery import driver_id, key_of
from knee_tune.tuning.samplers import Axis
from knee_tune.tuning.study import reported_sign

_SHARED_BY_TWINS = (
    "key",
    "checkpoint",
    "plan",
    "metrics",
    "weights",
    "mlflow_run_id",
    "mlflow_run_url",
)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched: the study, its axes, and how a point becomes a plan."""

    study: optuna.Study
    recipe: Recipe
    axes: Mapping[str, Axis]
    plan: Callable[["TrialRun", int], TrainPlan]
    """A trial's plan on the devices of a slot."""
    asking: AbstractContextManager[object] = field(default_factory=nullcontext)
    """Held while a trial is asked for, against other drivers (see ``storage.asking_lock``)."""


class TrialRun:
    """A trial with what the driver needs to train it and to tell its end."""

    def __init__(self, trial: optuna.Trial, search: Search) -> None:
        self.trial, self._search = trial, search
        self.note(driver=driver_id())  # first of all: sampling may take seconds
        self.number = trial.number
        self.seed_lr = self._suggest("seed_lr")
        self.explore_fraction = self._suggest("explore_fraction")
        self.key = key_of(trial)
        self.steps_trained = int(trial.user_attrs.get("steps_trained", 0))
        self.url: str | None = trial.user_attrs.get("mlflow_run_url")
        """Of its MLflow run, once that is known."""
        self._first_step: int | None = None
        self._last_step = 0

    def _suggest(self, name: str) -> float:
        span = self._search.axes[name].distribution()
        return self.trial.suggest_float(name, span.low, span.high, log=span.log)

    @property
    def metric(self) -> str:
        """What the study optimises."""
        return f"valid_{self._search.recipe.objective}"

    def plan_for(self, slot: int) -> TrainPlan:
        """The complete order for this trial on that slot's devices."""
        return self._search.plan(self, slot)

    def comparable(self, metrics: Mapping[str, float]) -> float:
        """The watched metric as Optuna is told it, in the study's direction."""
        recipe = self._search.recipe
        return reported_sign(recipe) * metrics[f"valid_{recipe.watched}"]

    def finished_twin(self) -> FrozenTrial | None:
        """A complete or pruned trial with the same parameters, if there is one."""
        finished = self.trial.study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
        )
        return next((other for other in finished if other.params == self.trial.params), None)

    def copy(self, twin: FrozenTrial, *, reason: str) -> None:
        """Take over what ``twin`` measured; no step is trained for it."""
        known = twin.user_attrs
        shared = {name: known[name] for name in _SHARED_BY_TWINS if name in known}
        self.note(**shared, steps_trained=0, reason=reason)
        for step, reported in twin.intermediate_values.items():
            self.trial.report(reported, step)

    def note(self, **attributes: Any) -> None:
        """Keep facts with the trial, where every viewer of the study finds them."""
        for name, value in attributes.items():
            self.trial.set_user_attr(name, value)

    def saw_step(self, step: int) -> None:
        """A sign of life; the first one of an attempt tells where it started."""
        if self._first_step is None:
            self._first_step = step
        self._last_step = step

    def count_steps(self, outcome: Outcome | None) -> None:
        """Add an attempt's steps; one that did not come back is counted by its signs of life."""
        if isinstance(outcome, Done):
            self.steps_trained += outcome.steps_trained
        elif self._first_step is not None:
            self.steps_trained += self._last_step - self._first_step + 1
        self._first_step = None
