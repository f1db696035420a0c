"""Optimizers by recipe, and the one place that writes a LR."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn, optim

from knee_tune.config.recipe import Optimizer
from knee_tune.errors import UserError
from knee_tune.schedules import Knee, Phased, Schedule
from knee_tune.tasks.base import Task

Groups = list[dict[str, Any]]
"""Parameter groups as torch's optimizers take them."""


def optimizer_of(task: Task[Any], model: nn.Module) -> optim.Optimizer:
    """Build the optimizer that the task makes for ``model``, or else its recipe's.

    Groups of one that the task makes have the LRs that they were given, relative to the
    optimizer's own: as ``lr_scale``, for the schedule is what says how high. The same as
    ``lr_scale`` in a group. UserError for what is no optimizer, or has a wrong ``decay_scale``.
    """
    own = task.build_optimizer(model)
    if own is None:
        return build_optimizer(task.recipe.optimizer, model)
    if not isinstance(own, optim.Optimizer):
        raise UserError(
            f"{type(task).__name__}.build_optimizer: {type(own).__name__} is no "
            "torch.optim.Optimizer; return one, or None for the recipe's"
        )
    take_up(own)
    return own


def build_optimizer(
    spec: Optimizer, model: nn.Module, *, stacked: Mapping[str, nn.Parameter] | None = None
) -> optim.Optimizer:
    """Build the recipe's optimizer of a model; the LR stays 0 until the loop writes it.

    ``stacked``: of the parameters of many such models, (rows, ...) each, by their names in
    ``model``. UserError if the library that the optimizer is from is missing.
    """
    named = [(name, own) for name, own in model.named_parameters() if own.requires_grad]
    parameters = [(stacked[name] if stacked else own, own.dim()) for name, own in named]
    if spec.weight_decay_on == "all":
        groups: Groups = [{"params": [parameter for parameter, _ in parameters]}]
    else:
        groups = [
            {"params": [p for p, dim in parameters if dim > 1]},
            {"params": [p for p, dim in parameters if dim <= 1], "weight_decay": 0.0},
        ]
    return _KINDS[spec.name].build(spec, [group for group in groups if group["params"]], model)


def why_uneven(task: Task[Any]) -> str:
    """Why models with LRs of their own cannot share the task's optimizer; empty if they can.

    They can where it is declared that every weight moves by LR x a direction of its own.
    """
    if type(task).build_optimizer is not Task.build_optimizer:
        return "the task has an optimizer of its own, which may mix models"
    if any(getattr(type(task), name) is not getattr(Task, name) for name in ("state", "measured")):
        return "the task has a state besides its model and its optimizer"
    name = task.recipe.optimizer.name
    if not _KINDS[name].elementwise:
        return f"{name} updates whole tensors, or not in proportion to the LR"
    return ""


def take_up(optimizer: optim.Optimizer) -> None:
    """Give every group without a ``lr_scale`` its LR over the optimizer's own as one.

    A scheduler that was made before has noted what a group's LR was. UserError for a
    ``decay_scale`` that :func:`write_lrs` would refuse.
    """
    usual = float(optimizer.defaults.get("lr", 0.0))
    for group in optimizer.param_groups:
        own = float(group.get("initial_lr", group["lr"]))
        group.setdefault("lr_scale", own / usual if usual else 1.0)
        _decay_scale(group)


def write_lrs(optimizer: optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Set the LRs of update ``step``: the schedule's, times each group's ``lr_scale`` (1 if none).

    A group with a ``decay_scale`` has a decay of so many times the steps
    (``Knee.with_decay_scale``); schedules that are no Knee are the same for all groups. No group
    may decay before the schedule does, or a trunk, which ends at the schedule's knee, would hold
    weights that have decayed: UserError for a scale above 1. No scheduler state exists, so none can
    be restored wrong.
    """
    lr = schedule.lr(step)
    for group in optimizer.param_groups:
        scale, own = _decay_scale(group), lr
        if isinstance(schedule, Knee | Phased) and scale != 1:
            own = _scaled(schedule, scale).lr(step)
        _write(group, own)


def write_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set one LR for all groups, times each group's ``lr_scale`` (1 if it has none)."""
    for group in optimizer.param_groups:
        _write(group, lr)


@lru_cache(maxsize=64)  # asked for anew at every step
def _scaled(schedule: Knee | Phased, scale: float) -> Knee | Phased:
    return schedule.with_decay_scale(scale)


def _write(group: dict[str, Any], lr: float) -> None:
    scaled = lr * group.get("lr_scale", 1.0)
    if isinstance(group["lr"], Tensor):  # of an optimizer that is compiled or in a graph
        group["lr"].fill_(scaled)
    else:
        group["lr"] = scaled


def _decay_scale(group: dict[str, Any]) -> float:
    scale = group.get("decay_scale", 1.0)
    if not (isinstance(scale, int | float) and 0 < scale <= 1):
        raise UserError(
            f"decay_scale={scale!r} of a parameter group: it must be above 0 and at most 1, for "
            "trunks end where the first group decays; leave it out of the group with the longest "
            "decay, and give the others their share of it"
        )
    return scale


@torch.no_grad()
def step_each(
    optimizer: optim.Optimizer,
    parameters: list[nn.Parameter],
    before: list[Tensor],
    lrs: Tensor,
) -> None:
    """Update stacked models, (rows, ...) each, once, with a LR for every row (rows,).

    torch's optimizers take one LR. Those that are elementwise move by LR x direction, the decoupled
    weight decay too, so they step with LR 1 (times the group's ``lr_scale``) and every row then
    goes its own share of that way. ``before``: memory for the parameters as they were.
    """
    write_lr(optimizer, 1.0)
    torch._foreach_copy_(before, [*parameters])
    optimizer.step()
    for parameter, old in zip(parameters, before, strict=True):
        # From the old ones on: 1 - LR would be rounded, which a small LR cannot bear.
        torch.lerp(old, parameter, lrs.view(-1, *[1] * (old.dim() - 1)), out=parameter)


class MuonWithAdamW(optim.Optimizer):
    """Muon for matrices, AdamW for everything else, as one optimizer.

    Muon's steps are as long as AdamW's (``match_rms_adamw``), so one LR suits both.
    """

    def __init__(self, matrices: Groups, others: Groups, *, spec: Optimizer) -> None:
        decay: dict[str, Any] = {"lr": 0.0, "weight_decay": spec.weight_decay}
        self._parts: dict[str, optim.Optimizer] = {}
        if matrices:
            self._parts["muon"] = optim.Muon(
                matrices, momentum=spec.momentum, adjust_lr_fn="match_rms_adamw", **decay
            )
        if others:
            self._parts["adamw"] = optim.AdamW(others, betas=spec.betas, eps=spec.eps, **decay)
        groups = [
            group | {"part": name}
            for name, part in self._parts.items()
            for group in part.param_groups
        ]
        super().__init__(groups, decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():
            # Anew every time: to load a state replaces the groups and the state.
            part.param_groups = [group for group in self.param_groups if group["part"] == name]
            part.state = self.state
            part.step()
        return loss


# The optimizers a recipe may name.


def _from_torch(spec: Optimizer, groups: Groups, kind: str, **options: Any) -> optim.Optimizer:
    made: optim.Optimizer = getattr(optim, kind)(
        groups, lr=0.0, weight_decay=spec.weight_decay, **options
    )
    return made


def _sgd(spec: Optimizer, groups: Groups, _: nn.Module) -> optim.Optimizer:
    return _from_torch(spec, groups, "SGD", momentum=spec.momentum, fused=True)


def _adam(kind: str, **options: Any) -> "Build":
    """One of the Adam family; ``fused`` takes a third of the time, for any size of model."""

    def build(spec: Optimizer, groups: Groups, _: nn.Module) -> optim.Optimizer:
        return _from_torch(spec, groups, kind, betas=spec.betas, eps=spec.eps, **options)

    return build


def _adafactor(spec: Optimizer, groups: Groups, _: nn.Module) -> optim.Optimizer:
    return _from_torch(spec, groups, "Adafactor")


def _muon(spec: Optimizer, groups: Groups, model: nn.Module) -> optim.Optimizer:
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}

    def of(group: dict[str, Any], *, matrices: bool) -> dict[str, Any]:
        params = [p for p in group["params"] if (p.dim() == 2 and id(p) not in tables) == matrices]
        return group | {"params": params}

    parts = ([of(group, matrices=matrices) for group in groups] for matrices in (True, False))
    hidden, others = ([group for group in part if group["params"]] for part in parts)
    return MuonWithAdamW(hidden, others, spec=spec)


def _lamb(spec: Optimizer, groups: Groups, _: nn.Module) -> optim.Optimizer:
    """LAMB as in its paper: every tensor adapts, and nobody but the loop clips."""
    made: optim.Optimizer = _timm(spec, "lamb", "Lamb")(
        groups,
        lr=0.0,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        always_adapt=True,
        max_grad_norm=None,
    )
    return made


def _lion(spec: Optimizer, groups: Groups, _: nn.Module) -> optim.Optimizer:
    made: optim.Optimizer = _timm(spec, "lion", "Lion")(
        groups, lr=0.0, betas=spec.betas, weight_decay=spec.weight_decay
    )
    return made


def _timm(spec: Optimizer, module: str, kind: str) -> Any:
    try:
        return getattr(import_module(f"timm.optim.{module}"), kind)
    except ModuleNotFoundError as error:
        raise UserError(
            f"recipe.optimizer.name={spec.name}: {error.name} is not installed; "
            "pip install 'knee-tune[optimizers]'"
        ) from error


Build = Callable[[Optimizer, Groups, nn.Module], optim.Optimizer]


@dataclass(frozen=True)
class _Kind:
    build: Build
    elementwise: bool = False
    """Every weight moves by LR x a direction that no other weight has a part in, weight decay too.
    So models can be stacked, and have LRs of their own."""


_KINDS: Mapping[str, _Kind] = {
    "sgd": _Kind(_sgd, elementwise=True),
    "adam": _Kind(_adam("Adam", fused=True), elementwise=True),
    "adamw": _Kind(_adam("AdamW", fused=True), elementwise=True),
    # As their authors wrote it: the weight decay is no part of the gradient.
    "radam": _Kind(_adam("RAdam", decoupled_weight_decay=True), elementwise=True),
    "nadam": _Kind(_adam("NAdam", decoupled_weight_decay=True), elementwise=True),
    "adafactor": _Kind(_adafactor),
    "lamb": _Kind(_lamb),
    "lion": _Kind(_lion, elementwise=True),
    "muon": _Kind(_muon),
}
