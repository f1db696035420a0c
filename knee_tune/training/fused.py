"""The replicas of a fused run: many models of one task, trained step by step as one batched model.

Replicas of one random seed are one row of the batch for as long as their LRs agree: so their trunk
is trained once, and a branch adds a row. Rows are spread over the ranks, each is trained by one.
"""

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from knee_tune.errors import first_line
from knee_tune.plans.plan import Placement, TrainPlan
from knee_tune.tasks.base import FusableTask, Task
from knee_tune.training.batched_model import (
    Pack,
    Rows,
    cut,
    fresh_rows,
    join,
    select,
    stack_batches,
)
from knee_tune.training.checkpoint import save_weights
from knee_tune.training.learner import Finished, named
from knee_tune.workers.group import Group

# How the C library handles the memory of a step.

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

"""glibc's names for what ``mallopt`` sets."""

_BLOCK = 1 << 30

"""Bytes: smaller blocks are kept."""


def keep_freed_memory() -> None:
    """Have the C library keep what the tensors of a step leave, for the next step.

    It gives large blocks back to the system at once, and every page of the next ones is fetched
    and zeroed again: a quarter of the time of a small model's step. Only glibc has this switch.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, _BLOCK)


# Whether a task's models can train as replicas of one batched model, and if not, why.


def why_unfusable(task: Task[Any]) -> str:
    """The reason in a few words; empty if it can be fused."""
    if not isinstance(task, FusableTask):
        return "the task does not declare that its models can be batched"
    if type(task).evaluate is not FusableTask.evaluate:
        return "the task evaluates its models in a way of its own"
    if reason := _reason_in(task.build_model()):
        return reason
    try:
        _try(task)
    except Exception as error:  # whatever torch.func says to a model that it cannot batch
        return first_line(error)
    return ""


def _reason_in(model: nn.Module) -> str:
    """What would come out otherwise than one by one."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"{kind} ({name}) would draw other masks than one by one"
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            return f"{kind} ({name}) keeps running statistics"
    buffers = [name for name, _ in model.named_buffers()]
    return f"the model has buffers ({', '.join(buffers)})" if buffers else ""


def _try(task: FusableTask[Any]) -> None:
    """Train two rows one step, and evaluate them."""
    group = Group()
    rows = fresh_rows(task, [task.seed, task.seed], group.device)
    pack = Pack(task, rows, Placement())
    micro_batches = next(iter(task.train_batches(0, group)))
    twice = [stack_batches([batch, batch]) for batch in micro_batches]
    pack.update(twice, torch.zeros(2))
    pack.score([next(iter(task.eval_batches("valid", group)))])


PACK_ROWS = 512

"""Rows of one pack at most: more of them gain nothing on a CPU, and cost memory."""

PACK_ROWS_GPU = 4096

"""The same on a GPU."""

_Table = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Row:
    """Replicas that are the same model so far."""

    owners: list[int]
    payer: int
    """The owner that the row's steps are counted for."""
    parts: int
    """The step at which their LRs differ for the first time; beyond the budget if they never do."""


class FusedModels:
    """See :class:`~knee_tune.training.learner.Learner`."""

    def __init__(self, task: FusableTask[Any], plan: TrainPlan, group: Group) -> None:
        self._task, self._plan, self._group = task, plan, group
        if group.device.type == "cpu":
            keep_freed_memory()
        self._alone = replace(group, rank=0, world_size=1)
        self._lrs = _lr_table(plan)
        self._seeds = [replica.seed for replica in plan.replicas]
        self._first_steps = dict.fromkeys(range(len(plan.replicas)), 0)
        self._mine = _share(plan, self._lrs, group)
        """Replicas that this rank trains."""
        self._packs: list[tuple[Pack, list[Row]]] = []
        self._batches: dict[int, Iterator[Sequence[Any]]] = {}
        self._held_out: list[Any] | None = None
        seeds = sorted({self._seeds[replica] for replica in self._mine})
        if seeds:
            rows = [self._row([r for r in self._mine if self._seeds[r] == seed]) for seed in seeds]
            self._add(rows, fresh_rows(task, seeds, group.device))

    @property
    def first_steps(self) -> Mapping[int, int]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        parts = self._group.gather({r: self._first_steps[r] for r in self._mine})
        return {replica: step for part in parts for replica, step in part.items()}

    def update(self, step: int) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        if any(row.parts <= step for _, rows in self._packs for row in rows):
            self._branch(step)
        seeds = sorted({self._seeds[row.payer] for _, rows in self._packs for row in rows})
        drawn = [next(self._batches_of(seed, step)) for seed in seeds]
        micro_batches = [stack_batches(parts) for parts in zip(*drawn, strict=True)]
        place = {seed: index for index, seed in enumerate(seeds)}
        device = self._group.device
        for pack, rows in self._packs:
            places = torch.tensor([place[self._seeds[row.payer]] for row in rows]).to(device)
            lrs = torch.from_numpy(self._lrs[[row.payer for row in rows], step - 1]).to(device)
            pack.update([_take(batch, places) for batch in micro_batches], lrs)

    def lost(self, *, thorough: bool = False) -> list[int]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        found = []
        for pack, rows in self._packs:
            sound = pack.sums.isfinite().all(1)
            if thorough:
                sound &= pack.finite()
            found += [
                r
                for row, ok in zip(rows, sound.tolist(), strict=True)
                if not ok
                for r in row.owners
            ]
        return sorted(r for part in self._group.gather(found) for r in part)

    def measure(self, step: int) -> dict[int, dict[str, float]]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        measured: dict[int, dict[str, float]] = {}
        for pack, rows in self._packs:
            sums = pack.sums.tolist()
            pack.sums.zero_()
            metrics = {name: values.tolist() for name, values in self._scored(pack).items()}
            for index, row in enumerate(rows):
                loss, count = sums[index]
                common = {"train_loss": loss / max(1.0, count)}
                common |= {name: values[index] for name, values in metrics.items()}
                for owner in row.owners:
                    measured[owner] = {"lr": float(self._lrs[owner, step - 1]), **common}
            self._group.alive()
        return self._gathered(measured)

    def keep(self, replicas: Iterable[int]) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        wanted = set(replicas)
        for pack, rows in self._packs:
            which = torch.tensor([not wanted.isdisjoint(row.owners) for row in rows])
            pack.keep(which.to(self._group.device))

    def leave(self, replicas: Iterable[int], step: int) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        gone = set(replicas)
        self._mine = [replica for replica in self._mine if replica not in gone]
        packs, self._packs = self._packs, []
        for pack, rows in packs:
            for row in rows:
                row.owners = [owner for owner in row.owners if owner not in gone]
                if row.owners and row.payer in gone:
                    self._hand_over(row, step)
            staying = [index for index, row in enumerate(rows) if row.owners]
            if len(staying) == len(rows):
                self._packs.append((pack, rows))
            elif staying:
                self._add([rows[index] for index in staying], select(pack.rows(), staying))

    def finish(self) -> dict[int, Finished]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        mine: dict[int, tuple[dict[str, float], Path]] = {}
        for pack, rows in self._packs:
            weights = pack.kept or dict(pack.weights)
            metrics = {name: v.tolist() for name, v in self._scored(pack, pack.kept).items()}
            for index, row in enumerate(rows):
                model = pack.model_of(index, weights)
                values = {name: values[index] for name, values in metrics.items()}
                for owner in row.owners:
                    path = self._plan.checkpoint_dir / f"replica-{owner:04d}.safetensors"
                    save_weights(path, model, durable=False)
                    mine[owner] = values, path
        return {owner: Finished(*found) for owner, found in self._gathered(mine).items()}

    def state(self) -> dict[str, Any]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        owners = [[[row.owners, row.payer] for row in rows] for _, rows in self._packs]
        firsts = {r: self._first_steps[r] for r in self._mine}
        told = self._group.gather((owners, firsts))
        states = self._group.collect([pack.rows() for pack, _ in self._packs])
        return {
            "owners": [pack for owners, _ in told for pack in owners],
            "first_steps": {r: step for _, firsts in told for r, step in firsts.items()},
            "rows": states,
        }

    def load(self, state: Mapping[str, Any], weights: Path | None) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        self._first_steps |= state["first_steps"]
        mine = set(self._mine)
        self._mine, self._packs = [], []
        for owners, rows in zip(state["owners"], state["rows"], strict=True):
            places = [place for place, (each, _) in enumerate(owners) if mine & set(each)]
            if places:
                kept = [self._row(*owners[place]) for place in places]
                self._mine += [owner for row in kept for owner in row.owners]
                self._add(kept, _moved(select(rows, places), self._group.device))

    def kept_weights(self) -> Path | None:
        """They are a part of the state."""
        return None

    def _add(self, rows: list[Row], state: Rows) -> None:
        """Train these rows too, in packs of about equal size; a small last pack takes them in."""
        largest = PACK_ROWS_GPU if self._group.device.type == "cuda" else PACK_ROWS
        if self._packs and len(self._packs[-1][1]) + len(rows) <= largest:
            pack, others = self._packs.pop()
            rows, state = others + rows, join([pack.rows(), state])
        for part in cut(state, largest):
            pack = Pack(self._task, part, self._plan.placement)
            self._packs.append((pack, rows[: len(pack)]))
            rows = rows[len(pack) :]

    def _row(self, owners: list[int], payer: int | None = None) -> Row:
        """A row of these replicas; counted for the one whose LR stays up longest if not told."""
        if payer is None:
            payer = max(owners, key=lambda owner: (self._lrs[owner].sum(), -owner))
        differ = (self._lrs[owners] != self._lrs[payer]).any(0)
        parts = int(differ.argmax()) + 1 if differ.any() else self._plan.total_steps + 1
        return Row(owners=owners, payer=payer, parts=parts)

    def _branch(self, step: int) -> None:
        """Rows whose replicas have different LRs at ``step`` become several of the same state."""
        branches: list[Row] = []
        states: list[Rows] = []
        for pack, rows in self._packs:
            origins = []
            for index, row in enumerate(rows):
                if row.parts > step:
                    continue
                by_lr: dict[float, list[int]] = {}
                for owner in row.owners:
                    by_lr.setdefault(float(self._lrs[owner, step - 1]), []).append(owner)
                rows[index] = self._row(by_lr.pop(float(self._lrs[row.payer, step - 1])), row.payer)
                for owners in by_lr.values():
                    branch = self._row(owners)
                    self._first_steps[branch.payer] = step - 1
                    branches.append(branch)
                    origins.append(index)
            if origins:
                states.append(select(pack.rows(), origins))
        if branches:
            self._add(branches, join(states))

    def _hand_over(self, row: Row, step: int) -> None:
        """What the row trains from here on is counted for another of its owners."""
        heir = self._row(row.owners)
        row.payer, row.parts = heir.payer, heir.parts
        self._first_steps[row.payer] = step

    def _batches_of(self, seed: int, step: int) -> Iterator[Sequence[Any]]:
        if seed not in self._batches:
            task = self._task.with_seed(seed)
            self._batches[seed] = iter(task.train_batches(step - 1, self._alone))
        return self._batches[seed]

    def _scored(
        self, pack: Pack, weights: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        if self._held_out is None:
            self._held_out = list(self._task.eval_batches("valid", self._alone))
        return named("valid", pack.score(self._held_out, weights))

    def _gathered(self, mine: dict[int, Any]) -> dict[int, Any]:
        """What every rank has of its own replicas, of all of them."""
        parts = self._group.gather(mine)
        everything = {replica: value for part in parts for replica, value in part.items()}
        return dict(sorted(everything.items()))


def _lr_table(plan: TrainPlan) -> _Table:
    """LR of every replica at every step, (replicas, steps)."""
    steps = range(1, plan.total_steps + 1)
    curves: dict[Any, list[float]] = {}
    for replica in plan.replicas:
        if replica.schedule not in curves:
            curves[replica.schedule] = [replica.schedule.lr(step) for step in steps]
    return np.array([curves[replica.schedule] for replica in plan.replicas], dtype=np.float32)


def _share(plan: TrainPlan, lrs: _Table, group: Group) -> list[int]:
    """This rank's replicas. Those of one random seed and first LR have a trunk in common, and stay
    together; about as many of them come to every rank.
    """
    trunks: dict[tuple[int, float], list[int]] = {}
    for replica, each in enumerate(plan.replicas):
        trunks.setdefault((each.seed, float(lrs[replica, 0])), []).append(replica)
    mine: list[int] = []
    placed = 0
    for _, replicas in sorted(trunks.items()):
        if placed * group.world_size // len(plan.replicas) == group.rank:
            mine += replicas
        placed += len(replicas)
    return sorted(mine)


def _moved(rows: Rows, device: torch.device) -> Rows:
    return {name: value.to(device) for name, value in rows.items()}


def _take(batch: Any, places: torch.Tensor) -> Any:
    """For every row the batch of its random seed: every tensor becomes (rows, ...)."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf.index_select(0, places), batch)
