"""The one training loop. It knows schedules, steps and groups, but no task and no tuner."""

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Channel, Done, Report
from knee_tune.planning.checkpoint_folder import discard_checkpoints
from knee_tune.planning.plan import TrainPlan
from knee_tune.tasks.base import Task
from knee_tune.tasks.seeding import seed_step, stream_seed
from knee_tune.training.checkpoint import (
    WEIGHTS,
    run_fingerprint,
    save_checkpoint,
    save_weights,
    take_weights,
)
from knee_tune.training.evaluation import evaluate, non_finite
from knee_tune.training.optimizer import build_optimizer, write_lr
from knee_tune.training.start import find_start
from knee_tune.training.trunk import Trunk

KEPT = 2
"""Checkpoints kept of one run: the newest, and the one before in case the newest is damaged."""

FINITE_CHECK_STEPS = 50
"""Steps between two looks at the loss: a look waits for the GPU."""

CHECKPOINT_SECONDS = 10.0
"""Least time between two checkpoints of a run that goes on: training again for as long costs less
than writing one after every evaluation of a small model."""


class TrainingRun:
    """One rank's share of one training run, from where it may start to its last step."""

    def __init__(self, task: Task[Any], plan: TrainPlan, group: Group, channel: Channel) -> None:
        self.task, self.plan, self.channel = task, plan, channel
        self.group = replace(group, alive=lambda: channel.progress(self.step))
        torch.manual_seed(stream_seed(plan.seed, "model"))
        self.model = task.build_model().to(group.device)
        self.optimizer = build_optimizer(task.recipe.optimizer, self.model)
        self.trunk = Trunk(plan, plan.trunk, channel.line) if plan.trunk else None
        self.step = 0
        self.best: float | None = None
        self.lost = ""
        self._history: list[Report] = []
        self._train_sums = torch.zeros(2, dtype=torch.float64, device=group.device)
        self._load()
        self.first_step = self.step
        self.replica = _replicate(self.model, group)
        self._started = self._saved = time.monotonic()

    def run(self) -> Done:
        """Train to the last step, or until the driver says stop or the loss is lost."""
        if (stopped := self._tell_history()) is not None:
            return Done(state="stopped", step=stopped, first_step=stopped)
        if self.lost:
            return self._done("diverged", reason=self.lost)
        evaluations = set(self.plan.evaluation_steps())
        batches = self.task.train_batches(self.step, self.group)
        while self.step < self.plan.total_steps:
            self.step += 1
            self.update(next(batches))
            self.channel.progress(self.step)
            stop = False
            if self.step in evaluations:
                metrics = self._measure()
                if lost := non_finite(metrics):
                    return self._diverged(f"non-finite {lost}")
                # First tell, then save: a run that dies in between tells again what it told, but
                # never leaves anything out.
                stop = self._stop_wanted(metrics)
                self._keep_best(metrics)
                self._save(due=stop or self.step == self.plan.total_steps)
            elif self.step % FINITE_CHECK_STEPS == 0 and not self._train_sums.isfinite().all():
                return self._diverged("non-finite training loss or gradient")
            self._save_knot()
            if stop:
                return self._done("stopped")
        return self._finish()

    def update(self, micro_batches: Any) -> None:
        """One optimizer update; gradients are normalised by the global count, then clipped."""
        write_lr(self.optimizer, self.plan.schedule.lr(self.step))
        seed_step(self.group.device, self.plan.seed, self.group.rank, self.step)
        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        for index, batch in enumerate(micro_batches):
            with self._sync_gradients(last=index == len(micro_batches) - 1):
                with self._autocast():
                    loss, count = self.task.loss(self.replica, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([loss.detach().double(), sums.new_full((), count)])
        sums = self.group.sum_tensor(sums)
        norm = self._scale_and_clip(self.group.world_size / sums[1].clamp(min=1))
        self.optimizer.step()
        sums[0] += 0 * norm  # a lost gradient shows in the same number as a lost loss
        self._train_sums += sums

    def _scale_and_clip(self, scale: Tensor) -> Tensor:
        """The norm that the scaled gradient has before it is clipped."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, scale.float())
        norm = nn.utils.get_total_norm(gradients)
        if self.task.recipe.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(
                self.model.parameters(), self.task.recipe.clip_norm, norm
            )
        return norm

    def _measure(self) -> dict[str, float]:
        """Validation metrics, the mean training loss since the last look, and the LR."""
        loss, count = self._train_sums.tolist()
        self._train_sums.zero_()
        self._share_buffers()
        metrics = evaluate(self.task, self.model, self.group, split="valid", final=False)
        self.replica.train()
        return {
            "lr": self.plan.schedule.lr(self.step),
            "train_loss": loss / max(1.0, count),
            **metrics,
        }

    def _share_buffers(self) -> None:
        """Give every rank rank 0's BatchNorm statistics, which each of them gathered on its own.

        They are the ones that are saved and that the next step starts from on every rank.
        """
        if (
            isinstance(self.replica, DistributedDataParallel)
            and self.replica.will_sync_module_buffers()  # type: ignore[no-untyped-call]
        ):
            self.replica._sync_buffers()  # type: ignore[no-untyped-call]

    def _stop_wanted(self, metrics: Mapping[str, float]) -> bool:
        stop = False
        if self.group.leads:
            report = Report(
                step=self.step,
                total_steps=self.plan.total_steps,
                metrics=dict(metrics),
                seconds=time.monotonic() - self._started,
            )
            self._history.append(report)
            stop = self.channel.report(report).stop
        return self.group.agree(stop)

    def _tell_history(self) -> int | None:
        """Tell what was measured before the first step; the step at which the driver says stop.

        An uninterrupted run would have told it, and stopped there.
        """
        for report in self._history:
            if self.group.agree(self.group.leads and self.channel.report(report).stop):
                return report.step
        return None

    def _finish(self) -> Done:
        """Measure the kept weights once more, with the dear metrics."""
        if self.task.recipe.keep == "last":
            self._save_weights()
        self.group.barrier()
        load_model(self.model, self._weights)
        metrics = evaluate(self.task, self.model, self.group, split="valid", final=True)
        if lost := non_finite(metrics):
            return self._done("diverged", reason=f"non-finite {lost} of the final evaluation")
        return self._done("complete", metrics=metrics, weights=str(self._weights))

    @property
    def _weights(self) -> Path:
        return self.plan.checkpoint_dir / WEIGHTS

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        recipe = self.task.recipe
        watched = metrics[f"valid_{recipe.watched}"]
        if self.best is None or recipe.metric(recipe.watched).better(watched, self.best):
            self.best = watched
            if recipe.keep == "best":
                self._save_weights()

    def _save(self, *, due: bool) -> None:
        """Write the checkpoint that a retry starts from, if it is ``due`` or the last one is old.

        The randomness of a step follows from its number, so this is the whole state.
        """
        if not self.group.leads:
            return
        if due or time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
            folder, run = self.plan.checkpoint_dir, run_fingerprint(self.plan)
            save_checkpoint(
                folder, run=run, step=self.step, state=self._state(), weights=self._kept_weights()
            )
            discard_checkpoints(folder, keep=KEPT)
            self._saved = time.monotonic()

    def _save_knot(self) -> None:
        """Leave the state for other branches of the trunk; one that has lost its way is no use."""
        if self.group.leads and self.trunk is not None and self.trunk.wants(self.step):
            norm = nn.utils.get_total_norm(self.model.parameters())
            if norm.isfinite() and self._train_sums.isfinite().all():
                self.trunk.save(self.step, self._state(), weights=self._kept_weights())

    def _diverged(self, reason: str) -> Done:
        """A loss that was lost on the trunk is lost for every later branch: one trains up to it."""
        if self.group.leads and self.trunk is not None and self.trunk.reaches(self.step):
            self.trunk.save(self.step, {"lost": reason, "history": self._told()}, weights=None)
        return self._done("diverged", reason=reason)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "train_sums": self._train_sums,
            "history": self._told(),
        }

    def _told(self) -> str:
        """The history as JSON: one string is saved much faster than hundreds of numbers."""
        told = [report.model_dump(exclude={"type", "total_steps"}) for report in self._history]
        return json.dumps(told)

    def _kept_weights(self) -> Path | None:
        kept = self.task.recipe.keep == "best" and self.best is not None
        return self._weights if kept else None

    def _save_weights(self) -> None:
        if self.group.leads:
            save_weights(self._weights, self.model)

    def _load(self) -> None:
        """Go to where the run starts, the same on every rank."""
        found = find_start(self.plan, self.trunk, self.group, self.channel.line)
        if found is None:
            return
        self.step, state = found.step, found.state
        total = self.plan.total_steps
        self._history = [Report(total_steps=total, **told) for told in json.loads(state["history"])]
        self.lost = state.get("lost", "")
        if self.lost:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self._train_sums.copy_(state["train_sums"])
        if self.group.leads and found.weights is not None:
            take_weights(self._weights, found.weights)

    def _sync_gradients(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once per step, in the backward pass of its last micro-batch."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self.replica.no_sync())

    def _autocast(self) -> AbstractContextManager[None]:
        if not self.plan.placement.amp:
            return nullcontext()
        return torch.autocast(self.group.device.type, dtype=torch.bfloat16)

    def _done(
        self, state: Literal["complete", "stopped", "diverged"], *, reason: str = "", **result: Any
    ) -> Done:
        return Done(
            state=state, step=self.step, first_step=self.first_step, reason=reason, result=result
        )


def _replicate(model: nn.Module, group: Group) -> nn.Module:
    """The model as the loss sees it: in DistributedDataParallel when there are peers.

    It cuts its buckets anew after the first step, unless it looks for unused parameters, and the
    bits that three or more ranks sum up depend on the cut. So on a CPU, where a resumed run must
    have the bits of one that never stopped, it has to look for them.
    """
    if group.world_size == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=group.device.type == "cpu")
