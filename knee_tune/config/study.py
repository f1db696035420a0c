"""The resolved description of one study: everything that decides what it searches and trains."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from knee_tune.config.recipe import (
    DATA_NAME,
    DEFAULT_EXPLORE_FRACTION,
    BaseRecipe,
    Epochs,
    PositiveLR,
    SearchSpace,
    Spec,
    task_slug,
)


class Sharpness(Spec):
    """Keskar's sharpness (equation 1), by projected gradient ascent (section 3.2.1)."""

    name: Literal["sharpness"] = "sharpness"
    epsilon: float = Field(
        default=1e-4, gt=0, description="half the box's side is epsilon * (|weight| + 1)"
    )
    lr: float = Field(default=1e-3, gt=0, description="of the ascent, in the gradient's direction")
    iterations: int = Field(default=1000, gt=0, description="ascent steps")
    examples: int | None = Field(
        default=None, gt=0, description="of the training split, the first ones; None: all of it"
    )


class Fisher(Spec):
    """The largest eigenvalue of the true Fisher information matrix (section 3.2.2)."""

    name: Literal["fisher"] = "fisher"
    samples: int = Field(default=10, gt=0, description="labels drawn from the model per example")
    iterations: int = Field(default=100, gt=0, description="matrix-vector products at most")
    tolerance: float = Field(default=1e-3, gt=0, description="relative error bound that ends them")
    examples: int | None = Field(
        default=None, gt=0, description="of the training split, the first ones; None: all of it"
    )
    seed: int = Field(default=1, ge=0, description="of the labels and the first vector")


class TrunkFile(Spec):
    """A trunk up to one of its steps, trained elsewhere (see :func:`knee_tune.save_trunk`)."""

    path: Path
    step: int = Field(gt=0, description="the last one that it was trained for")
    sha256: str = Field(description="of the file, which may be moved")


Analysis = Annotated[Sharpness | Fisher, Field(discriminator="name")]

Sampler = Literal["gp", "tpe", "grid", "random"]

Start = Literal["bracket", "random"]

Pruner = Literal["knee", "median", "percentile", "hyperband", "none"]

Goal = Literal["best", "ridge"]

SEARCHING = (
    *("trials", "target", "stop_when_flat", "sampler", "start", "centre"),
    *("from_study", "pruner", "goal", "confirm", "total_runs", "total_steps", "space"),
)
"""Settings of a search, which a study with ``compare`` does not make."""

FRESH_SEEDS = 1_000_000
"""Distance from a study's seed to those that confirm its winner: never used in a search."""

FEWEST_RUNS = 6
"""Whole budgets that a search and a race need: a bracket of three, and one more seed for two of
them, with room for a trial that is under way when the search ends."""

StudyName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="letters, digits, dots, dashes, underscores: it names folders and runs too",
    ),
]


class ReferenceRow(Spec):
    """One row of a published table: a setting and the numbers reported for it."""

    schedule: Literal["knee", "step", "linear", "cosine", "one_cycle", "inverse_sqrt", "constant"]
    epochs: Epochs
    seed_lr: PositiveLR | None = None
    label: str = Field(default="", description="what people read; empty: made from the setting")
    explore_epochs: int | None = Field(default=None, ge=0, description="knee only")
    boundaries: tuple[Epochs, ...] = Field(
        default=(), description="step only: epochs after which the LR is a tenth; ascending"
    )
    metrics: dict[str, float] = Field(description="mean values by name and split, as in test_bleu")
    std: dict[str, float] = Field(
        default_factory=dict, description="standard deviations over the runs, same names"
    )

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.explore_epochs is not None:
            if self.schedule != "knee":
                raise ValueError(f"explore_epochs: only knee has them, this is {self.schedule}")
            if self.explore_epochs > self.epochs:
                raise ValueError(f"explore_epochs must not exceed epochs={self.epochs}")
        if self.boundaries:
            if self.schedule != "step":
                raise ValueError(f"boundaries: only step has them, this is {self.schedule}")
            bounds = (*self.boundaries, self.epochs)
            if any(left >= right for left, right in pairwise(bounds)):
                raise ValueError(f"boundaries must ascend and lie below epochs={self.epochs}")
        unknown = self.std.keys() - self.metrics.keys()
        if unknown:
            raise ValueError(f"std without a mean in metrics: {', '.join(sorted(unknown))}")
        return self

    @property
    def setting(self) -> str:
        """``step 0.1, boundaries 100, 150 of 200 epochs``, in the table's own epochs."""
        lr = "" if self.seed_lr is None else f" {self.seed_lr:g}"
        phases = ""
        if self.explore_epochs is not None:
            phases = f"explore {self.explore_epochs} of "
        elif self.boundaries:
            phases = f"boundaries {', '.join(map(str, self.boundaries))} of "
        return f"{self.schedule}{lr}, {phases}{self.epochs} epochs"

    @property
    def shown(self) -> str:
        """What people read: its label, or else its setting."""
        return self.label or self.setting

    @property
    def untrainable(self) -> str:
        """What is missing before it could be trained; empty if nothing is."""
        needed = {"seed_lr": self.seed_lr is None}
        needed["explore_epochs"] = self.schedule == "knee" and self.explore_epochs is None
        needed["boundaries"] = self.schedule == "step" and not self.boundaries
        return " and ".join(name for name, missing in needed.items() if missing)


class ReferenceTable(Spec):
    """A published table that the study's report shows beside its own numbers."""

    table: str = Field(description="as in 'Table 15'")
    section: str = Field(description="as in '5.4'")
    page: int | None = Field(default=None, gt=0)
    runs: int | None = Field(default=None, gt=0, description="runs that each value is a mean over")
    note: str = Field(default="", description="what differs from how knee-tune measures")
    rows: tuple[ReferenceRow, ...] = Field(min_length=1)


class Confirm(Spec):
    """The confirmation of a search's winner.

    The top candidates, and the paper's default, are trained again with fresh random seeds.
    """

    candidates: int = Field(gt=0, le=1000)
    seeds: int = Field(gt=1, le=1000, description="an interval needs two")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """``3:5`` is three candidates with five seeds."""
        if not isinstance(value, str):
            return value
        candidates, colon, seeds = value.partition(":")
        if not (colon and candidates.isdecimal() and seeds.isdecimal()):
            raise ValueError("must be CANDIDATES:SEEDS, as in 3:5")
        return {"candidates": int(candidates), "seeds": int(seeds)}


class StudySpec(Spec):
    """One study as it is kept: presets, study file and what was asked for are already merged.

    ``recipe`` is the task's full recipe, validated and dumped, so that a study can be read where
    its task is not.
    """

    name: StudyName
    description: str = ""
    source: str = Field(default="", description="where the settings are from: paper and section")
    task: str
    preset: str
    own_data: str | None = Field(
        default=None,
        pattern=DATA_NAME,
        description="data that no preset knows: they name experiment and model, not the task",
    )
    recipe: dict[str, Any]
    space: SearchSpace
    trials: int = Field(
        default=20,
        gt=0,
        le=1_000_000,
        description="of the whole study; a grid has all its points unless told",
    )
    target: float | None = Field(
        default=None,
        exclude_if=lambda target: target is None,
        description="a value of the study's metric that ends the search",
    )
    stop_when_flat: bool = Field(
        default=False,
        exclude_if=lambda stops: not stops,
        description="end the search when no point left is expected to be worth its cost; gp only",
    )
    sampler: Sampler = "gp"
    start: Start = Field(
        default="bracket",
        description="what gp and tpe begin with. bracket: seed LRs around the best one, at one "
        "explore fraction",
    )
    centre: PositiveLR | None = Field(
        default=None,
        exclude_if=lambda centre: centre is None,
        description="seed LR that the bracket begins at; None: the recipe's own",
    )
    from_study: StudyName | None = Field(
        default=None,
        exclude_if=lambda study: study is None,
        description="an earlier study of the task: the bracket begins at its best seed LR, and gp "
        "learns from its trials",
    )
    goal: Goal = Field(
        default="best",
        description="best: the best point. ridge: the best fraction at every seed LR, unpruned",
    )
    pruner: Pruner | None = Field(
        default=None,
        description="None: none with gp, which gains nothing by it, and with goal ridge; else knee",
    )
    seed: int = Field(default=1, ge=0, lt=2**31, description="of the sampler and of every trial")
    replicates: int = Field(default=1, gt=0, le=1000, description="random seeds of every trial")
    fuse: bool = Field(
        default=True,
        description="replicates train as one batched model if the task can; an unpruned grid whole",
    )
    confirm: Confirm | None = Field(default=None, description="after the search")
    trunk: TrunkFile | None = Field(
        default=None,
        exclude_if=lambda trunk: trunk is None,
        description="what every run begins with, instead of a fresh model",
    )
    total_runs: int | None = Field(
        default=None,
        ge=FEWEST_RUNS,
        le=1_000_000,
        exclude_if=lambda total: total is None,
        description="whole budgets that are trained for the study, instead of ``trials``: to "
        "search, then to race the best points on fresh random seeds",
    )
    total_steps: int | None = Field(
        default=None,
        gt=0,
        le=10**15,
        exclude_if=lambda total: total is None,
        description="the same, in steps",
    )
    nproc: int = Field(default=1, gt=0, le=1_000_000, description="ranks that train one trial")
    scale: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="of all epochs: the budget's, warmup's and boundaries'",
    )
    compare: ReferenceTable | None = Field(
        default=None,
        description="a table whose every row is trained, instead of a search: ours beside theirs",
    )
    analyses: tuple[Analysis, ...] = Field(
        default=(), description="made of every run of ``compare``"
    )
    reference: tuple[ReferenceTable, ...] = Field(
        default=(), description="published numbers shown beside the study's own"
    )

    @field_validator("pruner")
    @classmethod
    def _ridges_are_not_pruned(cls, pruner: Pruner | None, info: ValidationInfo) -> Pruner | None:
        if info.data.get("goal") == "ridge" and pruner not in (None, "none"):
            raise ValueError("pruning would bias the ridge: use none with goal ridge")
        return pruner

    @field_validator("pruner")
    @classmethod
    def _phases_are_compared_alone(
        cls, pruner: Pruner | None, info: ValidationInfo
    ) -> Pruner | None:
        if info.data.get("recipe", {}).get("phases") and pruner not in (None, "none", "knee"):
            raise ValueError(
                f"{pruner} would compare the losses of different phases (recipe.phases): use knee "
                "or none"
            )
        return pruner

    @field_validator("sampler")
    @classmethod
    def _only_a_process_sees_what_is_flat(cls, sampler: Sampler, info: ValidationInfo) -> Sampler:
        if info.data.get("stop_when_flat") and sampler != "gp":
            raise ValueError(f"{sampler} does not know when a search is flat: use gp")
        return sampler

    @field_validator("total_runs", "total_steps")
    @classmethod
    def _search_and_race(cls, total: int | None, info: ValidationInfo) -> int | None:
        asked = info.data
        if total is None:
            return None
        if asked.get("total_runs") is not None:
            raise ValueError("total_runs says the same in whole runs: leave one of them out")
        if asked.get("sampler") == "grid":
            raise ValueError("a grid trains every point and races none: leave sampler=grid out")
        if asked.get("goal") == "ridge":
            raise ValueError("a ridge needs every seed LR and races none: leave goal=ridge out")
        if asked.get("confirm") is not None:
            raise ValueError("the race confirms the winner: leave confirm out")
        if asked.get("replicates", 1) > 1:
            raise ValueError("a race decides who gets more random seeds: leave replicates out")
        return total

    @field_validator("from_study")
    @classmethod
    def _models_begin_with_a_bracket(cls, study: str | None, info: ValidationInfo) -> str | None:
        sampler, start = info.data.get("sampler", "gp"), info.data.get("start", "bracket")
        if study is not None and (sampler not in ("gp", "tpe") or start != "bracket"):
            raise ValueError(
                f"a search with sampler {sampler} and start {start} has no use for it: it is for "
                "gp and tpe with start bracket"
            )
        return study

    @field_validator("compare")
    @classmethod
    def _rows_can_be_trained(cls, table: ReferenceTable | None) -> ReferenceTable | None:
        for number, row in enumerate(table.rows if table else (), start=1):
            if row.untrainable:
                raise ValueError(
                    f"row {number} ({row.shown}) has no {row.untrainable}: it cannot be trained"
                )
        return table

    @field_validator("analyses")
    @classmethod
    def _of_compared_runs(
        cls, analyses: tuple[Analysis, ...], info: ValidationInfo
    ) -> tuple[Analysis, ...]:
        if analyses and info.data.get("compare") is None:
            raise ValueError("they are made of the runs of compare, and this study has none")
        if len({each.name for each in analyses}) < len(analyses):
            raise ValueError("each can be made once: one is named twice")
        return analyses

    @property
    def subject(self) -> str:
        """What is studied, as experiment and registered model are named: the data, or the task."""
        return self.own_data or task_slug(self.task)

    @property
    def acting_pruner(self) -> Pruner:
        """The pruner that was chosen, or what wins without; a comparison prunes nothing.

        At equal steps pruning does not help ``gp`` (``docs/benchmarks.md``, the whole).
        """
        if self.compare is not None:
            return "none"
        unpruned = self.goal == "ridge" or self.sampler == "gp"
        return self.pruner or ("none" if unpruned else "knee")

    @property
    def replicate_seeds(self) -> tuple[int, ...]:
        """The random seeds that every trial of the search is trained with."""
        return tuple(range(self.seed, self.seed + self.replicates))

    @property
    def confirmation_seeds(self) -> tuple[int, ...]:
        """The random seeds that confirm the winner; empty if none were asked for."""
        first = self.seed + FRESH_SEEDS
        return tuple(range(first, first + (self.confirm.seeds if self.confirm else 0)))

    @property
    def tries_default(self) -> bool:
        """Whether the paper's default is a point of the search, and its first trial.

        A grid is exactly the search space's own, a comparison has no trials, and a trunk from a
        file may be longer than half of the budget.
        """
        return self.sampler != "grid" and self.compare is None and self.trunk is None

    @property
    def seed_lrs(self) -> tuple[float, ...]:
        """The seed LRs that may be tried, ascending.

        ValueError if the search space has none between its bounds.
        """
        default = float(self.recipe["seed_lr"])
        points = self.space.seed_lr.points(default)
        return tuple(sorted({*points, default})) if self.tries_default else points

    @property
    def explore_fractions(self) -> tuple[float, ...]:
        """The explore fractions that may be tried, ascending."""
        points = self.space.explore_fraction.points()
        default = DEFAULT_EXPLORE_FRACTION
        return tuple(sorted({*points, default})) if self.tries_default else points

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what is searched."""
        return ("seed_lr", "explore_fraction", *(["decay"] if self.space.decays else []))

    @property
    def size(self) -> int:
        """The number of different trials."""
        return len(self.seed_lrs) * len(self.explore_fractions) * max(1, len(self.space.decays))

    @property
    def limit(self) -> int | None:
        """Trials after which the search ends; None where something else ends it.

        That is the last point of a grid, or what the whole study may cost.
        """
        if self.races or (self.sampler == "grid" and self.trials >= self.size):
            return None
        return self.trials

    @property
    def races(self) -> bool:
        """Whether the search ends with a race of its best points."""
        return self.total_runs is not None or self.total_steps is not None


R_co = TypeVar("R_co", bound=BaseRecipe, covariant=True)


class ResolvedStudy(StudySpec, Generic[R_co]):
    """A study that can be trained: its recipe is of the task's own class as well."""

    typed_recipe: R_co = Field(exclude=True, repr=False)

    def with_recipe(self, recipe: BaseRecipe) -> Self:
        """Return this study with another recipe."""
        changes = {"typed_recipe": recipe, "recipe": recipe.model_dump(mode="json")}
        return self.model_copy(update=changes)


# Is a point on the edge of the search space, so that a better one may lie beyond?

WIDER = 10**0.5
"""Factor by which a bound of the seed LR moves: half a decade, some points of the grid."""


class Edge(Spec):
    """One parameter at the end of its range."""

    what: str
    """As in ``largest seed LR``."""
    setting: str
    """The setting with which to look beyond, as in ``space.seed_lr.high=0.4``."""


def edges(spec: StudySpec, *, seed_lr: float, explore_fraction: float) -> tuple[Edge, ...]:
    """The edges of the study's space that the point lies on.

    Where nothing lies beyond there is no edge: at an explore fraction of 0, or with less than
    a step left to 1. A parameter with a single value was fixed, so it has no edge either.
    """
    found = []
    ends = _ends(seed_lr, spec.seed_lrs)
    if ends is not None:
        end, inner = ends
        factor = WIDER if end > inner else 1 / WIDER
        listed = spec.space.seed_lr.values and spec.seed_lrs
        beyond = float(f"{end * (end / inner if listed else factor):.3g}")
        found.append(_edge("seed LR", end, inner, beyond, listed))
    ends = _ends(explore_fraction, spec.explore_fractions)
    if ends is not None:
        end, inner = ends
        listed = spec.space.explore_fraction.values and spec.explore_fractions
        step = spec.space.explore_fraction.step or abs(end - inner)
        beyond = round(max(0.0, end + step if end > inner else end - step), 6)
        if end > 0 and beyond < 1:
            found.append(_edge("explore fraction", end, inner, beyond, listed))
    return tuple(found)


def _ends(value: float, points: tuple[float, ...]) -> tuple[float, float] | None:
    """The end of the range that ``value`` is, and the point beside it; None if it is none."""
    if len(points) > 1 and value == points[0]:
        return points[0], points[1]
    if len(points) > 1 and value == points[-1]:
        return points[-1], points[-2]
    return None


def _edge(
    name: str, end: float, inner: float, beyond: float, listed: tuple[float, ...] | None
) -> Edge:
    """Move the bound of a range, or add a point to a list."""
    upwards = end > inner
    field = f"space.{name.lower().replace(' ', '_')}"
    if listed is None:
        setting = f"{field}.{'high' if upwards else 'low'}={beyond:g}"
    else:
        points = sorted({*listed, beyond})
        setting = f"{field}.values=[{', '.join(f'{point:g}' for point in points)}]"
    return Edge(what=f"{'largest' if upwards else 'smallest'} {name}", setting=setting)
