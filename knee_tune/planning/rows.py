"""The rows of a published table as runs: their schedules, and the order to train them in."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain, pairwise, zip_longest
from typing import NoReturn, Protocol, TypeVar

from knee_tune.errors import UserError
from knee_tune.planning.plan import Schedule, TaskFacts
from knee_tune.planning.planner import fitted_knee, plain_schedule
from knee_tune.schedules import Exploring, StepDecay
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.study import ReferenceRow

STEP_FACTOR = 0.1
"""What every boundary of the paper's step schedules multiplies the LR by."""


def row_schedule(
    row: ReferenceRow, recipe: Recipe, facts: TaskFacts, *, scale: float = 1.0
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

    if warmup >= total and row.schedule != "one_cycle":
        refuse_warmup(f"and its whole budget {total}")
    if row.schedule == "knee":
        return fitted_knee(
            seed_lr=row.seed_lr,
            total_steps=total,
            explore_steps=steps(row.explore_epochs or 0),
            warmup_steps=warmup,
        )
    if row.schedule != "step":
        return plain_schedule(
            row.schedule, seed_lr=row.seed_lr, total_steps=total, warmup_steps=warmup
        )
    passed = [boundary for boundary in map(steps, row.boundaries) if boundary]
    if any(left == right for left, right in pairwise(passed)):
        raise UserError(
            f"compare: row '{row.shown}': at scale {scale:g} two of its boundaries come to the "
            "same step; use a larger --scale"
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
    """``runs`` so that those of one trunk come after one another, the longest explore first.

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
    """Equal for runs of a study that may share a trunk; ``alone`` for one that shares none."""
    if isinstance(run.schedule, Exploring):
        return run.seed, run.schedule.seed_lr, run.schedule.warmup_steps
    return alone


def _explore_steps(run: Planned) -> int:
    return run.schedule.knee_step if isinstance(run.schedule, Exploring) else 0


def _alternating(groups: Sequence[Sequence[R]]) -> Iterable[R]:
    """The first of every group, then the second of every group, and so on."""
    return (run for run in chain.from_iterable(zip_longest(*groups)) if run is not None)
