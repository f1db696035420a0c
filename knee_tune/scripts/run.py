"""``knee_tune.join``: a script's loop as a run of knee-tune, or as a plain run if it is alone."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from knee_tune.errors import UserError
from knee_tune.plans.plan import SCRIPT, DescribePlan, TrainPlan
from knee_tune.schedules.schedule import fitted_knee
from knee_tune.scripts.batches import batches_after
from knee_tune.scripts.data import FirstBatch, fingerprint_of
from knee_tune.scripts.learner import ScriptLearner, bare, check_sharding
from knee_tune.scripts.recipe import DEFAULT_METRIC, Joined, ScriptRecipe
from knee_tune.scripts.state import State, check_state
from knee_tune.scripts.watched import WatchedLearner
from knee_tune.training.loop import TrainingRun
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Decision, Done, Report


class Ended(SystemExit):
    """The run is over before its last step: the script ends where it stands, without a word."""


@dataclass
class Rank:
    """What ``join`` finds in a process in which knee-tune runs the script."""

    plan: TrainPlan | DescribePlan
    group: Group
    channel: Channel
    run: "Run | None" = None
    """What ``join`` returned."""
    done: Done | None = None
    """How it ended."""
    joined: Joined | None = None
    """What the script said to ``join``."""

    here: ClassVar["Rank | None"] = None


class Run:
    """A training run whose loop is the script's: it takes its steps, or its batches, from here."""

    def __init__(self, engine: TrainingRun, rank: Rank | None) -> None:
        assert isinstance(engine.learner, ScriptLearner)
        self._engine, self._learner, self._rank = engine, engine.learner, rank
        self._evaluations = frozenset(engine.plan.evaluation_steps())
        self.begun = False
        """Whether a loop has asked for the first step."""
        self.ended = False
        """Whether it has asked for one after the last, which says that the last is made."""

    @property
    def step(self) -> int:
        """The step that is being made, from 1."""
        return self._engine.step

    @property
    def total_steps(self) -> int:
        """The budget in steps."""
        return self._engine.plan.total_steps

    @property
    def seed(self) -> int:
        """The random seed of this run: a study trains several."""
        return self._engine.plan.seed

    @property
    def parameters(self) -> int:
        """How many numbers the model has to learn."""
        return sum(each.numel() for each in self._learner.model.parameters())

    @property
    def mesh(self) -> tuple[int, ...]:
        """The shape of the mesh that the model is sharded over; empty if it is not."""
        return self._learner.mesh

    @property
    def lr(self) -> float:
        """The LR of this step, before any group's ``lr_scale`` and ``decay_scale``."""
        return self._engine.plan.schedule.lr(max(1, self.step))

    @property
    def evaluate_now(self) -> bool:
        """Whether this step ends with an evaluation: then ``report`` what it measures."""
        return self.step in self._evaluations

    def steps(self) -> Iterator[int]:
        """Yield every step to train, with its LR written: the body makes one update.

        A run that goes on begins where it stood. One that is stopped ends the script here.
        """
        if self.begun:
            raise UserError("run.steps, run.batches: a run has one loop; take its steps once")
        self.begun = True
        for step in self._engine.steps():
            self._learner.begin(step)
            yield step
            self._learner.check_lrs(step)
        if self._engine.over is not None:
            self._end(self._engine.over)
        self.ended = True
        self._learner.draw_on()
        if self._engine.recipe.keep == "best":
            self._learner.take_kept()

    def batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Yield a batch of ``loader`` for every step, over as many epochs as it takes.

        The order is drawn from (seed, epoch), and what items draw from their batch's place: so a
        run goes on in the middle of an epoch, bit for bit. Map-style data sets alone.
        """
        steps = self.steps()
        for first in steps:
            batches = batches_after(loader, first - 1, seed=self.seed, rank=self._engine.group.rank)
            yield next(batches)
            yield from (batch for _, batch in zip(steps, batches, strict=False))

    def report(self, **metrics: float | Tensor) -> None:
        """Tell what was measured after this step; rank 0's numbers count.

        Needed where ``evaluate_now`` is true, the study's metric among them; elsewhere nobody asks.
        """
        if not self.begun:
            raise UserError("run.report: only within the loop over run.steps() or run.batches()")
        self._learner.report(metrics)

    def finish(
        self, model: nn.Module | None = None, *, serve: str | None = None, **metrics: float | Tensor
    ) -> None:
        """End the run after its last step; its weights are kept.

        ``model``: as it was given to ``join``, or as ``measured``, for the reader. ``serve``:
        ``"module:function"``, of a module beside the script: the function is given the path of the
        weights (safetensors) and returns what answers inputs, for ``knee-tune register``.
        ``metrics``: more numbers of the end, as BLEU. UserError before the last step, and for
        another model.
        """
        if not self.ended:
            raise UserError(
                f"run.finish at step {self.step} of {self.total_steps}: let run.steps() or "
                "run.batches() end the loop"
            )
        kept = self._learner.measured
        if model is not None and bare(model) not in (self._learner.model, kept):
            raise UserError(
                f"run.finish: this {type(model).__name__} is not the model that join was given, "
                "whose weights are kept; to keep an average of them say join(measured=...)"
            )
        self._learner.report(metrics)
        done = self._engine.finish()
        if serve is not None:
            done = done.model_copy(update={"result": done.result | {"serve": serve}})
        if self._rank is not None:
            self._rank.done = done

    def _end(self, done: Done) -> None:
        """Leave the script."""
        if self._rank is None:
            raise SystemExit(f"knee-tune: the run {done.state} at step {done.step}: {done.reason}")
        self._rank.done = done
        raise Ended(0)


class FirstLook(Run):
    """The run of a job that only describes: it ends where the data is known."""

    def __init__(self, engine: TrainingRun, rank: Rank | None) -> None:
        super().__init__(engine, rank)
        self.fingerprint = ""

    def steps(self) -> Iterator[int]:
        """Yield one step, which ends as soon as the model is given a batch."""
        self.begun = True
        first = FirstBatch(self._learner.model, Ended(0))
        try:
            yield 1
            raise Ended(0)
        finally:
            self.fingerprint = first.fingerprint

    def batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Look at the data set and end."""
        self.begun = True
        self.fingerprint = fingerprint_of(loader.dataset)
        raise Ended(0)


def join(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
    *,
    steps: int | None = None,
    evaluate_every: int | None = None,
    minimize: str | None = None,
    maximize: str | None = None,
    seed_lr: float | None = None,
    explore: float = 0.5,
    warmup_steps: int = 0,
    state: State | None = None,
    measured: nn.Module | None = None,
    data: Any = None,
    seed: int = 1,
) -> Run:
    """Join a study as the run that trains ``model``; alone it is a plain run, and writes nothing.

    Call it on every rank, when model and optimizer are made. Under ``knee-tune run`` the study says
    how to train, and what is said here is what it says where the command line does not:

    ``steps``, ``evaluate_every``: budget, and steps from one evaluation to the next (a twentieth of
    the budget). ``minimize`` or ``maximize``: the metric that is reported, ``valid_loss`` unless
    named. ``seed_lr``: the optimizer's own LR unless given. ``explore``: explore fraction.
    ``warmup_steps``: linear warmup.

    ``state``: whatever else the next step depends on and has a ``state_dict``: an EMA, a
    GradScaler, a loader; and generators of torch. ``measured``: the module that the script
    evaluates in place of ``model``, an average of its weights; then its weights are what is kept.
    ``data``: what is trained on, to tell whether it has changed: data sets, arrays, files, or a
    text with its version; unless told what ``run.batches`` is given, or the first batch. ``seed``:
    of a plain run.

    Parameter groups keep their LRs relative to the optimizer's own, or their ``lr_scale``. A
    group's ``decay_scale``, at most 1, is its decay's share of the schedule's.
    UserError for what cannot be joined.
    """
    if minimize is not None and maximize is not None:
        raise UserError("join: minimize and maximize: a run is judged by one metric; name one")
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else [*optimizer]
    check_sharding(model, optimizers)
    state = state or {}
    check_state(state)
    joined = Joined(
        steps=steps,
        evaluate_every=evaluate_every,
        objective=minimize or maximize or DEFAULT_METRIC,
        direction="maximize" if maximize else "minimize",
        seed_lr=_own_lr(optimizers) if seed_lr is None else seed_lr,
        warmup_steps=warmup_steps,
    )
    rank = Rank.here
    group = _group(rank.group if rank else None, model)
    checked = rank is not None and isinstance(rank.plan, TrainPlan) and rank.plan.watched
    kind = WatchedLearner if checked else ScriptLearner
    learner = partial(kind, model=model, optimizers=optimizers, state=state, measured=measured)
    if rank is not None and isinstance(rank.plan, TrainPlan):
        recipe = ScriptRecipe.model_validate(rank.plan.recipe)
        rank.run = Run(_engine(recipe, rank.plan, group, rank.channel, learner, saves=True), rank)
        return rank.run
    recipe = _plain_recipe(joined, rank.plan.recipe if rank else {})
    plan = _plain_plan(recipe, explore=explore, seed=rank.plan.seed if rank else seed)
    engine = _engine(recipe, plan, group, _Alone(), learner, saves=False)
    if rank is None:
        return Run(engine, None)
    rank.joined = joined
    rank.run = first = FirstLook(engine, rank)
    if data is not None:
        first.fingerprint = fingerprint_of(data)
        raise Ended(0)
    return first


def _engine(
    recipe: ScriptRecipe,
    plan: TrainPlan,
    group: Group,
    channel: Channel,
    learner: Callable[..., ScriptLearner],
    *,
    saves: bool,
) -> TrainingRun:
    """The run of ``plan``, where it starts; ``saves``: on disk, for a study."""

    def made(watched: Group) -> ScriptLearner:
        return learner(plan, watched, metric=recipe.objective, saves=saves)

    return TrainingRun(recipe, plan, group, channel, made, saves=saves)


def _group(given: Group | None, model: nn.Module) -> Group:
    """This process's group; its collectives go through a process group of their own.

    The script's own one carries its gradients, on whatever device; made here if it has none.
    """
    device = next(model.parameters()).device
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Group(device=device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if given is not None and (rank, world_size) != (given.rank, given.world_size):
        raise UserError(
            f"join: this process is rank {given.rank} of {given.world_size}, and the script's "
            f"process group says rank {rank} of {world_size}; take them from RANK and WORLD_SIZE"
        )
    if world_size == 1:
        return Group(device=device)
    own = dist.new_group(backend="gloo")
    assert isinstance(own, dist.ProcessGroup), "this rank is a member"
    return Group(rank=rank, world_size=world_size, device=device, own=own)


def _own_lr(optimizers: Sequence[torch.optim.Optimizer]) -> float:
    """The LR that the first optimizer was made with."""
    lr = float(optimizers[0].defaults.get("lr", 0.0))
    if not lr > 0:
        raise UserError("join: the optimizer was made with LR 0; name one with seed_lr=")
    return lr


def _plain_recipe(joined: Joined, asked: Mapping[str, Any]) -> ScriptRecipe:
    """What ``join`` says, under what was ``asked`` for; UserError for a value that cannot be."""
    settings = {"script": sys.argv[0], **joined.settings(asked.get("steps")), **asked}
    if "steps" not in settings:
        raise UserError("join: steps=... is missing, and nobody else says how many to train")
    try:
        return ScriptRecipe.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"join: {name}={first['input']!r}: {first['msg']}") from None


def _plain_plan(recipe: ScriptRecipe, *, explore: float, seed: int) -> TrainPlan:
    """A run of the script alone: nothing of it is written anywhere."""
    knee = fitted_knee(
        seed_lr=recipe.seed_lr,
        total_steps=recipe.steps,
        explore_steps=round(explore * recipe.steps),
        warmup_steps=recipe.warmup_steps,
    )
    nowhere = Path(os.devnull)
    return TrainPlan(
        task=SCRIPT,
        recipe=recipe.model_dump(mode="json"),
        seed=seed,
        data_dir=nowhere,
        log_dir=nowhere,
        schedule=knee,
        steps_per_evaluation=recipe.steps_per_evaluation(1),
        checkpoint_dir=nowhere,
    )


class _Alone(Channel):
    """Nobody's line: what is reported is printed."""

    def report(self, report: Report) -> Decision:
        """Print it."""
        shown = ", ".join(
            f"{name} {value:.5g}" for name, value in report.metrics.items() if name != "lr"
        )
        sys.stdout.write(f"step {report.step} of {report.total_steps}: {shown}\n")
        sys.stdout.flush()
        return Decision(stop=False)

    def progress(self, step: int) -> None:
        """Say nothing."""

    def line(self, text: str) -> None:
        """Print it beside what the script prints."""
        sys.stderr.write(f"{text}\n")
