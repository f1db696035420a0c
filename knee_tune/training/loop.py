"""The one training loop. It knows schedules, steps and groups, but no task and no tuner."""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Channel, Done, Report
from knee_tune.planning.plan import TrainPlan
from knee_tune.tasks.base import Split, Task
from knee_tune.tasks.seeding import seed_step, stream_seed
from knee_tune.training.checkpoint import load_newest_checkpoint, save_checkpoint
from knee_tune.training.optimizer import build_optimizer, write_lr

WEIGHTS = "weights.safetensors"
"""The kept weights of a run, in its checkpoint folder."""

FINITE_CHECK_STEPS = 50
"""Steps between two looks at the loss: a look waits for the GPU."""


class TrainingRun:
    """One rank's share of one training run, from its newest checkpoint to its last step."""

    def __init__(self, task: Task[Any], plan: TrainPlan, group: Group, channel: Channel) -> None:
        self.task, self.plan, self.group, self.channel = task, plan, group, channel
        torch.manual_seed(stream_seed(plan.seed, "model"))
        self.model = task.build_model().to(group.device)
        self.optimizer = build_optimizer(task.recipe.optimizer, self.model)
        self.step = 0
        self.best: float | None = None
        self._load()
        self.first_step = self.step
        self.replica = _replicate(self.model, group)
        self._train_sums = torch.zeros(2, dtype=torch.float64, device=group.device)
        self._started = time.monotonic()

    def run(self) -> Done:
        """Train to the last step, or until the driver says stop or the loss is lost."""
        evaluations = set(self.plan.evaluation_steps())
        batches = self.task.train_batches(self.step, self.group)
        while self.step < self.plan.total_steps:
            self.step += 1
            self.update(next(batches))
            self.channel.progress(self.step)
            if self.step in evaluations:
                metrics = self._measure()
                if not all(map(math.isfinite, metrics.values())):
                    return self._done("diverged", reason="non-finite validation metric or loss")
                self._save(metrics)
                if self._stop_wanted(metrics):
                    return self._done("stopped")
            elif self.step % FINITE_CHECK_STEPS == 0 and not self._train_sums.isfinite().all():
                return self._done("diverged", reason="non-finite training loss or gradient")
        return self._finish()

    def update(self, micro_batches: Any) -> None:
        """One optimizer update; gradients are normalised by the global count, then clipped."""
        write_lr(self.optimizer, self.plan.schedule.lr(self.step))
        seed_step(self.group.device, self.plan.seed, self.group.rank, self.step)
        self.replica.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        for index, batch in enumerate(micro_batches):
            with self._sync_gradients(last=index == len(micro_batches) - 1), self._autocast():
                loss, count = self.task.loss(self.replica, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([loss.detach().double(), sums.new_full((), count)])
        sums = self.group.sum_tensor(sums)
        norm = self._scale_and_clip(self.group.world_size / sums[1].clamp(min=1))
        self.optimizer.step()
        sums[0] += 0 * norm  # a lost gradient shows in the same number as a lost loss
        self._train_sums += sums

    def _scale_and_clip(self, scale: Tensor) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        for parameter in parameters:
            parameter.grad.mul_(scale)  # type: ignore[union-attr]
        limit = self.task.recipe.clip_norm or math.inf
        return nn.utils.clip_grad_norm_(parameters, limit)

    def _measure(self) -> dict[str, float]:
        """Validation metrics, the mean training loss since the last look, and the LR."""
        loss, count = self._train_sums.tolist()
        self._train_sums.zero_()
        return {
            "lr": self.plan.schedule.lr(self.step),
            "train_loss": loss / max(1.0, count),
            **evaluate(self.task, self.model, self.group, split="valid", final=False),
        }

    def _stop_wanted(self, metrics: Mapping[str, float]) -> bool:
        stop = False
        if self.group.leads:
            report = Report(
                step=self.step,
                total_steps=self.plan.total_steps,
                metrics=dict(metrics),
                seconds=time.monotonic() - self._started,
            )
            stop = self.channel.report(report).stop
        return self.group.agree(stop)

    def _finish(self) -> Done:
        """Measure the kept weights once more, with the dear metrics."""
        if self.task.recipe.keep == "last":
            self._save_weights()
        self.group.barrier()
        load_model(self.model, self._weights)
        metrics = evaluate(self.task, self.model, self.group, split="valid", final=True)
        return self._done("complete", metrics=metrics, weights=str(self._weights))

    @property
    def _weights(self) -> Path:
        return self.plan.checkpoint_dir / WEIGHTS

    def _save(self, metrics: Mapping[str, float]) -> None:
        """Keep the best weights, then write the checkpoint a retry starts from."""
        recipe = self.task.recipe
        watched = metrics[f"valid_{recipe.watched}"]
        if self.best is None or recipe.metric(recipe.watched).better(watched, self.best):
            self.best = watched
            if recipe.keep == "best":
                self._save_weights()
        if self.group.leads:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
            }
            save_checkpoint(self.plan.checkpoint_dir, step=self.step, state=state)

    def _save_weights(self) -> None:
        if self.group.leads:
            self.plan.checkpoint_dir.mkdir(parents=True, exist_ok=True)
            draft = self._weights.with_suffix(".draft")
            save_model(self.model, str(draft))
            draft.replace(self._weights)

    def _load(self) -> None:
        found = load_newest_checkpoint(self.plan.checkpoint_dir, device=self.group.device)
        if found is not None:
            self.step, state = found
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best = state["best"]

    def _sync_gradients(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once per step, in the backward pass of its last micro-batch."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self.replica.no_sync())

    def _autocast(self) -> AbstractContextManager[None]:
        enabled = self.plan.placement.amp
        return torch.autocast(self.group.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _done(
        self, state: Literal["complete", "stopped", "diverged"], *, reason: str = "", **result: Any
    ) -> Done:
        trained = self.step - self.first_step
        return Done(
            state=state, step=self.step, steps_trained=trained, reason=reason, result=result
        )


def evaluate(
    task: Task[Any], model: nn.Module, group: Group, *, split: Split, final: bool
) -> dict[str, float]:
    """The task's metrics on ``split``, each named after it: ``valid_ppl``, ``test_bleu``."""
    model.eval()
    with torch.no_grad():
        metrics = task.evaluate(model, group, split=split, final=final)
    return {f"{split}_{name}": value for name, value in metrics.items()}


def _replicate(model: nn.Module, group: Group) -> nn.Module:
    """The model as the loss sees it: in DistributedDataParallel when there are peers."""
    if group.world_size == 1:
        return model
    return DistributedDataParallel(model)
