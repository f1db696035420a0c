"""What a rank's next step depends on besides model and optimizer, as bytes that hold no code."""

import io
import random
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from knee_tune.errors import UserError


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be taken and put back: a scaler, an EMA, a data loader."""

    def state_dict(self) -> Any:
        """Return the state."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take the state over."""
        ...


State = Mapping[str, Stateful | torch.Generator]
"""What ``join`` was given, by names of the script's own."""


def states_of(state: State) -> dict[str, Any]:
    """Every entry's state; UserError naming the first that could not be loaded without pickle."""
    states = {
        name: each.get_state() if isinstance(each, torch.Generator) else each.state_dict()
        for name, each in state.items()
    }
    for name, value in states.items():
        for where, kind in needs_pickle(value):
            raise UserError(
                f"join: `state` {name!r} holds {kind}{where and f' at {where}'}, which cannot be "
                "saved without pickle; have its state_dict give tensors, numbers and texts"
            )
    return states


def put_back(state: State, saved: Mapping[str, Any]) -> None:
    """Give every entry the state that it had."""
    for name, each in state.items():
        if isinstance(each, torch.Generator):
            each.set_state(saved[name])
        else:
            each.load_state_dict(saved[name])


def check_state(state: State) -> None:
    """UserError for an entry that has no state, or one that cannot be saved."""
    for name, each in state.items():
        if not isinstance(each, Stateful | torch.Generator):
            raise UserError(
                f"join: `state` {name!r} is of {type(each).__name__}, which has no state_dict and "
                "load_state_dict; give it both, or leave it out"
            )
    states_of(state)


_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)


def needs_pickle(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Where in a state there is something that only pickle could load, and of which kind."""
    if isinstance(value, Mapping):
        if type(value).__module__ not in ("builtins", "collections"):
            yield where, _kind(value)
            return
        for key, each in value.items():
            yield from needs_pickle(each, f"{where}.{key}" if where else str(key))
    elif type(value) in (list, tuple, set, torch.Size):
        for index, each in enumerate(value):
            yield from needs_pickle(each, f"{where}[{index}]")
    elif not isinstance(value, Tensor) and type(value) not in _PLAIN:  # numpy's floats are floats
        yield where, _kind(value)


def _kind(value: Any) -> str:
    module = type(value).__module__.partition(".")[0]
    if isinstance(value, np.ndarray):
        return "a numpy array"
    return f"a {type(value).__name__} of {module}"


def pack(value: Any) -> Tensor:
    """Return a state as one tensor of bytes."""
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def unpack(packed: Tensor) -> Any:
    """Return what :func:`pack` was given, on the CPU; no code of it is run."""
    file = io.BytesIO(packed.numpy().tobytes())
    return torch.load(file, map_location="cpu", weights_only=True)


# The global generators of a process: what a script draws from without a generator of its own.


def generators(device: torch.device) -> dict[str, Any]:
    """The state of torch's, numpy's and Python's global generators."""
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "python": (version, torch.tensor(words), gauss),
    }


def set_generators(saved: Mapping[str, Any]) -> None:
    """Put the global generators where they were."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"])
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
