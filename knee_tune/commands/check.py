"""``knee-tune check``: is a training exactly resumable, and if not, what differs first?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from knee_tune.commands.home import Home
from knee_tune.commands.opened import interruptible, resolve_asked
from knee_tune.commands.script import look_at_script
from knee_tune.commands.workers import GroupOptions, Looked, look_at, placed
from knee_tune.config.recipe import BaseRecipe, Spec
from knee_tune.config.study import ResolvedStudy
from knee_tune.errors import MachineError, UserError
from knee_tune.leftovers import scratch
from knee_tune.plans.plan import SCRIPT, TaskOrder, TrainPlan, TrunkPlan
from knee_tune.plans.planner import budget_steps
from knee_tune.runs.trainer import run_job
from knee_tune.schedules.schedule import fitted_knee
from knee_tune.scripts.differences import Difference, Notes, first_difference, read_notes
from knee_tune.workers.protocol import Callbacks, Decision, GroupRunner, Report

STEPS = 40
"""Steps of a check, unless told or the script has fewer."""

EVALUATIONS = 4
"""Of each of its runs, at least."""

FOLDER = "knee-tune-check-"
"""How the folder begins in which a check works, where temporary files go."""


class Comparison(Spec):
    """Two runs, step by step."""

    what: str = Field(description="how the other one was trained")
    first_step: int
    last_step: int
    difference: Difference | None = None
    advice: str = Field(default="", description="what to do about it")


class Checked(Spec):
    """What came of a check."""

    script: str = Field(description="or the task")
    nproc: int
    steps: int
    cut: int
    comparisons: tuple[Comparison, ...]

    @property
    def exact(self) -> bool:
        """Whether a run that goes on, or branches, has the bits of an uninterrupted one."""
        return all(each.difference is None for each in self.comparisons)


def check(
    script: Path | None,
    arguments: Sequence[str],
    options: GroupOptions,
    *,
    steps: int | None = None,
    cut: int | None = None,
    task: str | None = None,
    preset: str | None = None,
    settings: Sequence[str] = (),
    data: Path | None = None,
    on_comparison: Callable[[Comparison], None] = lambda _: None,
) -> Checked:
    """Train a script or a task a few times for a few steps, and compare; nothing is left behind.

    ``cut``: the step after which runs go on; no round one unless told, so likely in the middle of
    an epoch. It ends with the first comparison that finds a difference. ``preset`` and
    ``settings``: of a ``task``; ``data``: where its prepared data lie. UserError for what has to be
    fixed before it can be trained at all.
    """
    with interruptible(), scratch(FOLDER) as (folder, _):
        home = Home(folder / "home", prepared=data)
        looking: AbstractContextManager[tuple[ResolvedStudy[BaseRecipe], Looked]]
        if script is not None:
            looking = look_at_script(
                home, script, arguments, options, steps=steps or STEPS, nproc=options.nproc
            )
        else:
            looking = _look_at_task(home, options, task=task, preset=preset, settings=settings)
        try:
            with looking as (spec, looked):
                total, every, cut = _sizes(looked.joined, steps=steps, cut=cut)
                sizes = {"steps": total, "evaluate_every": every} if looked.joined else {}
                order = TaskOrder(
                    task=spec.task,
                    recipe=spec.recipe | sizes,
                    seed=spec.seed,
                    data_dir=home.data,
                    placement=placed(options, looked.facts, 0, amp=False),
                    log_dir=folder,
                )
                runs = _Runs(
                    looked.runner, order, spec.typed_recipe, total=total, every=every, cut=cut
                )
                comparisons = []
                for comparison in runs.comparisons():
                    comparisons.append(comparison)
                    on_comparison(comparison)
                    if comparison.difference:
                        break
        except (UserError, MachineError) as error:
            raise type(error)(_without_log(str(error), folder)) from error
    return Checked(
        script=str(script or spec.task),
        nproc=options.nproc,
        steps=total,
        cut=cut,
        comparisons=tuple(comparisons),
    )


@contextmanager
def _look_at_task(
    home: Home, options: GroupOptions, **asked: Any
) -> Iterator[tuple[ResolvedStudy[BaseRecipe], Looked]]:
    """A task's study and what it is trained with; its workers have looked at it."""
    spec = resolve_asked(**asked)
    with look_at(home, spec.task, spec.recipe, options, logs=spec.name) as looked:
        recipe = spec.typed_recipe
        yield spec.with_recipe(recipe.with_warmup_of(budget_steps(recipe, looked.facts))), looked


def _sizes(
    joined: Mapping[str, Any] | None, *, steps: int | None, cut: int | None
) -> tuple[int, int, int]:
    """Steps of a run, from one evaluation to the next, and up to the cut; of a task joined=None."""
    joined = joined or {"steps": None, "evaluate_every": None}
    total = steps or min(STEPS, joined["steps"] or STEPS)
    if total < 2:
        raise UserError(f"`steps` {total}: a run of one step cannot be cut; train more")
    every = max(1, min(joined["evaluate_every"] or total, total // EVALUATIONS))
    cut = cut or max(1, total * 3 // 7)
    if cut > total - every:
        raise UserError(
            f"`cut` {cut}: of `steps` {total} it can be {total - every} at most, for an evaluation "
            "has to follow"
        )
    return total, every, cut


def _without_log(text: str, folder: Path) -> str:
    """An error without the place of a log that goes with ``folder``."""
    said, _, log = text.rpartition("; its log: ")
    return said if said and log.startswith(str(folder)) else text


class _Runs:
    """The runs of one check. All have one seed LR and seed, so all ought to have the same bits up
    to their knees.
    """

    def __init__(
        self,
        runner: GroupRunner,
        order: TaskOrder,
        recipe: BaseRecipe,
        *,
        total: int,
        every: int,
        cut: int,
    ) -> None:
        self._runner, self._order, self._recipe = runner, order, recipe
        self._total, self._every, self._cut = total, every, cut
        self._knee = (cut + self._total) // 2
        self._folder = order.log_dir

    def comparisons(self) -> Iterator[Comparison]:
        """Train, and yield how each run compares to the uninterrupted one."""
        cut, every_step = self._cut, range(1, self._total + 1)
        whole = self._train("whole", knee=self._knee)
        again = self._train("again", knee=self._knee, trunk="again")
        yield self._compare("two runs from the start", whole, again, every_step)
        resumed = self._train("resumed", knee=self._knee, trunk="again")
        yield self._compare(
            f"resumed after step {cut}", whole, resumed, every_step[cut:], restarted=True
        )
        trunk = self._train("longer", knee=self._total, trunk="longer", stops=True)
        branch = self._train("branch", knee=self._knee, trunk="longer")
        both = [
            {**before, **after}  # what the trunk trained beyond the cut does not count
            for before, after in zip(trunk, branch, strict=True)
        ]
        what = f"branched after step {cut} from a trunk that explores longer"
        yield self._compare(what, whole, both, every_step, restarted=True)

    def _train(
        self, name: str, *, knee: int, trunk: str | None = None, stops: bool = False
    ) -> Sequence[Notes]:
        """Train one run; the notes of its ranks. UserError if it has no end that compares.

        It starts from the checkpoint in the folder ``trunk``, or leaves one there at the cut.
        ``stops``: it ends with the evaluation after the cut.
        """
        folder = self._folder / name
        folder.mkdir()
        shared = self._folder / f"trunk-of-{trunk}"
        starts = trunk is not None and shared.is_dir()
        warmup = min(self._recipe.warmup_steps, self._cut)
        plan = TrainPlan(
            **dict(self._order) | {"log_dir": folder / "log"},
            schedule=fitted_knee(
                seed_lr=self._recipe.seed_lr,
                total_steps=self._total,
                warmup_steps=warmup,
                explore_steps=knee - warmup,
            ),
            steps_per_evaluation=self._every,
            checkpoint_dir=folder / "run",
            trunk=(
                TrunkPlan(key=trunk, folder=shared, checkpoint_steps=(self._cut,))
                if trunk
                else None
            ),
            watched=True,
        )
        said: list[str] = []

        def heard(report: Report) -> Decision:
            return Decision(stop=stops and report.step >= self._cut)

        done = run_job(self._runner, plan, Callbacks(on_report=heard, on_line=said.append))
        if done.state == "diverged":
            raise UserError(
                f"step {done.step}: {done.reason}; nothing can be compared, so "
                f"{'give join' if self._order.task == SCRIPT else 'name'} a lower seed_lr"
            )
        if starts and done.first_step != self._cut:
            raise MachineError(
                f"the state after step {self._cut} was not kept: {'; '.join(said) or 'try again'}"
            )
        return read_notes(plan.log_dir, ranks=plan.placement.world_size)

    def _compare(
        self,
        what: str,
        one: Sequence[Notes],
        other: Sequence[Notes],
        steps: range,
        *,
        restarted: bool = False,
    ) -> Comparison:
        of_task = self._order.task != SCRIPT
        difference = first_difference(one, other, steps=steps, of_task=of_task)
        return Comparison(
            what=what,
            first_step=steps[0],
            last_step=steps[-1],
            difference=difference,
            advice=difference.advice(restarted=restarted, ranks=len(one)) if difference else "",
        )
