"""A script's model and optimizers, as the engine sees them. The script itself makes the updates."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from knee_tune.config.study import TrunkFile
from knee_tune.errors import UserError
from knee_tune.plans.plan import TrainPlan
from knee_tune.scripts.state import (
    State,
    generators,
    pack,
    put_back,
    set_generators,
    states_of,
    unpack,
)
from knee_tune.training.checkpoint import WEIGHTS, take_weights
from knee_tune.training.learner import Finished
from knee_tune.training.optimizer import take_up, write_lrs
from knee_tune.training.sharded import (
    apart,
    check_mesh,
    load_model_weights,
    mesh_of,
    reshard,
    save_model_weights,
    together,
    total_norm,
)
from knee_tune.training.trunk_file import load_trunk
from knee_tune.workers.group import Group


class ScriptLearner:
    """See :class:`~knee_tune.training.learner.Learner`.

    ``measured``: the module whose weights are kept, if it is not ``model``: an average. ``metric``:
    the one that every evaluation has to report. ``saves``: whether weights are kept on disk.
    """

    first_steps: Mapping[int, int] = {0: 0}

    def __init__(
        self,
        plan: TrainPlan,
        group: Group,
        *,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        state: State,
        measured: nn.Module | None = None,
        metric: str,
        saves: bool,
    ) -> None:
        self._plan, self._group, self._metric, self._saves = plan, group, metric, saves
        self.model = bare(model)
        self.measured = self.model if measured is None else bare(measured)
        self._optimizers, self._own_state = optimizers, state
        self.mesh = mesh_of(self.model)
        check_mesh(self.mesh, plan.facts)
        for optimizer in optimizers:
            take_up(optimizer)
        self._written: list[float] = []
        """The LRs of the step that is being made, of every group."""
        self._reported: dict[str, float] = {}
        """In the step that is being made."""
        self._measured: dict[str, float] = {}
        """At the last evaluation, on every rank."""
        self._kept: dict[str, float] = {}
        """What was measured of the weights that are kept."""
        self._kept_file: Path | None = None
        self._generators: Mapping[str, Any] | None = None
        """To be put back when the first step begins: until then the script draws as it likes."""

    def begin(self, step: int) -> None:
        """Write the LRs of the coming update; what was reported before is of no use any more."""
        self.draw_on()
        for optimizer in self._optimizers:
            write_lrs(optimizer, self._plan.schedule, step)
        self._written = self._lrs()
        self._reported = {}

    def draw_on(self) -> None:
        """Put the global generators where the state that was loaded had them, once."""
        if self._generators is not None:
            set_generators(self._generators)
            self._generators = None

    def check_lrs(self, step: int) -> None:
        """UserError if somebody else has written a LR since the step began."""
        now = self._lrs()
        if now == self._written:
            return
        before, after = next(
            pair for pair in zip(self._written, now, strict=False) if len({*pair}) > 1
        )
        raise UserError(
            f"step {step}: the LR was set to {before:g}, and something made it {after:g} within "
            "the step; knee-tune writes it, so remove your scheduler's step()"
        )

    def _lrs(self) -> list[float]:
        return [float(group["lr"]) for each in self._optimizers for group in each.param_groups]

    def report(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Take what the script measured; UserError for what is no number."""
        for name, value in metrics.items():
            try:
                self._reported[name] = float(value)
            except (TypeError, ValueError, RuntimeError):
                raise UserError(
                    f"run.report: {name} is {type(value).__name__}, not one number"
                ) from None

    def update(self, step: int) -> None:
        """Refuse: the script makes the updates."""
        raise TypeError("the updates of a script are its own")

    def lost(self, *, thorough: bool = False) -> list[int]:
        """See :class:`~knee_tune.training.learner.Learner`. Losses are not seen, weights are."""
        with torch.no_grad():
            reshard(self.model)
            norm = total_norm(self.model.parameters())
        lost = not bool(norm.isfinite())
        return [0] if self._group.sum([lost])[0] else []

    def measure(self, step: int) -> dict[int, dict[str, float]]:
        """See :class:`~knee_tune.training.learner.Learner`: what rank 0 reported, on every rank."""
        reported, self._reported = self._group.gather(self._reported)[0], {}
        if not reported:
            raise UserError(
                f"step {step}: nothing was reported; call run.report({self._metric}=...) on rank 0 "
                "whenever run.evaluate_now is true"
            )
        if self._metric not in reported:
            raise UserError(
                f"step {step}: {self._metric} was not reported, only {', '.join(reported)}; report "
                "it, or name another one with `minimize` or `maximize`"
            )
        self._measured = reported
        return {0: {"lr": self._plan.schedule.lr(step), **reported}}

    def keep(self, replicas: Iterable[int], *, mean_of: int = 1) -> None:
        """See :class:`~knee_tune.training.learner.Learner`. They are written at once."""
        if not any(True for _ in replicas):
            return
        self._kept, self._kept_file = self._measured, self._weights
        if self._saves:
            save_model_weights(self._weights, self.measured, self._group)

    def take_kept(self) -> None:
        """Give what is measured the weights that are kept, on every rank."""
        self._group.barrier()  # rank 0 has written them
        if self._saves:
            load_model_weights(self._weights, self.measured, self._group)

    def leave(self, replicas: Iterable[int]) -> None:
        """Do nothing: there are no other replicas."""

    def finish(self) -> dict[int, Finished]:
        """See :class:`~knee_tune.training.learner.Learner`: the script has measured already."""
        return {0: Finished({**self._kept, **self._reported}, self._weights)}

    def state(self) -> dict[str, Any]:
        """See :class:`~knee_tune.training.learner.Learner`. Ranks may differ in what is theirs."""
        mine = {
            "generators": generators(self._group.device),
            "state": states_of(self._own_state),
            # DDP gives every rank those of rank 0 before a step, unless it is told not to.
            "buffers": {} if self._group.leads else dict(self.model.named_buffers()),
        }
        if self.mesh:  # every rank saves what is its own, beside what it has of the rest
            return self._state_beside({self._group.rank: pack(apart(mine))})
        ranks = self._group.collect([{"packed": pack(mine)}])
        return self._state_beside([each["packed"] for each in ranks]) if self._group.leads else {}

    def _state_beside(self, ranks: Any) -> dict[str, Any]:
        """``ranks``: what is theirs, by rank."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizers": [each.state_dict() for each in self._optimizers],
            "ranks": ranks,
            "measured": self._measured,
            "kept": self._kept,
        }
        return apart(state) if self.mesh else state

    def load(self, state: Mapping[str, Any], weights: Path | None) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        mine = unpack(state["ranks"][self._group.rank])
        if self.mesh:
            state, mine = (together(each, self.model) for each in (state, mine))
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        buffers = dict(self.model.named_buffers())
        with torch.no_grad():
            for name, value in mine["buffers"].items():
                buffers[name].copy_(value)
        put_back(self._own_state, mine["state"])
        self._generators = mine["generators"]
        self._measured, self._kept = state["measured"], state["kept"]
        if weights is not None and self._group.leads:
            take_weights(self._weights, weights)
            self._kept_file = self._weights

    def go_on_from(self, file: TrunkFile) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        if self.mesh:
            raise UserError(
                f"`trunk` {file.path}: a sharded model does not begin with a file; train its trunk "
                "here"
            )
        if self._own_state or len(self._optimizers) > 1:
            raise UserError(
                f"`trunk` {file.path}: this script trains more than a model and one optimizer, "
                "which no such file has"
            )
        load_trunk(file, self.model, self._optimizers[0])

    def kept_weights(self) -> Path | None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        return self._kept_file

    @property
    def _weights(self) -> Path:
        return self._plan.checkpoint_dir / WEIGHTS


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside what compiles it or tells ranks of it: its names are the same."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_sharding(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """UserError for a model that is sharded in a way that is not supported, or too late."""
    model = bare(model)
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FullyShardedDataParallel):
                raise UserError(
                    "join: FullyShardedDataParallel does not tell ranks what they have of a "
                    "tensor; shard with torch.distributed.fsdp.fully_shard, which takes its place"
                )
    if mesh_of(model):
        own = {id(each) for each in model.parameters()}
        trained = [p for each in optimizers for group in each.param_groups for p in group["params"]]
        if not any(id(each) in own for each in trained):
            raise UserError(
                "join: the optimizer has none of the model's parameters, which fully_shard has "
                "replaced; make the optimizer after it"
            )
