"""A recipe: the fixed training settings of a task (budget, batch, optimizer, warmup)."""

import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from knee_tune.schedules.decays import DECAYS, DEFAULT_POWER, Decay
from knee_tune.schedules.schedule import LONGEST_RUN, warmup_steps_of

# The base of every value that crosses a boundary: frozen, typed, unknown keys refused.


class Spec(BaseModel):
    """A frozen pydantic model that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# The search space: which seed LRs, explore fractions and shapes of the decay a study may try.
#
# The first two are grids, because a point must recur: two trials share a trunk only if their seed
# LR is the same number.

DEFAULT_EXPLORE_FRACTION = 0.5
"""The paper's fixed choice when nothing is tuned (section 5.2, table 5)."""

DEFAULT_DECAY: Decay = "linear"
"""The paper's, of every table of it."""

DEFAULT_PER_DECADE = 8

MOST_POINTS = 10_000
"""Of a search space: samplers and reports look at every one of them."""

SMALLEST_LR, LARGEST_LR = 1e-12, 1e12
"""Between them, products and ratios of LRs are finite; nothing learns beyond."""


def _not_tiny(lr: float) -> float:
    if lr < SMALLEST_LR:
        raise ValueError(f"must be {SMALLEST_LR:g} or more")
    return lr


PositiveLR = Annotated[float, Field(gt=0, le=LARGEST_LR), AfterValidator(_not_tiny)]

Fraction = Annotated[float, Field(ge=0, lt=1)]


class SeedLRSpace(Spec):
    """Seed LRs, either ``{low, high, per_decade}`` or ``{values}``."""

    low: PositiveLR | None = Field(default=None, description="smallest seed LR")
    high: PositiveLR | None = Field(default=None, description="largest seed LR")
    per_decade: int | None = Field(
        default=None, ge=1, le=50, description="points per factor of ten (8 if not given)"
    )
    values: tuple[PositiveLR, ...] | None = Field(
        default=None, min_length=1, description="the very seed LRs"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        _check_form(
            self.values, low=self.low, high=self.high, extra={"per_decade": self.per_decade}
        )
        return self

    def points(self, anchor: float) -> tuple[float, ...]:
        """The seed LRs, ascending.

        The log grid is anchored at ``anchor`` (the recipe's own seed LR): its points are
        ``anchor * 10 ** (i / per_decade)`` within low..high, rounded to three significant digits so
        that they can be read and typed again. So the bounds themselves are points only where they
        lie on that grid. ValueError if none lies between them.
        """
        if self.values is not None:
            return self.values
        assert self.low is not None, "_one_form has seen to it"
        assert self.high is not None
        per_decade = self.per_decade or DEFAULT_PER_DECADE
        first = math.floor(per_decade * math.log10(self.low / anchor))
        last = math.ceil(per_decade * math.log10(self.high / anchor))
        grid = (
            float(f"{anchor * 10 ** (i / per_decade):.3g}") if i else anchor
            for i in range(first, last + 1)
        )
        points = sorted({lr for lr in grid if self.low <= lr <= self.high})
        if not points:
            raise ValueError(
                f"no point of the grid lies between low and high; with per_decade={per_decade} "
                f"its points are {anchor:g} * 10 ** (i / {per_decade})"
            )
        return tuple(points)


class ExploreFractionSpace(Spec):
    """Explore fractions, either ``{low, high, step}`` or ``{values}``."""

    low: Fraction | None = Field(default=None, description="smallest explore fraction")
    high: Fraction | None = Field(default=None, description="largest explore fraction")
    step: float | None = Field(default=None, gt=0, lt=1, description="distance of two points")
    values: tuple[Fraction, ...] | None = Field(
        default=None, min_length=1, description="the very explore fractions"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        _check_form(self.values, low=self.low, high=self.high, step=self.step)
        return self

    def points(self) -> tuple[float, ...]:
        """The explore fractions, ascending."""
        if self.values is not None:
            return self.values
        assert self.low is not None, "_one_form has seen to it"
        assert self.step is not None
        return tuple(round(self.low + i * self.step, 6) for i in range(self.count))

    @property
    def count(self) -> int:
        """The number of :meth:`points`, told without making them."""
        if self.values is not None:
            return len(self.values)
        assert self.low is not None, "_one_form has seen to it"
        assert self.high is not None
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1


class DecaySpace(Spec):
    """Shapes of the decay, ``{values}``: all of them leave the same trunks."""

    values: tuple[Decay, ...] = Field(min_length=2, description="linear and others")

    @field_validator("values")
    @classmethod
    def _linear_and_others(cls, values: tuple[Decay, ...]) -> tuple[Decay, ...]:
        if len({*values}) < len(values):
            raise ValueError("each one once")
        if DEFAULT_DECAY not in values:
            raise ValueError(f"{DEFAULT_DECAY}, the paper's, must be among them")
        return tuple(decay for decay in DECAYS if decay in values)


SearchedDecay = Annotated[
    Decay | None,
    Field(
        exclude_if=lambda decay: decay is None,
        description="shape of the decay, where several are searched; None elsewhere",
    ),
]


class SearchSpace(Spec):
    """The seed LRs, explore fractions and shapes of the decay that a study may try."""

    seed_lr: SeedLRSpace
    explore_fraction: ExploreFractionSpace
    decay: DecaySpace | None = Field(
        default=None,
        exclude_if=lambda decay: decay is None,
        description="None: the recipe's decay alone",
    )

    @property
    def decays(self) -> tuple[Decay, ...]:
        """The shapes that are searched; empty if that is no question of the study."""
        return self.decay.values if self.decay else ()

    def problems(self, anchor: float, *, with_default: bool) -> Iterator[tuple[str, str]]:
        """Yield what keeps the space from being searched: the field, and what is wrong with it.

        It needs points, :data:`MOST_POINTS` at most, and points that differ: one schedule under two
        names would be searched twice. ``anchor`` is the recipe's own seed LR; ``with_default``: the
        paper's default is a point besides the space's own. Studies that are kept are not asked.
        """
        try:
            seed_lrs = self.seed_lr.points(anchor)
        except ValueError as error:
            yield "seed_lr", str(error)
            return
        count, shapes = self.explore_fraction.count, max(1, len(self.decays))
        if len(seed_lrs) * count * shapes > MOST_POINTS:
            times = f" x {shapes} decays" if self.decays else ""
            yield (
                "seed_lr" if len(seed_lrs) > count else "explore_fraction",
                f"{len(seed_lrs):,} seed LRs x {count:,} explore fractions{times} are more than "
                f"{MOST_POINTS:,} points; use fewer values or a larger distance",
            )
            return
        fractions = self.explore_fraction.points()
        if alike := alike_points([*seed_lrs, *([anchor] if with_default else [])]):
            yield "seed_lr", alike
        if alike := alike_points(
            [*fractions, *([DEFAULT_EXPLORE_FRACTION] if with_default else [])]
        ):
            yield "explore_fraction", alike


def alike_points(points: Iterable[float]) -> str:
    """Name two points that differ by less than a schedule can show; empty if none do."""
    for left, right in pairwise(sorted({*points})):
        if math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-15):
            return f"{left!r} and {right!r} are the same point; give one of them"
    return ""


def _check_form(
    values: tuple[float, ...] | None,
    *,
    extra: dict[str, float | None] | None = None,
    **required: float | None,
) -> None:
    """Raise ValueError unless the points are given in exactly one of the two forms."""
    names = [*required, *(extra or {})]
    given = [name for name, number in {**required, **(extra or {})}.items() if number is not None]
    if values is not None:
        if given:
            raise ValueError(f"give either values or {', '.join(names)}, not both")
        if any(left >= right for left, right in zip(values, values[1:], strict=False)):
            raise ValueError("values must ascend, each one once")
        return
    missing = [name for name in required if name not in given]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; give {', '.join(names)}, or values")
    low, high = required["low"], required["high"]
    if low is not None and high is not None and low >= high:
        raise ValueError(f"low must be less than high, got low={low:g}, high={high:g}")


Direction = Literal["minimize", "maximize"]

MOST_EVALUATIONS = 1_000_000
"""Of a run, and so the most epochs: plans and records list every one of them."""

Epochs = Annotated[int, Field(gt=0, le=MOST_EVALUATIONS, description="training budget, in epochs")]

DATA_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a prepared set may be called: it names folders, studies and models."""


def task_slug(task: str) -> str:
    """What studies, models and folders of a task are called: its name, or that of its class.

    ``./my_task.py:MyTask`` becomes ``my-task``.
    """
    if ":" not in task:
        return task
    words = re.sub(
        r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", "-", task.rpartition(":")[2]
    )
    return re.sub(r"[^a-z0-9-]", "", words.lower()).strip("-")[:48] or "task"


Beta = Annotated[float, Field(ge=0, lt=1)]

MOST_AVERAGED = 100
"""Weights that are averaged, at most: all of them are in every checkpoint."""


def _known_keep(keep: str) -> str:
    if keep not in ("best", "last") and not 2 <= averaged(keep) <= MOST_AVERAGED:
        raise ValueError(f"must be best, last, or average-2 to average-{MOST_AVERAGED}")
    return keep


def averaged(keep: str) -> int:
    """Number of evaluations whose weights are averaged: 5 of ``average-5``; 0 if none are."""
    found = re.fullmatch(r"average-([1-9][0-9]{0,2})", keep)
    return int(found[1]) if found else 0


Keep = Annotated[str, AfterValidator(_known_keep)]
"""Weights of a run that count: of its ``best`` or ``last`` evaluation, or the mean of the weights
of the last N, ``average-N``."""


class Metric(Spec):
    """A named number of an evaluation and the direction in which it improves."""

    name: str
    direction: Direction
    percent: bool = Field(default=False, description="measured in percent, 0 to 100")

    def better(self, new: float, old: float) -> bool:
        """Whether ``new`` is strictly better than ``old``."""
        return new < old if self.direction == "minimize" else new > old


class Optimizer(Spec):
    """An optimizer; its LR is written by the training loop at every step.

    ``lamb`` and ``lion`` are timm's (the extra ``optimizers``), all others torch's. ``muon``
    updates matrices, and AdamW everything else: embeddings, biases, norms, convolutions.
    """

    name: Literal["sgd", "adam", "adamw", "radam", "nadam", "adafactor", "lamb", "lion", "muon"]
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD and Muon (there often 0.95)")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.999), description="Adam family, LAMB, Lion (there often 0.9, 0.99)"
    )
    eps: float = Field(default=1e-8, gt=0, description="Adam family, LAMB (there often 1e-6)")
    weight_decay: float = Field(default=0.0, ge=0)
    # Not stored unless it is chosen: runs of before keep their identity.
    weight_decay_on: Literal["all", "matrices"] = Field(
        default="all",
        exclude_if=lambda chosen: chosen == "all",
        description="matrices: not on biases and norms, nor any other vector",
    )


class Phase(Spec):
    """A part of the budget with a Knee schedule of its own; tasks add what else it changes."""

    share: float = Field(gt=0, lt=1, description="of the budget; those of all phases make 1")
    lr_factor: float = Field(
        default=1.0, gt=0, le=1e6, description="its LR while it explores, over the seed LR"
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="linear, as a share of its steps")


class BaseRecipe(Spec):
    """What the engine asks of any recipe: of a task's own, and of a training script's.

    The study optimises one metric, and watches one in the learning curve: trials are pruned on it
    and the best checkpoint is chosen by it.
    """

    counted: ClassVar[str] = "examples"
    """What its data consists of, as people count it."""

    seed_lr: PositiveLR = Field(description="the paper's default seed LR for this task")
    warmup_steps: int = Field(default=0, ge=0, description="linear warmup, in steps")
    # Never stored: whoever opens a study makes steps of it, and from then on there are only those.
    warmup: str | None = Field(
        default=None,
        exclude=True,
        description="linear warmup as a share of the budget, as in 5%; instead of warmup_steps",
    )
    # Not stored where it is the paper's: recipes that were kept before there was a choice say so.
    decay: Decay = Field(
        default=DEFAULT_DECAY,
        exclude_if=lambda decay: decay == DEFAULT_DECAY,
        description="shape of the decay",
    )
    final: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        exclude_if=lambda final: final == 0,
        description="LR of the last step, as a fraction of the seed LR",
    )
    decay_power: float = Field(
        default=DEFAULT_POWER,
        gt=0,
        exclude_if=lambda power: power == DEFAULT_POWER,
        description="exponent of the decay called power",
    )
    phases: tuple[Phase, ...] = Field(
        default=(),
        exclude_if=lambda phases: not phases,
        description="Knee schedules behind each other; the searched explore fraction is of each",
    )
    amp: bool = Field(default=False, description="bf16 autocast on a GPU; a CPU stays in float32")
    keep: Keep = Field(
        default="last", description="which weights a trial is judged by and registered with"
    )
    objective: str = Field(description="the metric that the study optimises")

    @property
    @abstractmethod
    def budget_field(self) -> str:
        """The field that says how long is trained."""

    @property
    @abstractmethod
    def budget_unit(self) -> str:
        """Its unit, short: for names of studies."""

    @property
    @abstractmethod
    def objective_metric(self) -> Metric:
        """The metric that the study optimises, named as evaluations report it (``valid_bleu``)."""

    @property
    @abstractmethod
    def watched_metric(self) -> Metric:
        """The metric of the learning curve, named as evaluations report it (``valid_ppl``)."""

    @property
    def subject(self) -> str | None:
        """What studies and models are named after in place of the task, if anything."""
        return None

    @property
    def percents(self) -> tuple[str, ...]:
        """Metrics measured in percent, without their split."""
        return ()

    @property
    def measures(self) -> dict[str, str]:
        """How a metric (without its split) is measured, where numbers of that name differ."""
        return {}

    @property
    def budget(self) -> int:
        """The training budget, counted in :attr:`budget_unit`."""
        return int(getattr(self, self.budget_field))

    @property
    def budget_name(self) -> str:
        """The budget as names of studies have it: ``30ep``."""
        return f"{self.budget}{self.budget_unit}"

    def with_budget(self, budget: int) -> Self:
        """Return this recipe with another :attr:`budget`."""
        return self.model_copy(update={self.budget_field: budget})

    @abstractmethod
    def total_steps(self, steps_per_epoch: int) -> int:
        """The training budget in steps."""

    @abstractmethod
    def steps_per_evaluation(self, steps_per_epoch: int) -> int:
        """Steps from one evaluation to the next."""

    @field_validator("warmup")
    @classmethod
    def _warmup_is_a_share(cls, warmup: str | None) -> str | None:
        if warmup is not None and not re.fullmatch(r"\d{1,2}(\.\d+)?%", warmup):
            raise ValueError("must be a share of the budget below 100%, as in 5%")
        return warmup

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup is not None and self.warmup_steps:
            raise ValueError("warmup and warmup_steps: give one of them, not both")
        return self

    @model_validator(mode="after")
    def _power_has_a_use(self) -> Self:
        if self.decay_power != DEFAULT_POWER and self.decay != "power":
            raise ValueError(f"decay_power: only decay power has one, this is {self.decay}")
        return self

    @model_validator(mode="after")
    def _phases_make_a_whole(self) -> Self:
        if not self.phases:
            return self
        shares = sum(phase.share for phase in self.phases)
        if not math.isclose(shares, 1, rel_tol=1e-6):
            raise ValueError(f"phases: their shares must make 1, not {shares:g}")
        if self.warmup is not None or self.warmup_steps:
            raise ValueError("phases: each has its own warmup; use warmup_steps=0 beside them")
        return self

    def with_warmup_of(self, budget: int) -> Self:
        """Return this recipe with its warmup in steps, should it be a share of a ``budget``."""
        if self.warmup is None:
            return self
        share = float(self.warmup.removesuffix("%")) / 100
        steps = warmup_steps_of(share, budget)
        return self.model_copy(update={"warmup": None, "warmup_steps": steps})


class Recipe(BaseRecipe):
    """The settings of every task; one adds those of its model and data in a subclass.

    ``metrics`` names every number the task's evaluations return. ``watched`` is the metric of
    the learning curve. The study optimises ``objective``, which may be a dearer metric of the
    final evaluation.
    """

    own_unit: ClassVar[str] = "ep"
    """Unit of a budget in epochs, short: ``steps`` where an epoch is one."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    watched: ClassVar[str] = ""

    epochs: Epochs
    # Not stored unless it is chosen: recipes that were kept before count epochs.
    steps: int | None = Field(
        default=None,
        gt=0,
        le=LONGEST_RUN,
        exclude_if=lambda steps: steps is None,
        description="training budget, in steps, instead of the epochs",
    )
    optimizer: Optimizer
    clip_norm: float | None = Field(default=None, gt=0, description="gradient norm limit")
    accumulate: int = Field(default=1, gt=0, description="micro-batches per step and rank")
    evaluations_per_epoch: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _objective_is_a_metric(self) -> Self:
        names = [metric.name for metric in self.metrics]
        if self.metrics and self.objective not in names:
            raise ValueError(f"objective must be one of {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _evaluations_can_be_listed(self) -> Self:
        if self.epochs * self.evaluations_per_epoch > MOST_EVALUATIONS:
            raise ValueError(
                f"epochs={self.epochs} times evaluations_per_epoch={self.evaluations_per_epoch} "
                f"are more than {MOST_EVALUATIONS:,} evaluations; use fewer"
            )
        return self

    @property
    def budget_field(self) -> str:
        """See :class:`BaseRecipe`."""
        return "epochs" if self.steps is None else "steps"

    @property
    def budget_unit(self) -> str:
        """See :class:`BaseRecipe`."""
        return self.own_unit if self.steps is None else "steps"

    def metric(self, name: str) -> Metric:
        """The metric called ``name``; KeyError if the task has none of that name."""
        return {metric.name: metric for metric in self.metrics}[name]

    @property
    def objective_metric(self) -> Metric:
        """See :class:`BaseRecipe`."""
        return self._validated(self.objective)

    @property
    def watched_metric(self) -> Metric:
        """See :class:`BaseRecipe`."""
        return self._validated(self.watched)

    def _validated(self, name: str) -> Metric:
        return self.metric(name).model_copy(update={"name": f"valid_{name}"})

    @property
    def percents(self) -> tuple[str, ...]:
        """See :class:`BaseRecipe`."""
        return tuple(metric.name for metric in self.metrics if metric.percent)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that training imports besides the task's, once for all ranks."""
        return ()

    def total_steps(self, steps_per_epoch: int) -> int:
        """See :class:`BaseRecipe`."""
        return self.steps or self.epochs * steps_per_epoch

    def steps_per_evaluation(self, steps_per_epoch: int) -> int:
        """See :class:`BaseRecipe`."""
        every = max(1, steps_per_epoch // self.evaluations_per_epoch)
        return max(every, (self.steps or 0) // MOST_EVALUATIONS)


class SimpleRecipe(Recipe):
    """The settings of a :class:`~knee_tune.SimpleTask`; one adds its own in a subclass."""

    epochs: Epochs = 10
    seed_lr: PositiveLR = Field(default=1e-3, description="where the search is anchored")
    optimizer: Optimizer = Optimizer(name="adamw", weight_decay=0.01)
    batch_size: int = Field(default=32, gt=0, description="examples per step, all ranks")
    workers: int = Field(default=0, ge=0, description="processes per rank that read data")
    # Whoever makes a task's recipe of it puts the watched metric here.
    objective: str = Field(default="", description="the study's metric; by default the watched one")
