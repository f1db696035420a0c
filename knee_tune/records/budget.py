"""The smallest budget that reaches a target: what is asked, what was trained, what it comes to."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from knee_tune.config.recipe import MOST_EVALUATIONS, Direction, Metric, Spec, alike_points
from knee_tune.errors import UserError
from knee_tune.records.shown import setting

KNEE = "knee"
"""The schedule that all others are compared with."""


class Setting(Spec):
    """A schedule at one budget with one seed LR, trained with every random seed."""

    schedule: str
    epochs: int
    seed_lr: float
    explore_fraction: float | None = Field(description="Knee only")
    values: tuple[float | None, ...] = Field(description="one per random seed; None: diverged")

    @property
    def mean(self) -> float | None:
        """Over the random seeds; None if a run of one diverged."""
        finite = [value for value in self.values if value is not None]
        return statistics.fmean(finite) if len(finite) == len(self.values) > 0 else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the random seeds; None for one seed."""
        finite = [value for value in self.values if value is not None]
        return statistics.stdev(finite) if len(finite) == len(self.values) > 1 else None

    @property
    def point(self) -> str:
        """``seed LR 0.05, explore 50%``."""
        return setting(self.seed_lr, self.explore_fraction)


class BudgetRun(Spec):
    """One training run of a budget search."""

    key: str = Field(description="names it in MLflow, unique in its search")
    schedule: str
    epochs: int = Field(gt=0)
    seed_lr: float = Field(gt=0)
    explore_fraction: float | None = None
    seed: int
    value: float | None = Field(default=None, description="the objective; None: diverged")
    reason: str = Field(default="", description="why there is no value")
    steps_trained: int = Field(default=0, ge=0, description="over all commands")
    steps_budget: int = Field(gt=0)


class SearchSteps(NamedTuple):
    """Steps that a search trained itself, over all commands that continued it, and what the same
    runs would have cost, each trained alone."""

    trained: int
    independent: int


class Saving(NamedTuple):
    """Knee against the best of the baselines: the one that needs the fewest epochs."""

    baseline: str | None
    """None: no baseline was asked for, or none gets there."""
    share: float | None
    """Of the baseline's epochs; at least that much where no baseline gets there."""
    text: str


class BudgetRecord(Spec):
    """A budget search and what it found; a schedule stops at its first budget that is enough."""

    name: str
    key: str = Field(description="makes ``uid`` unique for ever")
    task: str
    preset: str
    recipe: dict[str, Any] = Field(description="without ``epochs``, which is what is searched")
    nproc: int
    data_fingerprint: str
    metric: str = Field(description="with its split, as in valid_accuracy")
    direction: Direction
    target: float
    budgets: tuple[int, ...] = Field(description="epochs, ascending")
    schedules: tuple[str, ...]
    runs: tuple[BudgetRun, ...] = ()
    finished: bool = Field(default=False, description="False: interrupted, or still running")

    @property
    def uid(self) -> str:
        """Names it in MLflow, also when a search of the same name is made anew."""
        return f"{self.name}-{self.key}"

    def steps(self, schedule: str | None = None) -> SearchSteps:
        """What the runs of a schedule, or (None) all of them, have cost."""
        runs = [run for run in self.runs if schedule in (None, run.schedule)]
        return SearchSteps(
            trained=sum(run.steps_trained for run in runs),
            independent=sum(run.steps_budget for run in runs),
        )

    def settings(self, schedule: str, epochs: int | None = None) -> list[Setting]:
        """What was trained of a schedule, at one budget or (None) at all of them."""
        values: dict[tuple[int, float, float | None], list[float | None]] = {}
        for run in self.runs:
            if run.schedule == schedule and epochs in (None, run.epochs):
                point = (run.epochs, run.seed_lr, run.explore_fraction)
                values.setdefault(point, []).append(run.value)
        return [
            Setting(
                schedule=schedule,
                epochs=point[0],
                seed_lr=point[1],
                explore_fraction=point[2],
                values=tuple(found),
            )
            for point, found in values.items()
        ]

    def best(self, schedule: str, epochs: int | None = None) -> Setting | None:
        """The setting with the best mean, at one budget or at any; None if none has a mean."""
        scored = [
            (self._sign * setting.mean, index, setting)
            for index, setting in enumerate(self.settings(schedule, epochs))
            if setting.mean is not None
        ]
        return min(scored)[2] if scored else None

    def reached(self, setting: Setting | None) -> bool:
        """Whether a setting's mean is as good as the target, or better."""
        return (
            setting is not None
            and setting.mean is not None
            and self._sign * setting.mean <= self._sign * self.target
        )

    def smallest(self, schedule: str) -> Setting | None:
        """The best setting of the smallest budget that reaches the target; None if none does."""
        cells = (self.best(schedule, epochs) for epochs in self.budgets)
        return next((cell for cell in cells if self.reached(cell)), None)

    @property
    def saving(self) -> Saving | None:
        """Knee against the best baseline; None where Knee was not asked for."""
        if KNEE not in self.schedules:
            return None
        rivals = [name for name in self.schedules if name != KNEE]
        if not rivals:
            return Saving(None, None, "no baseline was asked for")
        knee, last = self.smallest(KNEE), self.budgets[-1]
        needed = {name: cell.epochs for name in rivals if (cell := self.smallest(name))}
        rival = min(needed, key=needed.__getitem__) if needed else None
        epochs = last if rival is None else needed[rival]
        if knee is None and rival is None:
            within = in_epochs(last)
            return Saving(None, None, f"neither Knee nor a baseline reaches it within {within}")
        if knee is None:
            reached = f"{rival} reaches it in {in_epochs(epochs)}"
            return Saving(rival, None, f"{reached}, Knee in none of these budgets")
        share, needs = 1 - knee.epochs / epochs, f"Knee needs {in_epochs(knee.epochs)}"
        if rival is None:
            more = f": more than {share:.0%} less training" if share else ""
            text = f"{needs}, no baseline reaches it within {last}{more}"
        elif share == 0:
            both = f"Knee and the best baseline ({rival}) both need {in_epochs(epochs)}"
            text = f"{both}: nothing saved"
        else:
            change = f"{abs(share):.0%} {'less' if share > 0 else 'more'} training"
            text = f"{needs}, the best baseline ({rival}) {epochs}: {change}"
        return Saving(rival, share, text)

    @property
    def _sign(self) -> int:
        return 1 if self.direction == "minimize" else -1

    def as_json(self) -> dict[str, Any]:
        """The object that ``budget --json`` prints."""
        return {
            "search": self.name,
            "task": self.task,
            "preset": self.preset,
            "metric": self.metric,
            "direction": self.direction,
            "target": self.target,
            "budgets": list(self.budgets),
            "finished": self.finished,
            "schedules": [self._schedule_as_json(name) for name in self.schedules],
            "saving": self.saving._asdict() if self.saving else None,
            "steps": self.steps()._asdict(),
        }

    def _schedule_as_json(self, name: str) -> dict[str, Any]:
        smallest = self.smallest(name)
        tried = [epochs for epochs in self.budgets if self.settings(name, epochs)]
        return {
            "schedule": name,
            "smallest_budget": smallest.epochs if smallest else None,
            "best": _as_json(smallest or self.best(name)),
            "steps": self.steps(name)._asdict(),
            "budgets": [
                {
                    "epochs": epochs,
                    "settings": len(self.settings(name, epochs)),
                    "reached": self.reached(self.best(name, epochs)),
                    "best": _as_json(self.best(name, epochs)),
                }
                for epochs in tried
            ],
        }


def in_epochs(count: int) -> str:
    """``1 epoch``, ``20 epochs``."""
    return f"{count} epoch" + ("" if count == 1 else "s")


def _as_json(setting: Setting | None) -> dict[str, Any] | None:
    if setting is None:
        return None
    point = setting.model_dump(mode="json", exclude={"schedule"})
    return point | {"mean": setting.mean, "spread": setting.spread}


def read_target(text: str, metric: Metric) -> float:
    """The target as people type it, in the metric's own units.

    For a metric in percent ``95``, ``95%`` and ``0.95`` are the same: a target between 0 and 1 is
    read as a share, because below one percent there is nothing to aim at. UserError otherwise.
    """
    shown = f"`target` {text}"
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"{shown}: must be a number, as in `target` 95") from None
    if not math.isfinite(value):
        raise UserError(f"{shown}: must be a finite number")
    if not metric.percent:
        if number != text.strip():
            raise UserError(f"{shown}: {metric.name} is not measured in percent; leave out the %")
        return value
    if number == text.strip() and 0 < value < 1:
        value = float(f"{100 * value:.12g}")  # 0.57 is 57, not 56.99999999999999
    if not 0 < value <= 100:
        raise UserError(
            f"{shown}: {metric.name} is measured in percent; type 95 (or 0.95) for 95 %"
        )
    return value


def check_budgets(
    budgets: Sequence[int], *, unit: str = "epoch", most: int = MOST_EVALUATIONS
) -> None:
    """UserError unless the budgets are positive, ascending, each one once, and ``most`` at most."""
    shown = f"`budgets` {','.join(map(str, budgets))}"
    if not budgets:
        raise UserError(f"`budgets`: name at least one, in {unit}s, as in `budgets` 10,20,30")
    if max(budgets) > most:
        raise UserError(f"{shown}: a budget is at most {most:,} {unit}s")
    if min(budgets) < 1:
        raise UserError(f"{shown}: a budget is at least 1 {unit}")
    if any(left >= right for left, right in zip(budgets, budgets[1:], strict=False)):
        raise UserError(f"{shown}: must ascend, each budget once; type {_ascending(budgets)}")


def check_no_budget(settings: Iterable[str]) -> None:
    """UserError if a setting names a budget: ``budgets`` does that."""
    for field in ("recipe.epochs", "recipe.steps"):
        if any(setting.partition("=")[0].strip() == field for setting in settings):
            raise UserError(f"`settings` {field}: `budgets` names the {field[7:]}")


def check_distinct(option: str, values: Iterable[object]) -> None:
    """UserError if a value is named twice or there is none."""
    named = list(values)
    shown = f"{option} {','.join(map(str, named))}"
    if not named or len(set(named)) < len(named):
        raise UserError(f"{shown}: name at least one, each one once")
    if alike := alike_points(value for value in named if isinstance(value, float)):
        raise UserError(f"{shown}: {alike}")


def _ascending(budgets: Iterable[int]) -> str:
    return ",".join(map(str, sorted(set(budgets))))
