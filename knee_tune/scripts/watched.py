"""A run under watch: digests of all that its next step depends on, at the end of each."""

import gc
import hashlib
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from knee_tune.plans.plan import TrainPlan
from knee_tune.scripts.differences import Note, notes_file
from knee_tune.scripts.learner import ScriptLearner
from knee_tune.scripts.state import State, generators, states_of
from knee_tune.tasks.base import Task
from knee_tune.training.loop import TrainingRun
from knee_tune.training.sharded import local_part, reshard
from knee_tune.training.single import SingleModel
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Done

OWN_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)

DEPTH = 2
"""How far below a variable its objects are looked for: ``self.trainer.scaler``."""

ITEMS = 100
"""Of a container, so many are looked at."""


class Watch:
    """Notes what there is at the end of a step, in its rank's :func:`~.differences.notes_file`.

    ``state``: what is saved besides the model and its optimizers. ``draws_on``: whether a step
    goes on with the global generators where the one before left them, so that they count.
    """

    def __init__(
        self,
        plan: TrainPlan,
        group: Group,
        *,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        state: State,
        draws_on: bool,
    ) -> None:
        self._model, self._optimizers, self._state = model, optimizers, state
        self._draws_from = group.device if draws_on else None
        self._inputs: list[str] = []
        """Digests of what the model was given in this step."""
        self._forgotten: Mapping[str, Any] | None = None
        """What has a state that nobody saves; looked for when the first step ends."""
        self._notes = notes_file(plan.log_dir, rank=group.rank)
        self._notes.parent.mkdir(parents=True, exist_ok=True)
        inputs = self._inputs

        def see(model: nn.Module, args: Any, kwargs: Any) -> None:
            if model.training:
                inputs.append(digest([args, kwargs]))

        # a function alone: whoever copies the model copies nothing with it
        model.register_forward_pre_hook(see, with_kwargs=True)

    def begin(self) -> None:
        """Forget what the model was given before."""
        self._inputs.clear()

    def note(
        self,
        step: int,
        *,
        reported: Mapping[str, float],
        variables: Callable[[], Iterable[tuple[str, Any]]],
    ) -> None:
        """Write what there is. ``variables``: objects by their names, to be looked through once."""
        reshard(self._model)
        if self._forgotten is None:
            given = [*self._optimizers, *self._state.values()]
            self._forgotten = forgotten(variables(), self._model, given)
        parts: Note = {
            "inputs": {f"forward {n}": each for n, each in enumerate(self._inputs, 1)},
            "state": dict(_flat(states_of(self._state))),
            "model": {name: digest(value) for name, value in self._model.named_parameters()},
            "optimizer": dict(_of_optimizers(self._optimizers, self._model)),
            "buffers": {name: digest(value) for name, value in self._model.named_buffers()},
            "reported": {name: repr(value) for name, value in reported.items()},
            "forgotten": {name: digest(_state_of(o)) for name, o in self._forgotten.items()},
            "generators": {
                name: digest(value) for name, value in generators(self._draws_from).items()
            }
            if self._draws_from
            else {},
        }
        with self._notes.open("a", encoding="utf-8") as notes:
            notes.write(f"{json.dumps({'step': step, 'parts': parts})}\n")


class WatchedLearner(ScriptLearner):
    """A script's learner that notes every step."""

    def __init__(self, plan: TrainPlan, group: Group, *, model: nn.Module, **given: Any) -> None:
        super().__init__(plan, group, model=model, **given)
        self._watch = Watch(
            plan,
            group,
            model=self.model,
            optimizers=self._optimizers,
            state=self._own_state,
            draws_on=True,
        )

    def begin(self, step: int) -> None:
        """See :class:`~knee_tune.scripts.learner.ScriptLearner`."""
        super().begin(step)
        self._watch.begin()

    def check_lrs(self, step: int) -> None:
        """See :class:`~knee_tune.scripts.learner.ScriptLearner`; the step is over, and noted."""
        super().check_lrs(step)
        reported = self._reported if self._group.leads else {}
        frame = sys._getframe()
        self._watch.note(step, reported=reported, variables=lambda: _variables(frame))


def run_watched(task: Task[Any], run: TrainingRun) -> Done:
    """Train a task's run to its end, every step noted; an evaluation belongs to its step."""
    learner = run.learner
    if not isinstance(learner, SingleModel):
        raise TypeError("a watched run trains a single model")
    own = getattr(task, "simple", task)  # what its author calls self
    watch = Watch(
        run.plan,
        run.group,
        model=learner.model,
        optimizers=[learner.optimizer],
        state=learner.others,
        draws_on=False,
    )

    def note(step: int) -> None:
        told = run.history[-1:] if run.group.leads else []
        reported = [report.metrics for report in told if report.step == step]
        watch.note(
            step,
            reported=reported[0] if reported else {},
            variables=lambda: [(f"self{tail}", part) for tail, part in _parts(own).items()],
        )

    made = 0
    for step in run.steps():
        if made:
            note(made)
        watch.begin()
        learner.update(step)
        made = step
    if made:
        note(made)
    return run.finish()


def digest(value: Any) -> str:
    """Return a short name for the bits of a value: tensors, arrays, numbers, and containers.

    Of an object of any other kind the kind is all that counts.
    """
    found = hashlib.sha256()
    _feed(value, found)
    return found.hexdigest()[:16]


def _feed(value: Any, found: "hashlib._Hash") -> None:
    match value:
        case Tensor():
            value = local_part(value)
            dense = value.detach().to_dense() if value.is_sparse else value.detach()
            flat = dense.cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(f"{value.dtype} {tuple(value.shape)}\0".encode())
            found.update(flat.numpy().data)
        case np.ndarray() if value.dtype != object:
            found.update(f"{value.dtype} {value.shape}\0".encode())
            found.update(value.tobytes())
        case Mapping():
            found.update(f"{len(value)} named\0".encode())
            for name, each in value.items():
                found.update(f"{name}\0".encode())
                _feed(each, found)
        case list() | tuple():
            found.update(f"{len(value)} items\0".encode())
            for each in value:
                _feed(each, found)
        case None | bool() | int() | float() | complex() | str() | bytes() | np.generic():
            found.update(f"{value!r}\0".encode())
        case torch.dtype() | torch.device():
            found.update(f"{value}\0".encode())
        case _:
            found.update(f"{type(value).__module__}.{type(value).__qualname__}\0".encode())


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The digests in a state, by where they are: ``ema.shadow.0.weight``."""
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _flat(each, f"{where}.{name}" if where else str(name))
    else:
        yield where, digest(value)


def _of_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], model: nn.Module
) -> Iterator[tuple[str, str]]:
    """The digests of what the optimizers keep, as in ``exp_avg of 0.weight``."""
    names = {id(value): name for name, value in model.named_parameters()}
    for number, optimizer in enumerate(optimizers, 1):
        whose = f" of optimizer {number}" if len(optimizers) > 1 else ""
        for place, group in enumerate(optimizer.param_groups):
            for name, value in group.items():
                if name != "params":
                    yield f"{name} of group {place}{whose}", digest(value)
            for index, parameter in enumerate(group["params"]):
                name = names.get(id(parameter), f"parameter {index} of group {place}")
                for kept, value in optimizer.state.get(parameter, {}).items():
                    yield f"{kept} of {name}{whose}", digest(value)


def forgotten(
    variables: Iterable[tuple[str, Any]], model: nn.Module, given: Sequence[Any]
) -> dict[str, Any]:
    """Objects with a state that nobody saves, by their names: ``scaler (GradScaler)``.

    Those are generators, and all that has a ``state_dict`` and a ``load_state_dict``, but for the
    model and what was ``given`` to be saved. The names are those of ``variables`` and of their
    attributes; what has none is found all the same.
    """
    gc.collect()
    held = [part for each in given for part in (each, *_parts(each).values())]
    modules = [each for each in (model, *held) if isinstance(each, nn.Module)]
    saved = {id(each) for each in (*_GLOBAL, *held)}
    saved |= {id(part) for each in modules for part in each.modules()}
    tensors = {id(value) for value in _tensors(model)}

    def counts(value: Any) -> bool:
        kind = type(value)
        if id(value) in saved or kind.__module__.startswith("knee_tune."):
            return False
        if isinstance(value, nn.Module):  # a wrapper or a part of the model is saved with it
            return any(id(tensor) not in tensors for tensor in _tensors(value))
        return isinstance(value, OWN_GENERATORS) or _stateful(kind)

    found = {
        id(value): (f"{name} ({kind_of(value)})", value)
        for name, value in reversed([*_named(variables)])  # of several names the nearest
        if counts(value)
    }
    unnamed = [o for o in gc.get_objects() if _stateful(type(o)) and id(o) not in found]
    for number, value in enumerate(filter(counts, unnamed), 1):
        found[id(value)] = (f"object {number} ({kind_of(value)})", value)
    within = {
        id(part)
        for _, value in found.values()
        if isinstance(value, nn.Module)
        for part in value.modules()
        if part is not value
    }
    return dict(sorted(each for key, each in found.items() if key not in within))


_GLOBAL = (torch.default_generator, np.random.mtrand._rand, random._inst)
"""Generators that every process has; they are saved."""


def kind_of(value: Any) -> str:
    """Name the kind of an object as people write it: ``GradScaler``, ``numpy.random.Generator``."""
    kind = type(value)
    if not isinstance(value, OWN_GENERATORS):
        return kind.__qualname__
    library = kind.__module__.partition(".")[0]
    return f"{library}{'.random' if library == 'numpy' else ''}.{kind.__name__}"


def _stateful(kind: type) -> bool:
    return (
        not issubclass(kind, type)
        and hasattr(kind, "state_dict")
        and hasattr(kind, "load_state_dict")
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _state_of(value: Any) -> Any:
    """The state of what was found; None if it does not give one."""
    try:
        match value:
            case torch.Generator():
                return value.get_state()
            case np.random.Generator():
                return value.bit_generator.state
            case np.random.RandomState():
                return value.get_state()
            case random.Random():
                return value.getstate()
        return value.state_dict()
    except Exception:  # somebody's own code, which nobody asked for it
        return None


def _variables(frame: FrameType | None) -> Iterator[tuple[str, Any]]:
    """A script's variables, from the innermost function outwards."""
    while frame is not None and frame.f_globals.get("__name__") != "runpy":
        if not str(frame.f_globals.get("__name__", "")).startswith("knee_tune."):
            for name, value in frame.f_locals.items():
                if not name.startswith(("__", ".")):
                    yield name, value
        frame = frame.f_back


def _named(variables: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Objects by their names: the ``variables``, then what they hold."""
    waiting = deque((name, value, 0) for name, value in variables)
    seen = set[int]()
    while waiting:
        name, value, depth = waiting.popleft()
        if id(value) in seen or isinstance(value, (ModuleType, FunctionType, type, Tensor, str)):
            continue
        seen.add(id(value))
        yield name, value
        if depth < DEPTH:
            waiting += [(f"{name}{tail}", each, depth + 1) for tail, each in _parts(value).items()]


def _parts(value: Any) -> dict[str, Any]:
    """What an object holds, by what follows its name."""
    if type(value) is dict:
        return {f"[{name!r}]": each for name, each in [*value.items()][:ITEMS]}
    if type(value) in (list, tuple):
        return {f"[{index}]": each for index, each in enumerate(value[:ITEMS])}
    if isinstance(value, nn.Module):  # its children by the names that its author gave them
        inner = ("_modules", "_parameters", "_buffers")
        own = {name: each for name, each in vars(value).items() if name not in inner}
        return {f".{name}": each for name, each in (own | dict(value.named_children())).items()}
    return {f".{name}": each for name, each in getattr(value, "__dict__", {}).items()}
