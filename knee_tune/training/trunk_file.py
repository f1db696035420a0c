"""A trunk that was trained elsewhere: its weights, and its optimizer's state, in one file.

The file is safetensors, so that opening it runs nobody's code. The model's tensors have the names
of its ``state_dict``; those of the optimizer are called ``optimizer/<parameter>/<key>``.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from knee_tune.config.study import TrunkFile
from knee_tune.errors import UserError
from knee_tune.files import checksum, whole

OPTIMIZER = "optimizer/"
"""What the names of an optimizer's tensors begin with."""

KIND = "optimizer"
"""In the file's metadata: the optimizer's class."""


def save_trunk(
    path: str | Path, model: nn.Module, optimizer: optim.Optimizer | None = None
) -> None:
    """Write the state of a training to ``path``, for ``knee-tune horizons --trunk PATH@STEP``.

    ``model``: not wrapped, its names as the task has them. ``optimizer``: a plain one of torch's;
    without it branches begin with a fresh one. The file appears whole or not at all.
    """
    tensors = {name: _own(value) for name, value in model.state_dict().items()}
    metadata = {}
    if optimizer is not None:
        metadata[KIND] = type(optimizer).__name__
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{OPTIMIZER}{name}/{key}"] = _own(torch.as_tensor(value))
    path = Path(path)
    with whole(path) as draft:
        save_file(tensors, draft, metadata=metadata)


def _own(value: Tensor) -> Tensor:
    """A copy that shares its memory with no other tensor, as tied weights do."""
    return value.detach().cpu().contiguous().clone()


def load_trunk(file: TrunkFile, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Give ``model``, and ``optimizer`` if its state is there, what the file has.

    UserError if it is no such file, of another model, or no longer the file that was asked for.
    """
    tensors, kind = _read(file)
    of_optimizer = {name: value for name, value in tensors.items() if name.startswith(OPTIMIZER)}
    state = {name: value for name, value in tensors.items() if name not in of_optimizer}
    _check_model(file, model, state)
    model.load_state_dict(state, strict=False)  # of tied weights one name is enough
    if of_optimizer:
        own = type(optimizer)
        if kind not in (None, own.__name__):
            raise _refused(file, f"its optimizer is {kind}, this one {own.__name__}")
        if own.state_dict is not optim.Optimizer.state_dict:
            raise _refused(file, f"{own.__name__} takes no state from a file; leave it out")
        _load_optimizer(file, model, optimizer, of_optimizer)


def _refused(file: TrunkFile, why: str) -> UserError:
    return UserError(f"`trunk` {file.path}: {why}; see knee_tune.save_trunk")


def _read(file: TrunkFile) -> tuple[dict[str, Tensor], str | None]:
    try:
        if checksum(file.path) != file.sha256:
            raise UserError(f"`trunk` {file.path}: has changed since the study began")
        with safe_open(file.path, framework="pt") as found:
            tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
            return tensors, (found.metadata() or {}).get(KIND)
    except FileNotFoundError:
        raise UserError(f"`trunk` {file.path}: is gone; put it back") from None
    except SafetensorError as error:
        raise _refused(file, f"no safetensors file ({error})") from None


def _check_model(file: TrunkFile, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """UserError unless ``state`` has every tensor of ``model``, in its shape, and no other."""
    own = model.state_dict()
    there = {value.data_ptr() for name, value in own.items() if name in state}
    missing = [n for n, v in own.items() if n not in state and v.data_ptr() not in there]
    if missing:
        raise _refused(file, f"it has no {_some(missing)}, which the model has")
    if foreign := [name for name in state if name not in own]:
        raise _refused(file, f"it has {_some(foreign)}, which the model has not")
    if other := [name for name, value in state.items() if value.shape != own[name].shape]:
        shapes = f"{_shape(state[other[0]])}, not {_shape(own[other[0]])}"
        raise _refused(file, f"{_some(other)}: {shapes} as in the model")


def _load_optimizer(
    file: TrunkFile, model: nn.Module, optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_name = defaultdict[str, dict[str, Tensor]](dict)
    for name, value in tensors.items():
        parameter, _, key = name.removeprefix(OPTIMIZER).rpartition("/")
        by_name[parameter][key] = value
    trained = [names[each] for group in optimizer.param_groups for each in group["params"]]
    if foreign := sorted(by_name.keys() - {*trained}):
        raise _refused(file, f"its optimizer trains {_some(foreign)}, this one does not")
    saved = optimizer.state_dict()
    saved["state"] = {place: by_name[name] for place, name in enumerate(trained) if name in by_name}
    optimizer.load_state_dict(saved)


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"
