"""Models of one architecture as one batched model (``torch.func``), row by row.

Every parameter is a tensor (rows, ...); row r of all of them together is one model. Rows never mix:
the gradient of the summed loss is each row's own, and each row has a LR of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from knee_tune.plans.plan import Placement
from knee_tune.tasks.base import FusableTask
from knee_tune.tasks.seeding import stream_seed
from knee_tune.training.learner import autocast
from knee_tune.training.optimizer import build_optimizer, step_each

SCORED_ROWS = 16
"""Rows that are evaluated at a time: a whole split for each of them has to fit into the cache."""

SCORED_ROWS_GPU = 512
"""The same on a GPU, which wants large ones."""

_MODEL, _OPTIMIZER, _KEPT, _SUMS = "model/", "optimizer/", "kept/", "sums"

Rows = dict[str, Tensor]
"""The state of some rows: every tensor is (rows, ...). Any rows of it are such a state too."""


class _Sums(nn.Module):
    """A task's loss or scores of one model, as a module whose weights can be swapped."""

    def __init__(
        self, of_batch: Callable[[nn.Module, Any], tuple[Any, float]], model: nn.Module
    ) -> None:
        super().__init__()
        self.model, self._of_batch = model, of_batch
        self.count = 0.0
        """What the last sums were over: the same for every row."""

    def forward(self, batch: Any) -> Any:
        sums, self.count = self._of_batch(self.model, batch)
        return dict(sums) if isinstance(sums, Mapping) else sums  # vmap knows no other mapping

    def with_weights(self, weights: Mapping[str, Tensor], batch: Any) -> Any:
        """Compute the sums over ``batch`` with these weights instead of the model's own."""
        named = {f"model.{name}": weight for name, weight in weights.items()}
        return functional_call(self, named, (batch,))


class BatchedModel:
    """Rows that train together, with their optimizer."""

    def __init__(self, task: FusableTask[Any], rows: Rows, placement: Placement) -> None:
        self._task, self._placement = task, placement
        device = rows[_SUMS].device
        self._module = task.build_model().to(device)
        self._losses, self._scores = _Sums(task.loss, self._module), _Sums(task.score, self._module)
        self.sums = rows[_SUMS]
        """(rows, 2) float64: training losses and what they sum over, since the last look."""
        self._stored = {
            name: nn.Parameter(_turned(rows[_MODEL + name]).contiguous())
            for name, _ in self._module.named_parameters()
        }
        self.kept = _below(_KEPT, rows)
        """The weights that each row keeps; empty if none did yet."""
        self._parameters = list(self._stored.values())
        self._before = [torch.empty_like(parameter) for parameter in self._parameters]
        self._optimizer = build_optimizer(task.recipe.optimizer, self._module, stacked=self._stored)
        _load_optimizer(self._optimizer, self._stored, _below(_OPTIMIZER, rows))

    def __len__(self) -> int:
        return len(self.sums)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Every parameter, (rows, ...): views of what the optimizer moves."""
        return {name: _turned(parameter) for name, parameter in self._stored.items()}

    def update(self, micro_batches: Sequence[Any], lrs: Tensor) -> None:
        """Update every row once; leaves of the batches are (rows, ...), ``lrs`` (rows,)."""
        self._module.train()
        self._optimizer.zero_grad()
        sums = torch.zeros_like(self.sums)
        single, count = len(micro_batches) == 1, 0.0
        run = vmap(self._losses.with_weights, randomness="error")
        for batch in micro_batches:
            with autocast(self._placement):
                losses = run(self.weights, batch)
            count += self._losses.count
            total = losses.sum()
            (total / count if single else total).backward()
            sums[:, 0] += losses.detach()
        sums[:, 1] = count
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not single:
            torch._foreach_mul_(gradients, 1 / count)
        self._clip(gradients)
        step_each(self._optimizer, self._parameters, self._before, lrs)
        self.sums += sums

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """Clip each row's gradient by its own norm."""
        if self._task.recipe.clip_norm is None:
            return
        squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
        norms = torch.stack(squares).sum(0).sqrt()
        shrink = (self._task.recipe.clip_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shrink.view(-1, *[1] * (gradient.dim() - 1)))

    @torch.no_grad()
    def score(
        self, batches: Sequence[Any], weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The mean of every metric, (rows,) float64, with these weights or the rows' own."""
        self._module.eval()
        run = vmap(self._scores.with_weights, in_dims=(0, None), randomness="error")
        parts, at_once = [], SCORED_ROWS_GPU if self.sums.is_cuda else SCORED_ROWS
        for first in range(0, len(self), at_once):
            some = {
                name: weight[first : first + at_once]
                for name, weight in (weights or self.weights).items()
            }
            sums: dict[str, Tensor] = {}
            count = 0.0
            for batch in batches:
                with autocast(self._placement):
                    scores = run(some, batch)
                for name, value in scores.items():
                    sums[name] = sums.get(name, 0.0) + value.double()
                count += self._scores.count
            parts.append({name: value / count for name, value in sums.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def finite(self) -> Tensor:
        """Return which rows have finite weights only, (rows,) bool."""
        sums = [weight.flatten(1).sum(1) for weight in self.weights.values()]
        return torch.stack(sums).isfinite().all(0)

    @torch.no_grad()
    def keep(self, which: Tensor) -> None:
        """Keep the weights that these rows, (rows,) bool, have now."""
        if not self.kept:
            self.kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            self.kept[name][which] = weight.detach()[which]

    def rows(self) -> Rows:
        """The state of all rows."""
        optimizer = {
            f"{_OPTIMIZER}{name}/{key}": self._per_row(value)
            for name, parameter in self._stored.items()
            for key, value in self._optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        model = {_MODEL + name: weight.detach() for name, weight in self.weights.items()}
        kept = {_KEPT + name: weight for name, weight in self.kept.items()}
        return {**model, **optimizer, **kept, _SUMS: self.sums}

    def _per_row(self, value: Tensor) -> Tensor:
        """State of the optimizer; its counters of steps, which may lie on the CPU, for each row."""
        if value.dim():
            return _turned(value)
        return value.expand(len(self)).to(self.sums.device)

    def model_of(self, row: int, weights: Mapping[str, Tensor]) -> nn.Module:
        """One model with that row of ``weights``; valid until the next call."""
        state = {name: weight[row] for name, weight in weights.items()}
        self._module.load_state_dict(state, strict=False)
        return self._module


def fresh_rows(task: FusableTask[Any], seeds: Sequence[int], device: torch.device) -> Rows:
    """Make a row for each random seed, initialised as a single model of that seed is."""
    models = []
    for seed in seeds:
        torch.manual_seed(stream_seed(seed, "model"))
        models.append(dict(task.build_model().named_parameters()))
    stacked = {
        _MODEL + name: torch.stack([model[name].detach() for model in models]).to(device)
        for name in models[0]
    }
    return stacked | {_SUMS: torch.zeros(len(seeds), 2, dtype=torch.float64, device=device)}


def stack_batches(batches: Sequence[Any]) -> Any:
    """Stack batches: every tensor becomes (batches, ...)."""
    return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *batches)


def select(rows: Rows, which: Sequence[int]) -> Rows:
    """Return the rows ``which``, in that order; a row may come several times."""
    index = torch.tensor(which, dtype=torch.long, device=rows[_SUMS].device)
    return {name: value.index_select(0, index) for name, value in rows.items()}


def join(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def cut(rows: Rows, largest: int) -> list[Rows]:
    """Cut the rows into parts of about equal size, none above ``largest``."""
    count = len(rows[_SUMS])
    parts = math.ceil(count / largest)
    chunks = {name: value.tensor_split(parts) for name, value in rows.items()}
    return [{name: chunk[i].contiguous() for name, chunk in chunks.items()} for i in range(parts)]


def _turned(tensor: Tensor) -> Tensor:
    """Turn stacked matrices the way in which their gradients come: no step copies them."""
    return tensor.mT if tensor.dim() == 3 else tensor


def _below(prefix: str, rows: Rows) -> Rows:
    return {name[len(prefix) :]: value for name, value in rows.items() if name.startswith(prefix)}


def _load_optimizer(
    optimizer: torch.optim.Optimizer, stored: Mapping[str, nn.Parameter], state: Rows
) -> None:
    """Load the state of all rows; of counters of steps, and of NAdam's product of
    momenta, which torch keeps once for all, any row's.

    A fused optimizer has them where the parameters are, others on the CPU.
    """
    fused = optimizer.defaults.get("fused")
    for path, value in state.items():
        name, _, key = path.rpartition("/")
        scalar = value.dim() == 1 and key in ("step", "mu_product")
        if scalar:
            value = value[0].clone() if fused else value[0].cpu().clone()
        else:
            value = _turned(value).contiguous()
        optimizer.state[stored[name]][key] = value
