"""A workshop: a task with its recipe, and the worker groups that can train it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from knee_tune.app.home import HeldHome, Home
from knee_tune.app.placement import GroupOptions, placed
from knee_tune.distributed.forkserver import ForkserverRunner
from knee_tune.distributed.protocol import Decision, Done, GroupRunner, Report
from knee_tune.distributed.torchrun import TorchrunRunner
from knee_tune.planning.keys import run_key
from knee_tune.planning.plan import (
    ENTRY,
    AnalysePlan,
    DescribePlan,
    Placement,
    Plan,
    Replica,
    Schedule,
    TaskFacts,
    TaskOrder,
    TestPlan,
    TrainPlan,
)
from knee_tune.planning.planner import budget_steps, on_trunk, steps_per_evaluation, train_plan
from knee_tune.planning.rows import row_schedule
from knee_tune.runs.restarts import run_job
from knee_tune.runs.trainer import Trainer
from knee_tune.runs.trunks import TrunkStore
from knee_tune.specs.analyses import Analysis
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.study import StudySpec
from knee_tune.tasks.registry import TaskEntry, task_entry
from knee_tune.training.fingerprint import TrainingCode

log = logging.getLogger(__name__)

OnLife = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Everything a plan needs besides its schedule."""

    held: HeldHome
    spec: StudySpec
    recipe: Recipe
    options: GroupOptions
    runner: GroupRunner
    trainer: Trainer
    facts: TaskFacts = field(repr=False)
    rows: Sequence[Schedule] = ()
    """What a comparison trains: its table's rows in order; empty for a search."""
    remarks: tuple[str, ...] = ()
    """What people should know of how the recipe was read."""

    @property
    def home(self) -> Home:
        """Where everything is kept."""
        return self.held.home

    def placement(self, slot: int = 0) -> Placement:
        """The devices of a slot."""
        return placed(self.options, self.facts, slot, amp=self.recipe.amp)

    def train_plan(
        self,
        schedule: Schedule,
        *,
        log_key: str,
        seed: int | None = None,
        slot: int = 0,
        replicas: Sequence[Replica] = (),
    ) -> TrainPlan:
        """The order for one run of this task, a branch of its trunk where it has one.

        Its checkpoints lie under its :func:`run_key`: the same run, asked for by any trial, study
        or command of this home, is found again. ``seed``: the study's own if None. With
        ``replicas`` it is a fused run of them, ``schedule`` and ``seed`` being the first one's.
        """
        order = self.order(log_key, seed=seed, slot=slot)
        every = steps_per_evaluation(self.recipe, self.facts)
        key = run_key(
            order, self.facts, schedule=schedule, replicas=replicas, steps_per_evaluation=every
        )
        plan = train_plan(
            order,
            self.recipe,
            self.facts,
            schedule=schedule,
            replicas=replicas,
            checkpoint_dir=self.home.checkpoints / key,
        )
        if not self.options.trunk_cache:
            return plan
        return on_trunk(
            plan,
            self.recipe,
            self.facts,
            trunks=self.home.trunks,
            explore_fractions=() if self.rows else self.spec.explore_fractions,
            others=self.rows,
        )

    def solitary_plan(self, schedule: Schedule, *, log_key: str, checkpoint_dir: Path) -> TrainPlan:
        """The order for one run that shares nothing with any other."""
        return train_plan(
            self.order(log_key),
            self.recipe,
            self.facts,
            schedule=schedule,
            checkpoint_dir=checkpoint_dir,
        )

    def order(self, log_key: str, *, seed: int | None = None, slot: int = 0) -> TaskOrder:
        """What every plan of this task needs; ``seed``: the study's own if None."""
        return _order(self.home, self.spec, self.placement(slot), log_key, seed=seed)

    def test(
        self, weights: Path, *, key: str, slot: int = 0, on_life: OnLife = lambda: None
    ) -> dict[str, float]:
        """Metrics of finished weights on the test split; an error as of ``run`` if it fails."""
        plan = TestPlan(**dict(self.order(key, slot=slot)), weights=weights)
        done = self.run(plan, on_progress=lambda step: on_life())
        return dict(done.result["metrics"])

    def analyse(
        self,
        weights: Path,
        analysis: Analysis,
        *,
        key: str,
        seed: int,
        slot: int = 0,
        on_line: Callable[[str], None],
        on_life: OnLife = lambda: None,
    ) -> dict[str, float]:
        """What an analysis finds of weights trained with that seed; an error as of ``run``.

        The seed may be part of the training data, as where labels are noisy. ``on_line`` is told
        where what was found is less than what was asked for.
        """
        order = self.order(key, seed=seed, slot=slot)
        plan = AnalysePlan(**dict(order), weights=weights, analysis=analysis)
        done = self.run(plan, on_line=on_line, on_progress=lambda step: on_life())
        return dict(done.result["metrics"])

    def run(
        self,
        plan: Plan,
        *,
        on_report: Callable[[Report], Decision] = lambda report: Decision(stop=False),
        on_line: Callable[[str], None] = lambda text: None,
        on_progress: Callable[[int], None] = lambda step: None,
    ) -> Done:
        """Run a plan that is no run of a study, as :func:`run_job` does, while there is a home."""

        def progressed(step: int) -> None:
            self.held.raise_if_gone()
            on_progress(step)

        return run_job(
            self.runner, plan, on_report=on_report, on_line=on_line, on_progress=progressed
        )


@contextmanager
def open_workshop(
    home: Home, spec: StudySpec, recipe: Recipe, options: GroupOptions
) -> Iterator[Workshop]:
    """Make the home if need be, start the runner, look at the task's data; end the runner at last.

    UserError if the home cannot be made, the task's data or libraries are missing, or there are too
    few devices; MachineError if it keeps ending the group that looks. What becomes of the home then
    says :meth:`Home.held`.
    """
    options.check()
    entry = task_entry(spec.task)
    module = entry.task.partition(":")[0]
    runner: GroupRunner
    if options.runner == "torchrun":
        runner = TorchrunRunner(
            ENTRY, options.launcher, nnodes=options.nnodes, address=options.address
        )
    else:
        runner = ForkserverRunner(ENTRY, preload=(ENTRY.partition(":")[0], module))
    order = _order(home, spec, Placement(world_size=options.nproc), "describe")
    with closing(runner), home.held(logs=order.log_dir) as held:
        home.sweep()  # while the runner warms up
        facts = _facts(runner, DescribePlan(**dict(order)), entry)
        limit = options.trunk_cache
        table = spec.compare.rows if spec.compare else ()
        budget, of = budget_steps(recipe, facts), "the budget"
        if table:  # before its scale, which a row has for its warmup too
            budget = min(row.epochs for row in table) * facts.steps_per_epoch
            of = "the smallest budget of its rows, which share trunks"
        settled = recipe.with_warmup_of(budget)
        remark = f"warmup: {recipe.warmup} of {of} ({budget:,} steps): {settled.warmup_steps} steps"
        yield Workshop(
            held=held,
            spec=spec.model_copy(update={"recipe": settled.model_dump(mode="json")}),
            recipe=settled,
            remarks=(remark,) if recipe.warmup else (),
            options=options,
            runner=runner,
            trainer=Trainer(
                runner,
                trunks=TrunkStore(home.trunks, limit=limit) if limit else None,
                on_life=held.raise_if_gone,
            ),
            facts=facts,
            rows=[row_schedule(row, settled, facts, scale=spec.scale) for row in table],
        )


def _facts(runner: GroupRunner, plan: DescribePlan, entry: TaskEntry) -> TaskFacts:
    """What the ranks find, with the fingerprint of the code, which is read while they start."""
    task, recipe = (reference.partition(":")[0] for reference in (entry.task, entry.recipe))
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(TrainingCode, task, recipe)
        done = run_job(runner, plan, on_line=lambda text: log.warning("%s", text))
        facts = TaskFacts.model_validate(done.result)
    code = reading.result()
    code.follow(facts.modules)
    return facts.model_copy(update={"code": code.fingerprint})


def _order(
    home: Home, spec: StudySpec, placement: Placement, log_key: str, *, seed: int | None = None
) -> TaskOrder:
    return TaskOrder(
        task=spec.task,
        recipe=spec.recipe,
        seed=spec.seed if seed is None else seed,
        data_dir=home.data,
        placement=placement,
        log_dir=home.logs(spec.name) / log_key,
    )
