"""Models whose parameters are sharded over the ranks: ``torch.distributed.fsdp.fully_shard``.

A rank has a part of every tensor, as a DTensor. It saves and loads that part alone, beside how the
tensor was split: on the same mesh these are the same bits. They are plain tensors, numbers and
texts, so that they load without pickle. The files of torch.distributed.checkpoint do not: their
metadata is a pickle. What those offer beyond this, another number of ranks, would be another run.

Nothing in here imports DTensor, which takes a second, before there is one.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from knee_tune.errors import UserError
from knee_tune.files import whole
from knee_tune.plans.identity import digest_of
from knee_tune.plans.plan import TaskFacts
from knee_tune.training.checkpoint import save_weights
from knee_tune.workers.group import Group

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

SHARD = "knee_tune.shard"
"""The key of a rank's part of a tensor, in the dictionary that stands for the tensor in a state."""


def is_sharded(value: Any) -> "TypeGuard[DTensor]":
    """Whether ``value`` is a tensor of which every rank has a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def mesh_of(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of the mesh that ``model`` is sharded over; empty if it is not.

    Of several meshes, as with tensor parallelism, the one with the most dimensions.
    """
    reshard(model)
    shapes = {tuple(mesh.shape) for mesh in _meshes(model)}
    return max(shapes, key=lambda shape: (len(shape), shape), default=())


def check_mesh(mesh: tuple[int, ...], facts: TaskFacts | None) -> None:
    """UserError if a run's model is not sharded as it was when its key was made."""
    if facts is not None and facts.mesh != mesh:
        raise UserError(
            f"the model is sharded over a mesh of {_shape(mesh)}, and was over {_shape(facts.mesh)}"
            " when the study looked at it; make the mesh from the world size and arguments alone"
        )


def _shape(mesh: tuple[int, ...]) -> str:
    return "x".join(map(str, mesh)) or "no ranks"


def reshard(model: nn.Module) -> None:
    """Have the parameters be shards again: a forward pass without a backward leaves them whole."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def local_part(value: Tensor) -> Tensor:
    """What this rank has of a tensor; of a plain one all of it."""
    return value.to_local() if is_sharded(value) else value


def with_part(value: Tensor, part: Tensor) -> Tensor:
    """A tensor that is split as ``value`` is, with this rank's ``part``."""
    return (
        _together(_apart(value) | {SHARD: part}, value.device_mesh) if is_sharded(value) else part
    )


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all ``tensors`` together, as a plain tensor, the same on every rank."""
    parts: dict[Any, list[Tensor]] = {}
    for each in tensors:
        parts.setdefault(each.device_mesh if is_sharded(each) else None, []).append(each)
    norms = [_whole(nn.utils.get_total_norm(part)) for part in parts.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if is_sharded(value) else value


# States, as a rank saves them.


def apart(state: Any) -> Any:
    """``state`` with this rank's part in place of every sharded tensor, and how it is split."""
    return pytree.tree_map(lambda leaf: _apart(leaf) if is_sharded(leaf) else leaf, state)


def together(state: Any, model: nn.Module) -> Any:
    """What :func:`apart` was given, on the meshes that ``model`` is sharded over."""
    meshes = {_name(mesh): mesh for mesh in _meshes(model)}

    def is_part(value: Any) -> bool:
        return isinstance(value, dict) and SHARD in value

    return pytree.tree_map(
        lambda leaf: _together(leaf, meshes[leaf["mesh"]]) if is_part(leaf) else leaf,
        state,
        is_leaf=is_part,
    )


def _apart(value: "DTensor") -> dict[str, Any]:
    return {
        SHARD: value.to_local().detach(),
        "mesh": _name(value.device_mesh),
        "placements": [_placed(each) for each in value.placements],
        "shape": list(value.shape),
        "stride": list(value.stride()),
    }


def _together(part: Mapping[str, Any], mesh: "DeviceMesh") -> "DTensor":
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    def placement(saved: Sequence[int]) -> Any:
        match saved:
            case [dim, factor]:
                return _StridedShard(dim, split_factor=factor)
            case [dim]:
                return Shard(dim)
        return Replicate()

    return DTensor.from_local(
        part[SHARD],
        mesh,
        [placement(each) for each in part["placements"]],
        run_check=False,
        shape=torch.Size(part["shape"]),
        stride=tuple(part["stride"]),
    )


def _placed(placement: Any) -> list[int]:
    """How a tensor is split over one dimension of its mesh; empty: it is not."""
    if placement.is_replicate():
        return []
    if placement.is_partial():
        raise UserError("a state holds a tensor that ranks have still to sum up; reduce it")
    factor = getattr(placement, "split_factor", None)
    return [placement.dim] if factor is None else [placement.dim, factor]


def _meshes(model: nn.Module) -> set["DeviceMesh"]:
    """Every mesh that a parameter or buffer is on."""
    return {value.device_mesh for value in _tensors(model) if is_sharded(value)}


def _name(mesh: "DeviceMesh") -> str:
    """What states call a mesh: this rank may be on several."""
    return digest_of({"ranks": mesh.mesh.tolist(), "dimensions": mesh.mesh_dim_names})


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


# The weights that are kept: one file of whole tensors, which any number of ranks can read.


def save_model_weights(path: Path, model: nn.Module, group: Group) -> None:
    """Write the weights of ``model`` from rank 0, gathered if they are sharded; on every rank."""
    if mesh_of(model):
        save_gathered(path, model, model.state_dict(), group)
    elif group.leads:
        save_weights(path, model)


def save_gathered(
    path: Path, model: nn.Module, weights: Mapping[str, Tensor], group: Group
) -> None:
    """Write ``weights``, sharded as those of ``model``, as one safetensors file of rank 0.

    Every rank calls it. Tensor by tensor: only rank 0 holds all of them at once, on its CPU.
    """
    tied = _tied(model)
    tensors = {}
    for name, value in weights.items():
        if name not in tied:
            gathered = _whole(value).detach()
            if group.leads:
                tensors[name] = gathered.cpu().contiguous()
    if group.leads:
        path.parent.mkdir(exist_ok=True)
        with whole(path, durable=True) as draft:
            save_file(tensors, draft, metadata=tied)


def load_model_weights(path: Path, model: nn.Module, group: Group) -> None:
    """Give ``model`` the weights in the file at ``path``; on every rank.

    Rank 0 reads for a sharded one, and gives every rank its part.
    """
    if not mesh_of(model):
        load_model(model, path)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    weights: dict[str, Any] = load_file(path) if group.leads else {}
    if group.leads:
        weights |= {name: weights[kept] for name, kept in _tied(model).items()}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)


def _tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one's too, and the name it is written by.

    A file of safetensors has every tensor once, as :func:`safetensors.torch.save_model` writes it.
    """
    first: dict[int, str] = {}
    named = sorted(model.named_parameters(remove_duplicate=False), key=lambda each: each[0])
    tied = {name: first.setdefault(id(value), name) for name, value in named}
    return {name: kept for name, kept in tied.items() if name != kept}
