"""From a trial's parameters to the plan of its training run."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from knee_tune.config.recipe import DEFAULT_EXPLORE_FRACTION, BaseRecipe
from knee_tune.config.study import FEWEST_RUNS, ReferenceRow, StudySpec
from knee_tune.errors import UserError
from knee_tune.plans.identity import shared_steps, trunk_key
from knee_tune.plans.plan import Replica, Schedule, TaskFacts, TaskOrder, TrainPlan, TrunkPlan
from knee_tune.records.shown import percent
from knee_tune.schedules import (
    Constant,
    Cosine,
    Decay,
    Exploring,
    InverseSquareRoot,
    Knee,
    Linear,
    OneCycle,
    Phased,
    StepDecay,
)
from knee_tune.schedules.schedule import fitted_knee, fitted_schedule

BASELINES = ("step", "linear", "cosine", "one_cycle", "inverse_sqrt", "constant")
"""The schedules that can be trained beside a study."""


def budget_steps(recipe: BaseRecipe, facts: TaskFacts) -> int:
    """The training budget in steps."""
    return recipe.total_steps(facts.steps_per_epoch)


def total_steps(spec: StudySpec, recipe: BaseRecipe, facts: TaskFacts) -> int | None:
    """Steps that may be trained for the study, all in all; None if nobody has said.

    UserError for fewer than a search and a race need.
    """
    budget = budget_steps(recipe, facts)
    if spec.total_runs is not None:
        return spec.total_runs * budget
    if spec.total_steps is not None and spec.total_steps < FEWEST_RUNS * budget:
        raise UserError(
            f"`total_steps` {spec.total_steps}: a search and a race need {FEWEST_RUNS} runs of "
            f"{budget:,} steps, so {FEWEST_RUNS * budget:,} or more"
        )
    return spec.total_steps


def knee_schedule(
    recipe: BaseRecipe,
    facts: TaskFacts,
    *,
    seed_lr: float,
    explore_fraction: float,
    decay: Decay | None = None,
) -> Knee | Phased:
    """The Knee schedule whose explore phase is ``explore_fraction`` of the budget.

    Of a recipe with phases such a schedule in each. ``decay``: its shape; the recipe's own if None.
    """
    return fitted_schedule(
        seed_lr=seed_lr,
        total_steps=budget_steps(recipe, facts),
        explore_fraction=explore_fraction,
        warmup_steps=recipe.warmup_steps,
        phases=recipe.phases,
        decay=decay or recipe.decay,
        final=recipe.final,
        decay_power=recipe.decay_power,
    )


def check_warmup(recipe: BaseRecipe, facts: TaskFacts) -> None:
    """Raise UserError unless the budget lasts longer than the warmup, and every phase a step."""
    total = budget_steps(recipe, facts)
    _check_phases(recipe, total)
    if recipe.warmup_steps >= total:
        raise UserError(
            f"recipe.warmup_steps={recipe.warmup_steps}: the budget is {total} steps "
            f"(recipe.{recipe.budget_field}={recipe.budget}), so all of it would be warmup; take "
            f"fewer steps of warmup or more {recipe.budget_field}"
        )


def _check_phases(recipe: BaseRecipe, total: int) -> None:
    """Raise UserError where one of the recipe's phases has no step of a budget of ``total``."""
    smallest = min((phase.share for phase in recipe.phases), default=1.0)
    if smallest * total < 1:
        raise UserError(
            f"recipe.phases: the budget is {total} steps, of which a phase of {percent(smallest)} "
            f"has none; take more {recipe.budget_field}"
        )


def distinct_fractions(
    recipe: BaseRecipe, facts: TaskFacts, explore_fractions: Iterable[float]
) -> dict[float, tuple[float, ...]]:
    """The explore fractions that differ in their schedule, each with all that come to the same.

    They do where warmup leaves no room for them, or where the budget has few steps. Of several the
    paper's default stands for all, otherwise the smallest.
    """
    same = defaultdict[Knee | Phased, list[float]](list)
    for fraction in sorted(explore_fractions):
        knee = knee_schedule(recipe, facts, seed_lr=recipe.seed_lr, explore_fraction=fraction)
        same[knee].append(fraction)
    return {
        DEFAULT_EXPLORE_FRACTION if DEFAULT_EXPLORE_FRACTION in each else each[0]: tuple(each)
        for each in same.values()
    }


def twins_in_words(
    recipe: BaseRecipe, facts: TaskFacts, explore_fractions: Iterable[float]
) -> list[str]:
    """A line for every schedule that several of the explore fractions come to."""
    total = budget_steps(recipe, facts)
    unwarmed = recipe.model_copy(update={"warmup_steps": 0})

    def why(same: Iterable[float]) -> str:
        if len(distinct_fractions(unwarmed, facts, same)) > 1:
            return f"{recipe.warmup_steps} of {total} steps are warmup"
        return f"the budget has {total} steps"

    return [
        f"explore {', '.join(map(percent, same))} are one schedule ({why(same)}): trained once, as "
        f"{percent(fraction)}"
        for fraction, same in distinct_fractions(recipe, facts, explore_fractions).items()
        if len(same) > 1
    ]


def baseline_schedule(
    name: str, recipe: BaseRecipe, facts: TaskFacts, *, seed_lr: float
) -> Schedule:
    """Make one of the paper's baselines over the recipe's budget (appendix A).

    The step schedule is section 5.3.2's: a tenth after half of the budget and after three quarters.
    One-cycle and step bring their own start; the others take the recipe's warmup. Budgets of one
    or two steps have fewer boundaries. UserError for one that a recipe with phases has not.
    """
    total = budget_steps(recipe, facts)
    if recipe.phases:
        return phased_schedule(name, recipe, seed_lr=seed_lr, total_steps=total)
    if name == "step":
        boundaries = tuple(sorted({total // 2, total * 3 // 4} - {0}))
        return StepDecay(seed_lr=seed_lr, total_steps=total, boundaries=boundaries)
    warmup = min(recipe.warmup_steps, total)
    return plain_schedule(name, seed_lr=seed_lr, total_steps=total, warmup_steps=warmup)


def plain_schedule(name: str, *, seed_lr: float, total_steps: int, warmup_steps: int) -> Schedule:
    """A schedule that its seed LR, budget and warmup say everything of; one-cycle has its own."""
    if name == "one_cycle":
        return OneCycle(seed_lr=seed_lr, total_steps=total_steps)
    shapes: dict[str, type[Linear | Cosine | InverseSquareRoot | Constant]] = {
        "linear": Linear,
        "cosine": Cosine,
        "inverse_sqrt": InverseSquareRoot,
        "constant": Constant,
    }
    if name not in shapes:
        raise ValueError(f"no baseline schedule is called {name!r}")
    return shapes[name](seed_lr=seed_lr, total_steps=total_steps, warmup_steps=warmup_steps)


def phased_schedule(
    name: str,
    recipe: BaseRecipe,
    *,
    seed_lr: float,
    total_steps: int,
    explore_fraction: float = 0.0,
) -> Phased:
    """A schedule of that name in each of the recipe's phases, with the phase's own warmup.

    Linear decay is a Knee that does not explore. UserError for any that is no Knee.
    """
    if name not in ("knee", "linear"):
        raise UserError(
            f"`schedule` {name}: each of recipe.phases is a Knee or a linear decay; compare with "
            "linear"
        )
    _check_phases(recipe, total_steps)
    knee = name == "knee"
    schedule = fitted_schedule(
        seed_lr=seed_lr,
        total_steps=total_steps,
        explore_fraction=explore_fraction,
        phases=recipe.phases,
        decay=recipe.decay if knee else "linear",
        final=recipe.final if knee else 0.0,
        decay_power=recipe.decay_power,
    )
    assert isinstance(schedule, Phased), "the recipe has phases"
    return schedule


def steps_per_evaluation(recipe: BaseRecipe, facts: TaskFacts) -> int:
    """Steps from one validation to the next."""
    return recipe.steps_per_evaluation(facts.steps_per_epoch)


def train_plan(
    order: TaskOrder,
    recipe: BaseRecipe,
    facts: TaskFacts,
    *,
    schedule: Schedule,
    replicas: Sequence[Replica] = (),
    checkpoint_dir: Path,
) -> TrainPlan:
    """The complete order for one run that shares nothing (see :func:`on_trunk`)."""
    return TrainPlan(
        **dict(order),
        schedule=schedule,
        replicas=tuple(replicas),
        steps_per_evaluation=steps_per_evaluation(recipe, facts),
        facts=facts,
        checkpoint_dir=checkpoint_dir,
    )


def on_trunk(
    plan: TrainPlan,
    recipe: BaseRecipe,
    facts: TaskFacts,
    *,
    trunks: Path,
    explore_fractions: Iterable[float] = (),
    others: Iterable[Schedule] = (),
) -> TrainPlan:
    """Make ``plan`` a branch of its trunk below ``trunks``, if its schedule explores.

    A fused run of several schedules stays as it is: its replicas share trunks among themselves.

    The trunk's state is kept at the knees of all ``explore_fractions``, and of the ``others`` at
    its seed LR, that it passes: there the other branches leave it.
    """
    own = plan.schedule
    if not isinstance(own, Exploring) or any(each.schedule != own for each in plan.replicas):
        return plan
    every = plan.steps_per_evaluation
    key = trunk_key(plan, facts, schedule=own, replicas=plan.replicas, steps_per_evaluation=every)
    knees = {
        knee_schedule(recipe, facts, seed_lr=own.seed_lr, explore_fraction=fraction).knee_step
        for fraction in explore_fractions
    } | {
        other.knee_step
        for other in others
        if isinstance(other, Exploring) and other.seed_lr == own.seed_lr
    }
    steps = shared_steps(own, knees, plan.evaluation_steps(), every=every)
    trunk = TrunkPlan(key=key, folder=trunks / key, checkpoint_steps=steps)
    return plan.model_copy(update={"trunk": trunk})


# The rows of a published table as runs: their schedules, and the order to train them in.

STEP_FACTOR = 0.1
"""What every boundary of the paper's step schedules multiplies the LR by."""


def row_schedule(
    row: ReferenceRow, recipe: BaseRecipe, facts: TaskFacts, *, scale: float = 1.0
) -> Schedule:
    """A row's schedule with all its epochs, and the recipe's warmup, times ``scale``.

    Fractions of an epoch become steps, the nearest. A boundary that comes to no step at all is past
    at once: the LR starts at the next one. UserError if two boundaries come to the same step, or if
    the warmup takes the whole budget or lasts beyond the first boundary.
    """

    def steps(epochs: int) -> int:
        return round(epochs * scale * facts.steps_per_epoch)

    assert row.seed_lr is not None, "a row of a comparison has one"
    total = max(1, steps(row.epochs))
    warmup = round(recipe.warmup_steps * scale)

    def refuse_warmup(beyond: str) -> NoReturn:
        raise UserError(
            f"recipe.warmup_steps={recipe.warmup_steps}: compare: row '{row.shown}': at scale "
            f"{scale:g} its warmup is {warmup} steps, {beyond}; take fewer"
        )

    if recipe.phases:
        explored = (row.explore_epochs or 0) / row.epochs
        return phased_schedule(
            row.schedule,
            recipe,
            seed_lr=row.seed_lr,
            total_steps=total,
            explore_fraction=explored,
        )
    if warmup >= total and row.schedule != "one_cycle":
        refuse_warmup(f"and its whole budget {total}")
    if row.schedule == "knee":
        return fitted_knee(
            seed_lr=row.seed_lr,
            total_steps=total,
            explore_steps=steps(row.explore_epochs or 0),
            warmup_steps=warmup,
            decay=recipe.decay,
            final=recipe.final,
            decay_power=recipe.decay_power,
        )
    if row.schedule != "step":
        return plain_schedule(
            row.schedule, seed_lr=row.seed_lr, total_steps=total, warmup_steps=warmup
        )
    passed = [boundary for boundary in map(steps, row.boundaries) if boundary]
    if any(left == right for left, right in pairwise(passed)):
        raise UserError(
            f"compare: row '{row.shown}': at scale {scale:g} two of its boundaries come to the "
            "same step; use a larger `scale`"
        )
    if passed and warmup > passed[0]:
        refuse_warmup(f"and its first boundary is at step {passed[0]}")
    return StepDecay(
        seed_lr=row.seed_lr * STEP_FACTOR ** (len(row.boundaries) - len(passed)),
        total_steps=total,
        boundaries=tuple(passed),
        factor=STEP_FACTOR,
        warmup_steps=warmup,
    )


class Planned(Protocol):
    """A run that waits for a slot."""

    @property
    def schedule(self) -> Schedule:
        """Its LRs."""
        ...

    @property
    def seed(self) -> int:
        """Its random seed."""
        ...


R = TypeVar("R", bound=Planned)


def in_order(runs: Iterable[R], *, slots: int) -> list[R]:
    """Sort ``runs``: those of one trunk after one another, the longest explore first.

    It leaves the states behind that the others start from. With several ``slots`` as many trunks
    take turns: two runs at a time are of two trunks, as long as there are two.
    """
    trunks = defaultdict[Hashable, list[R]](list)
    for number, run in enumerate(runs):
        trunks[trunk_of(run, alone=number)].append(run)
    groups = [sorted(group, key=_explore_steps, reverse=True) for group in trunks.values()]
    groups.sort(key=lambda group: group[0].seed)
    turns = [groups[first : first + slots] for first in range(0, len(groups), slots)]
    return [run for turn in turns for run in _alternating(turn)]


def trunk_of(run: Planned, *, alone: Hashable) -> Hashable:
    """Return what is equal for runs that may share a trunk; ``alone`` for one that shares none."""
    if isinstance(run.schedule, Exploring):
        return run.seed, run.schedule.seed_lr, run.schedule.warmup_steps
    return alone


def _explore_steps(run: Planned) -> int:
    return run.schedule.knee_step if isinstance(run.schedule, Exploring) else 0


def _alternating(groups: Sequence[Sequence[R]]) -> Iterable[R]:
    """The first of every group, then the second of every group, and so on."""
    return (run for run in chain.from_iterable(zip_longest(*groups)) if run is not None)
