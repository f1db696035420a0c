"""One model that is sharded over all ranks, as its task shards it (``Task.shard``)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from knee_tune.config.study import TrunkFile
from knee_tune.errors import UserError
from knee_tune.plans.plan import TrainPlan
from knee_tune.tasks.base import Task
from knee_tune.training.learner import Finished
from knee_tune.training.sharded import (
    apart,
    check_mesh,
    load_model_weights,
    local_part,
    mesh_of,
    reshard,
    save_gathered,
    together,
    total_norm,
    with_part,
)
from knee_tune.training.single import SingleModel, mean_weights
from knee_tune.workers.group import Group


def model_of(task: Task[Any], plan: TrainPlan, group: Group) -> SingleModel:
    """The model of a run: sharded if the task shards it and there are ranks to shard it over."""
    sharded = task.shards and group.world_size > 1
    return ShardedModel(task, plan, group) if sharded else SingleModel(task, plan, group)


def sharded_by(task: Task[Any], model: nn.Module, group: Group) -> nn.Module:
    """Shard ``model`` over the ranks as its task does; UserError if that shards nothing."""
    model.to(group.device)
    task.shard(model, init_device_mesh(group.device.type, (group.world_size,)))
    if not mesh_of(model):
        own = getattr(task, "simple", task)  # as its author calls it
        raise UserError(
            f"{type(own).__name__}.shard: no parameter is sharded by it; call "
            "torch.distributed.fsdp.fully_shard(model, mesh=mesh) in it, or remove it"
        )
    return model


class ShardedModel(SingleModel):
    """See :class:`~knee_tune.training.learner.Learner`."""

    def __init__(self, task: Task[Any], plan: TrainPlan, group: Group) -> None:
        if plan.placement.compile:
            raise UserError(
                "`compile`: a sharded model is not compiled from outside; compile its blocks in "
                "the task's shard(), before fully_shard"
            )
        super().__init__(task, plan, group)
        self.mesh = mesh_of(self.model)
        check_mesh(self.mesh, plan.facts)
        self._kept_parts: dict[str, Tensor] | None = None
        """The weights to keep, as far as this rank has them."""

    def keep(self, replicas: Iterable[int], *, mean_of: int = 1) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        if not any(True for _ in replicas):
            return
        weights = self._task.measured(self.model).state_dict()
        if mean_of > 1:
            while len(self._window) >= mean_of:
                self._window.popleft()
            self._window.append({n: local_part(v).cpu().clone() for n, v in weights.items()})
            return
        self._keep({name: value.detach().clone() for name, value in weights.items()})

    def kept_weights(self) -> Path | None:
        """See :class:`~knee_tune.training.learner.Learner`. Gathered now if they have changed."""
        if self._kept_file is None and self._kept_parts is not None:
            measured = self._task.measured(self.model)
            save_gathered(self._weights, measured, self._kept_parts, self._group)
            self._kept_file = self._weights
        return self._kept_file

    def finish(self) -> dict[int, Finished]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        if self._window:
            own = self._task.measured(self.model).state_dict()
            self._keep({n: with_part(own[n], v) for n, v in mean_weights(self._window).items()})
        self.kept_weights()
        self._group.barrier()
        load_model_weights(self._weights, self.model, self._group)
        return {0: Finished(self._evaluate(self.model, final=True), self._weights)}

    def state(self) -> dict[str, Any]:
        """See :class:`~knee_tune.training.learner.Learner`: what this rank has."""
        state: dict[str, Any] = apart(super().state())
        return state

    def load(self, state: Mapping[str, Any], weights: Path | None) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        super().load(together(state, self.model), weights)
        self._kept_file = None if weights is None else self._weights

    def go_on_from(self, file: TrunkFile) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        raise UserError(
            f"`trunk` {file.path}: a sharded model does not begin with a file; train its trunk here"
        )

    def _keep(self, parts: dict[str, Tensor]) -> None:
        self._kept_parts, self._kept_file = parts, None

    def _built(self) -> nn.Module:
        return sharded_by(self._task, super()._built(), self._group)

    @property
    def _parallel(self) -> nn.Module:
        return self.model

    def _seen_sums(self) -> Tensor:
        reshard(self.model)
        return self._sums + 0 * total_norm(self.model.parameters())

    def _scale_and_clip(self, scale: Tensor) -> None:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_([local_part(each) for each in gradients], scale.float())
        if self._task.recipe.clip_norm is not None:
            norm, most = total_norm(gradients), self._task.recipe.clip_norm
            scaled = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch clips
            torch._foreach_mul_([local_part(each) for each in gradients], scaled)

    def _share_buffers(self) -> None:
        with torch.no_grad():
            for buffer in self.model.buffers():
                dist.broadcast(local_part(buffer), src=0)
