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

from knee_tune.config.recipe import averaged
from knee_tune.config.study import TrunkFile
from knee_tune.errors import first_line
from knee_tune.plans.plan import Placement, TrainPlan
from knee_tune.tasks.base import FusableTask, Task
from knee_tune.training.batched_model import (
    BatchedModel,
    Rows,
    cut,
    fresh_rows,
    join,
    select,
    stack_batches,
)
from knee_tune.training.checkpoint import save_weights
from knee_tune.training.learner import Finished, named
from knee_tune.training.optimizer import why_uneven
from knee_tune.workers.group import Group

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's names for what ``mallopt`` sets."""

_BLOCK = 1 << 30
"""Bytes: smaller blocks of memory are kept."""

MOST_ROWS = 512
"""Rows of one batched model at most: more of them gain nothing on a CPU, and cost memory."""

MOST_ROWS_GPU = 4096
"""The same on a GPU."""

_Table = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Row:
    """Replicas that are the same model so far."""

    replicas: list[int]
    representative: int
    """The replica whose seed and LRs the row trains with, and that its steps are counted for."""
    parts: int
    """The step at which their LRs differ for the first time; beyond the budget if they never do."""


class FusedModels:
    """See :class:`~knee_tune.training.learner.Learner`."""

    mesh: tuple[int, ...] = ()

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
        self._batched: list[tuple[BatchedModel, list[Row]]] = []
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
        if any(row.parts <= step for row in self._rows):
            self._branch(step)
        seeds = sorted({self._seeds[row.representative] for row in self._rows})
        drawn = [next(self._batches_of(seed, step)) for seed in seeds]
        micro_batches = [stack_batches(parts) for parts in zip(*drawn, strict=True)]
        place = {seed: index for index, seed in enumerate(seeds)}
        device = self._group.device
        for batched, rows in self._batched:
            trained = [row.representative for row in rows]
            places = torch.tensor([place[self._seeds[each]] for each in trained]).to(device)
            lrs = torch.from_numpy(self._lrs[trained, step - 1]).to(device)
            batched.update([_take(batch, places) for batch in micro_batches], lrs)

    def lost(self, *, thorough: bool = False) -> list[int]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        found = []
        for batched, rows in self._batched:
            sound = batched.sums.isfinite().all(1)
            if thorough:
                sound &= batched.finite()
            found += [
                r
                for row, ok in zip(rows, sound.tolist(), strict=True)
                if not ok
                for r in row.replicas
            ]
        return sorted(r for part in self._group.gather(found) for r in part)

    def measure(self, step: int) -> dict[int, dict[str, float]]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        measured: dict[int, dict[str, float]] = {}
        for batched, rows in self._batched:
            sums = batched.sums.tolist()
            batched.sums.zero_()
            metrics = {name: values.tolist() for name, values in self._scored(batched).items()}
            for index, row in enumerate(rows):
                loss, count = sums[index]
                common = {"train_loss": loss / max(1.0, count)}
                common |= {name: values[index] for name, values in metrics.items()}
                for replica in row.replicas:
                    measured[replica] = {"lr": float(self._lrs[replica, step - 1]), **common}
            self._group.alive()
        return self._gathered(measured)

    def keep(self, replicas: Iterable[int], *, mean_of: int = 1) -> None:
        """See :class:`~knee_tune.training.learner.Learner`; means are kept by single models."""
        wanted = set(replicas)
        for batched, rows in self._batched:
            which = torch.tensor([not wanted.isdisjoint(row.replicas) for row in rows])
            batched.keep(which.to(self._group.device))

    def leave(self, replicas: Iterable[int]) -> None:
        """See :class:`~knee_tune.training.learner.Learner`. Those of one row leave together."""
        gone = set(replicas)
        self._mine = [replica for replica in self._mine if replica not in gone]
        before, self._batched = self._batched, []
        for batched, rows in before:
            staying = [index for index, row in enumerate(rows) if gone.isdisjoint(row.replicas)]
            if len(staying) == len(rows):
                self._batched.append((batched, rows))
            elif staying:
                self._add([rows[index] for index in staying], select(batched.rows(), staying))

    def finish(self) -> dict[int, Finished]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        mine: dict[int, tuple[dict[str, float], Path]] = {}
        for batched, rows in self._batched:
            weights = batched.kept or dict(batched.weights)
            metrics = {name: v.tolist() for name, v in self._scored(batched, batched.kept).items()}
            for index, row in enumerate(rows):
                model = batched.model_of(index, weights)
                values = {name: values[index] for name, values in metrics.items()}
                for replica in row.replicas:
                    path = self._plan.checkpoint_dir / f"replica-{replica:04d}.safetensors"
                    save_weights(path, model, durable=False)
                    mine[replica] = values, path
        return {replica: Finished(*found) for replica, found in self._gathered(mine).items()}

    def state(self) -> dict[str, Any]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        replicas = [[[row.replicas, row.representative] for row in r] for _, r in self._batched]
        firsts = {r: self._first_steps[r] for r in self._mine}
        told = self._group.gather((replicas, firsts))
        states = self._group.collect([batched.rows() for batched, _ in self._batched])
        return {
            "owners": [rows for replicas, _ in told for rows in replicas],
            "first_steps": {r: step for _, firsts in told for r, step in firsts.items()},
            "rows": states,
        }

    def load(self, state: Mapping[str, Any], weights: Path | None) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        self._first_steps |= state["first_steps"]
        mine = set(self._mine)
        self._mine, self._batched = [], []
        for replicas, rows in zip(state["owners"], state["rows"], strict=True):
            places = [place for place, (each, _) in enumerate(replicas) if mine & set(each)]
            if places:
                kept = [self._row(*replicas[place]) for place in places]
                self._mine += [replica for row in kept for replica in row.replicas]
                self._add(kept, _moved(select(rows, places), self._group.device))

    def go_on_from(self, file: TrunkFile) -> None:
        """Refuse: who asks for such a trunk trains one by one."""
        raise TypeError("a batched model begins with step 1")

    def kept_weights(self) -> Path | None:
        """Return None: the kept weights are a part of the state."""
        return None

    @property
    def _rows(self) -> Iterator[Row]:
        return (row for _, rows in self._batched for row in rows)

    def _add(self, rows: list[Row], state: Rows) -> None:
        """Train these rows too, in batches of about equal size; a small last one takes them in."""
        largest = MOST_ROWS_GPU if self._group.device.type == "cuda" else MOST_ROWS
        if self._batched and len(self._batched[-1][1]) + len(rows) <= largest:
            batched, others = self._batched.pop()
            rows, state = others + rows, join([batched.rows(), state])
        for part in cut(state, largest):
            batched = BatchedModel(self._task, part, self._plan.placement)
            self._batched.append((batched, rows[: len(batched)]))
            rows = rows[len(batched) :]

    def _row(self, replicas: list[int], representative: int | None = None) -> Row:
        """A row of these replicas; represented by the one whose LR stays up longest if not told."""
        if representative is None:
            representative = max(replicas, key=lambda each: (self._lrs[each].sum(), -each))
        differ = (self._lrs[replicas] != self._lrs[representative]).any(0)
        parts = int(differ.argmax()) + 1 if differ.any() else self._plan.total_steps + 1
        return Row(replicas=replicas, representative=representative, parts=parts)

    def _branch(self, step: int) -> None:
        """Split rows whose replicas have different LRs at ``step``; their state is the same."""
        branches: list[Row] = []
        states: list[Rows] = []
        for batched, rows in self._batched:
            origins = []
            for index, row in enumerate(rows):
                if row.parts > step:
                    continue
                by_lr: dict[float, list[int]] = {}
                for replica in row.replicas:
                    by_lr.setdefault(float(self._lrs[replica, step - 1]), []).append(replica)
                own = float(self._lrs[row.representative, step - 1])
                rows[index] = self._row(by_lr.pop(own), row.representative)
                for replicas in by_lr.values():
                    branch = self._row(replicas)
                    self._first_steps[branch.representative] = step - 1
                    branches.append(branch)
                    origins.append(index)
            if origins:
                states.append(select(batched.rows(), origins))
        if branches:
            self._add(branches, join(states))

    def _batches_of(self, seed: int, step: int) -> Iterator[Sequence[Any]]:
        if seed not in self._batches:
            task = self._task.with_seed(seed)
            self._batches[seed] = iter(task.train_batches(step - 1, self._alone))
        return self._batches[seed]

    def _scored(
        self, batched: BatchedModel, weights: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        if self._held_out is None:
            self._held_out = list(self._task.eval_batches("valid", self._alone))
        return named("valid", batched.score(self._held_out, weights))

    def _gathered(self, mine: dict[int, Any]) -> dict[int, Any]:
        """Gather what every rank has of its own replicas."""
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
    """Return this rank's replicas, about as many as any other's.

    Those of one random seed and first LR have a trunk in common, and stay together.
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
    """Take for every row the batch of its random seed: every tensor becomes (rows, ...)."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf.index_select(0, places), batch)


def keep_freed_memory() -> None:
    """Have the C library keep what the tensors of a step leave, for the next step.

    It gives large blocks back to the system at once, and every page of the next ones is fetched
    and zeroed again: a quarter of the time of a small model's step. Only glibc has this switch.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, _BLOCK)


def why_unfusable(task: Task[Any]) -> str:
    """Why the task's models cannot train as replicas, in a few words; empty if they can."""
    if not isinstance(task, FusableTask):
        return "the task does not declare that its models can be batched"
    if task.shards:
        return "the task shards its model over the ranks"
    if averaged(task.recipe.keep):
        return "means of weights are kept of models that train one by one"
    if type(task).evaluate is not FusableTask.evaluate:
        return "the task evaluates its models in a way of its own"
    if reason := why_uneven(task) or _reason_in(task.build_model()):
        return reason
    try:
        _try(task)
    except Exception as error:  # whatever torch.func says to a model that it cannot batch
        return first_line(error)
    return ""


def _reason_in(model: nn.Module) -> str:
    """Name what would come out otherwise than one by one; empty if nothing would."""
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
    batched = BatchedModel(task, rows, Placement())
    micro_batches = next(iter(task.train_batches(0, group)))
    twice = [stack_batches([batch, batch]) for batch in micro_batches]
    batched.update(twice, torch.zeros(2))
    batched.score([next(iter(task.eval_batches("valid", group)))])
