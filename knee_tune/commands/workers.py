"""A task with its recipe, and the worker groups that can train it."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from knee_tune.commands.home import HeldHome, Home
from knee_tune.config.recipe import BaseRecipe
from knee_tune.config.study import Analysis, ResolvedStudy, StudySpec, TrunkFile
from knee_tune.errors import UserError
from knee_tune.plans.identity import run_key
from knee_tune.plans.plan import (
    ENTRY,
    SCRIPT,
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
from knee_tune.plans.planner import (
    budget_steps,
    on_trunk,
    row_schedule,
    steps_per_evaluation,
    train_plan,
)
from knee_tune.runs.object_store import ObjectStore, open_store
from knee_tune.runs.sharing import Sharing
from knee_tune.runs.trainer import Trainer, run_job
from knee_tune.runs.trunks import TrunkStore
from knee_tune.schedules import Exploring
from knee_tune.scripts.imports import installed_imports
from knee_tune.scripts.recipe import JOINED
from knee_tune.study.locks import take_claim
from knee_tune.tasks.registry import TaskEntry, task_entry
from knee_tune.tracking import EXIT_PATIENCE
from knee_tune.training.fingerprint import TrainingCode
from knee_tune.workers.cores import usable_cores
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.protocol import QUIET, Callbacks, Done, GroupRunner
from knee_tune.workers.ray_runner import RayRunner
from knee_tune.workers.rendezvous import own_address
from knee_tune.workers.torchrun import TorchrunRunner

Device = Literal["auto", "cpu", "cuda"]

PROCESSES_PER_CORE, FEW_PROCESSES = 4, 64
"""Processes on one machine's CPUs that may be asked for: so many per core, or so many in all."""


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """How worker groups are made: the same for every trial of a command."""

    nproc: int = 1
    nproc_asked: bool = True
    """False: a preset's choice, which may move to the CPU where there are too few GPUs."""
    slots: int = 1
    runner: Literal["forkserver", "torchrun", "ray"] = "forkserver"
    nnodes: int = 1
    address: str | None = None
    """Of this machine, where the ranks of other machines reach it; None: its host name's."""
    launcher: Sequence[str] = ("torchrun",)
    ray_address: str | None = None
    """Of a Ray cluster; None: the one that Ray finds, or a new one on this machine."""
    strategy: Literal["pack", "spread"] | None = None
    """Of Ray: whether the ranks of a trial go to few nodes (None: so) or to many."""
    cpus_per_rank: float | None = None
    """What Ray sets aside for a rank; None: one."""
    device: Device = "auto"
    trials_per_gpu: int = 1
    """Slots that share a GPU: for models that do not fill one."""
    amp: bool | None = None
    """bf16 autocast; None: as the recipe says, where there is a GPU."""
    compile: bool = False
    stall_timeout: float = 600.0
    trunk_cache: int = 20_000_000_000
    """Bytes that trunk checkpoints may take; 0: none are kept, every run is trained alone."""
    shared: str | None = None
    """URL of the store through which homes share trunk checkpoints and finished runs."""
    shared_limit: int | None = None
    """Bytes that trunk checkpoints may take in there; None: any."""

    @classmethod
    def as_placed(cls, placement: Placement) -> "GroupOptions":
        """Groups as one was placed before, for runs that are to have its bits."""
        return cls(
            nproc=placement.world_size,
            device=placement.device,
            amp=placement.amp,
            compile=placement.compile,
            stall_timeout=placement.stall_timeout,
            nproc_asked=False,  # the record says how many
        )

    def check(self) -> None:
        """UserError for options that contradict each other, or that this machine cannot serve.

        Starts nothing and makes nothing.
        """
        if self.runner != "torchrun" and (self.nnodes > 1 or tuple(self.launcher) != ("torchrun",)):
            raise UserError("`nnodes`, `launcher`: only `runner` torchrun spans machines; add it")
        if self.nnodes > 1 and tuple(self.launcher) == ("torchrun",):
            raise UserError(
                f"`nnodes` {self.nnodes}: nobody starts torchrun on the other machines; name who "
                "does, as in `launcher` 'srun torchrun'"
            )
        asked = (self.ray_address, self.strategy, self.cpus_per_rank)
        if self.runner != "ray" and asked != (None, None, None):
            raise UserError(
                "`ray_address`, `strategy`, `cpus_per_rank`: only `runner` ray has a cluster to "
                "place ranks in; add it"
            )
        if self.nnodes > 1 or (self.runner == "ray" and self.address is not None):
            own_address(self.address)
        elif self.address is not None:
            raise UserError(
                f"`address` {self.address}: the ranks of one machine need none; leave it out, or "
                "add `nnodes`, or `runner` ray"
            )
        if self.shared_limit is not None and self.shared is None:
            raise UserError("`shared_limit`: nothing is shared; add `shared`, or leave it out")
        if self.runner == "forkserver":
            self._refuse_a_crowd()
        if self.nproc % self.nnodes:
            raise UserError(
                f"`nproc` {self.nproc}: must be a multiple of `nnodes` {self.nnodes}; it counts "
                "the ranks of all machines"
            )
        if self.trials_per_gpu > self.slots:
            raise UserError(
                f"`trials_per_gpu` {self.trials_per_gpu}: there are never so many trials at the "
                f"same time; add `slots` {self.trials_per_gpu}, or more for several GPUs"
            )
        if self.trials_per_gpu > 1 and self.nproc > 1:
            raise UserError(
                f"`trials_per_gpu` {self.trials_per_gpu}: only trials of one rank share a GPU, a "
                f"trial of `nproc` {self.nproc} needs one for each of its ranks; leave one of them "
                "out"
            )

    def _refuse_a_crowd(self) -> None:
        """UserError for far more processes than this machine has cores; GPUs bring their own bound.

        What a preset, a study or a record says is not concerned. Trials may share a GPU, the ranks
        of one trial never do.
        """
        ranks = self.nproc if self.nproc_asked else 1
        count = ranks if has_gpu(self.device) else ranks * self.slots
        cores = usable_cores()
        most = max(PROCESSES_PER_CORE * cores, FEW_PROCESSES)
        if count > most:
            asked = f"`nproc` {self.nproc} " if self.nproc_asked else ""
            raise UserError(
                f"{asked}`slots` {self.slots}: {count:,} processes are too "
                f"many for this machine, which has {cores} cores ({most} at most); lower one of "
                "them, or use more machines with `runner` torchrun `nnodes`"
            )


def has_gpu(device: Device) -> bool:
    """Whether a GPU is going to train, told from the device files: torch takes seconds to load."""
    if device == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        files = (*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg"))  # dxg: under WSL
        return not hidden and bool(files)
    return device == "cuda"


def placed(options: GroupOptions, facts: TaskFacts, slot: int, *, amp: bool) -> Placement:
    """The devices of a slot; ``amp`` is what the recipe wants where there is a GPU.

    Ray gives a group its devices when it has room for it: all that counts is whether the ranks that
    looked had any. UserError if this machine has fewer GPUs than were asked for, or none for what
    needs one.
    """
    device = options.device
    local, shared = options.nproc // options.nnodes, options.trials_per_gpu
    needed = local * math.ceil(options.slots / shared)
    if device == "auto":
        enough = local <= facts.gpus or options.runner == "ray"
        device = "cuda" if facts.gpus and (enough or options.nproc_asked) else "cpu"
    devices = None  # all that a rank sees; on other machines their names may differ
    if device == "cuda":
        if options.runner != "ray" and needed > facts.gpus:
            raise UserError(
                f"`nproc` {options.nproc} `slots` {options.slots}: needs {needed} GPUs on "
                f"this machine, which has {facts.gpus}; lower one of them, let small trials share "
                "one with `trials_per_gpu`, or `device` cpu"
            )
        if options.runner != "ray" and (options.nnodes == 1 or options.slots > 1):
            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            every = named.split(",") if named else [str(index) for index in range(facts.gpus)]
            first = slot // shared * local
            devices = ",".join(every[first : first + local])
    elif options.amp:
        raise UserError("`amp`: bf16 training needs a GPU; leave it out on a CPU")
    elif shared > 1:
        raise UserError(
            f"`trials_per_gpu` {shared}: there is no GPU to share on a CPU; leave it out, "
            "`slots` alone says how many trials train at the same time"
        )
    return Placement(
        world_size=options.nproc,
        device=device,
        visible_devices=devices,
        amp=device == "cuda" and (amp if options.amp is None else options.amp),
        compile=options.compile,
        stall_timeout=options.stall_timeout,
    )


log = logging.getLogger(__name__)

OnLife = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """A task with its recipe and its worker groups: what a plan needs besides its schedule."""

    held: HeldHome
    spec: ResolvedStudy[BaseRecipe]
    options: GroupOptions
    runner: GroupRunner
    trainer: Trainer
    facts: TaskFacts = field(repr=False)
    rows: Sequence[Schedule] = ()
    """What a comparison trains: its table's rows in order; empty for a search."""
    sharing: Sharing | None = field(default=None, repr=False)
    """What runs get from other homes, and leave for them."""
    remarks: tuple[str, ...] = ()
    """What people should know of how the recipe was read."""

    @property
    def home(self) -> Home:
        """Where everything is kept."""
        return self.held.home

    @property
    def recipe(self) -> BaseRecipe:
        """The study's recipe."""
        return self.spec.typed_recipe

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
        trunk = self.spec.trunk
        if trunk is not None and not (
            isinstance(schedule, Exploring) and schedule.knee_step >= trunk.step
        ):
            raise UserError(
                f"`trunk` {trunk.path}@{trunk.step}: a {schedule.name} schedule of "
                f"{schedule.total_steps} steps does not explore for so long"
            )
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
        done = self.run(plan, Callbacks(on_progress=lambda step: on_life()))
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
        done = self.run(plan, Callbacks(on_line=on_line, on_progress=lambda step: on_life()))
        return dict(done.result["metrics"])

    def run(self, plan: Plan, callbacks: Callbacks = QUIET) -> Done:
        """Run a plan that is no run of a study, as :func:`run_job` does, while there is a home."""

        def progressed(step: int) -> None:
            self.held.raise_if_gone()
            callbacks.on_progress(step)

        return run_job(self.runner, plan, replace(callbacks, on_progress=progressed))


DESCRIBING_SEED = 1
"""Of the job that runs a script up to ``join``."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Worker groups that have looked at what they are to train, in a home that is held."""

    held: HeldHome
    runner: GroupRunner = field(repr=False)
    facts: TaskFacts = field(repr=False)
    store: ObjectStore | None = field(repr=False)
    """What this home shares with others."""
    joined: Mapping[str, Any] | None
    """What a script said to ``join``; None: it is a task."""


@contextmanager
def look_at(
    home: Home,
    task: str,
    recipe: Mapping[str, Any],
    options: GroupOptions,
    *,
    logs: str,
    seed: int = DESCRIBING_SEED,
    trunk_file: TrunkFile | None = None,
) -> Iterator[Looked]:
    """Make the home if need be, start the runner, look at the task's data; end the runner at last.

    ``logs``: the study whose folder has the log. ``trunk_file``: a trunk that the task's model is
    to go on from. UserError if it cannot, or the home cannot be made, the task's data, libraries or
    the store that is shared are missing, or there are too few devices; MachineError if it keeps
    ending the group that looks. What becomes of the home then says :meth:`Home.held`.
    """
    options.check()
    entry = task_entry(task)
    script = Path(recipe["script"]) if task == SCRIPT else None
    modules = installed_imports(script) if script else entry.modules(recipe)
    runner = _runner(options, preload=(ENTRY.partition(":")[0], *modules))
    plan = DescribePlan(
        task=task,
        recipe=dict(recipe),
        seed=seed,
        data_dir=home.data,
        placement=Placement(world_size=options.nproc, stall_timeout=options.stall_timeout),
        log_dir=home.logs(logs) / "describe",
        trunk_file=trunk_file,
    )
    with closing(runner):
        store = _open_store(options.shared, home)  # while the runner warms up
        with home.held(logs=plan.log_dir) as held:
            home.sweep()
            facts, joined = _facts(runner, plan, entry, script)
            yield Looked(held=held, runner=runner, facts=facts, store=store, joined=joined)


def _runner(options: GroupOptions, *, preload: Sequence[str]) -> GroupRunner:
    if options.runner == "torchrun":
        return TorchrunRunner(
            ENTRY, options.launcher, nnodes=options.nnodes, address=options.address
        )
    if options.runner == "ray":
        return RayRunner(
            ENTRY,
            preload,
            cluster=options.ray_address,
            address=options.address,
            strategy=options.strategy or "pack",
            device=options.device,
            cpus=options.cpus_per_rank or 1.0,
            gpus=1 / options.trials_per_gpu,
            fewest_gpus=1 if options.nproc_asked else options.nproc,
        )
    return ForkserverRunner(ENTRY, preload=preload)


@contextmanager
def open_workers(
    home: Home,
    spec: ResolvedStudy[BaseRecipe],
    options: GroupOptions,
    *,
    looked: Looked | None = None,
    storage_url: str | None = None,
) -> Iterator[Workers]:
    """The workers of a study, whose runner ends with them; ``looked``: those that are there.

    ``storage_url``: where drivers with other homes meet, so that one of them trains a trunk that
    all share. Errors as of :func:`look_at`.
    """
    with ExitStack() as stack:
        if looked is None:
            # What a script is told apart by does not depend on a study's seed.
            seed = DESCRIBING_SEED if spec.task == SCRIPT else spec.seed
            looking = look_at(home, spec.task, spec.recipe, options, logs=spec.name, seed=seed)
            looked = stack.enter_context(looking)
        held, facts = looked.held, looked.facts
        home.logs(spec.name).mkdir(exist_ok=True)  # a script's study gets its name after the look
        limit = options.trunk_cache
        sharing = stack.enter_context(_sharing(looked.store, options, storage_url))
        table = spec.compare.rows if spec.compare else ()
        recipe = spec.typed_recipe
        budget, of_what = budget_steps(recipe, facts), "the budget"
        if table:  # before its scale, which a row has for its warmup too
            budget = min(row.epochs for row in table) * facts.steps_per_epoch
            of_what = "the smallest budget of its rows, which share trunks"
        settled = recipe.with_warmup_of(budget)
        steps = settled.warmup_steps
        remark = f"warmup: {recipe.warmup} of {of_what} ({budget:,} steps): {steps} steps"
        yield Workers(
            held=held,
            spec=spec.with_recipe(settled),
            remarks=(remark,) if recipe.warmup else (),
            options=options,
            runner=looked.runner,
            trainer=Trainer(
                looked.runner,
                trunks=TrunkStore(home.trunks, limit=limit) if limit else None,
                sharing=sharing,
                on_life=held.raise_if_gone,
            ),
            sharing=sharing,
            facts=facts,
            rows=[row_schedule(row, settled, facts, scale=spec.scale) for row in table],
        )


def _open_store(url: str | None, home: Home) -> ObjectStore | None:
    """The store at ``url``, which was tried out; UserError if it is none, or the home itself."""
    if url is None:
        return None
    store = open_store(url, home=home.root)
    if not store.exclusive:
        log.warning(
            "%s: cannot create a file only where there is none; of two drivers that save the same "
            "checkpoint at the same moment the later one counts",
            store.url,
        )
    return store


@contextmanager
def _sharing(
    store: ObjectStore | None, options: GroupOptions, storage_url: str | None
) -> Iterator[Sharing | None]:
    """What trainers share through ``store``; at its end everything is put there."""
    if store is None:
        yield None
        return
    claim = {} if storage_url is None else {"claim": partial(take_claim, storage_url)}
    sharing = Sharing(store, limit=options.shared_limit, **claim)
    try:
        yield sharing
    except BaseException:
        sharing.close(EXIT_PATIENCE)
        raise
    sharing.close()


def _facts(
    runner: GroupRunner, plan: DescribePlan, entry: TaskEntry, script: Path | None
) -> tuple[TaskFacts, Mapping[str, Any] | None]:
    """What the ranks find, with the fingerprint of the code, which is read while they start.

    And what a script said to ``join``.
    """
    modules = [each.partition(":")[0] for each in (entry.task, entry.recipe) if each]
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(TrainingCode, *modules, script=script)
        done = run_job(runner, plan, Callbacks(on_line=lambda text: log.warning("%s", text)))
        found = dict(done.result)
        joined = found.pop(JOINED, None)
        facts = TaskFacts.model_validate(found)
    code = reading.result()
    code.follow(facts.modules)
    return facts.model_copy(update={"code": code.fingerprint}), joined


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
        trunk_file=spec.trunk,
    )
