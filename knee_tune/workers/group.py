"""What one rank knows about its group, and the collectives a job needs."""

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def _say_nothing() -> None: ...


class _PlainValues(pickle.Unpickler):
    """Unpickler of what :meth:`Group.gather` admits; nothing that the bytes name is called."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib" and name.endswith("Path"):
            return Path
        if module == "torch" and (
            name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return getattr(torch, name)
        raise pickle.UnpicklingError(
            f"{module}.{name}: ranks gather numbers, texts, paths and containers of them"
        )


@dataclass(frozen=True)
class Group:
    """A rank's place in its worker group. A group of one has no process group at all."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    alive: Callable[[], None] = field(default=_say_nothing, compare=False, repr=False)
    """Give a sign of life; cheap enough to call at every batch of an evaluation."""
    own: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)
    """The process group that its collectives go through, on the CPU; None: the default one."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def _device(self) -> torch.device:
        """Where the tensors of its collectives are."""
        return self.device if self.own is None else torch.device("cpu")

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over the ranks, in float64, the same bits on every rank."""
        if self.world_size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        return [float(value) for value in self.sum_tensor(tensor).tolist()]

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of ``tensor`` over the ranks, in place, without waiting for the device."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.own)
        return tensor

    def agree(self, value: int) -> int:
        """Rank 0's ``value``, on every rank."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(int(value), device=self._device)
        dist.broadcast(tensor, src=0, group=self.own)
        return int(tensor.item())

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order, on every rank.

        Small ones only: numbers, texts, paths, shapes and dtypes of tensors, and tuples, lists,
        sets and dictionaries of them; UnpicklingError for anything else.
        """
        if self.world_size == 1:
            return [value]
        # Not all_gather_object: it would run what a stranger to the group put on the network.
        mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self._device)
        size = torch.tensor([len(mine)], device=self._device)
        sizes = [torch.empty_like(size) for _ in range(self.world_size)]
        dist.all_gather(sizes, size, group=self.own)
        padded = mine.new_zeros(int(max(sizes)))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded, group=self.own)
        return [
            _PlainValues(io.BytesIO(part[: int(size)].cpu().numpy().tobytes())).load()
            for part, size in zip(parts, sizes, strict=True)
        ]

    def collect(
        self, states: Sequence[Mapping[str, torch.Tensor]]
    ) -> list[dict[str, torch.Tensor]]:
        """Every rank's states, in rank order, on rank 0's CPU; empty on the others.

        Tensor by tensor: no rank holds more than its own and what arrives.
        """
        shapes = self.gather([{n: (v.shape, v.dtype) for n, v in each.items()} for each in states])
        if not self.leads:
            for state in states:
                for value in state.values():
                    dist.send(value.contiguous(), dst=0, group=self.own)
            return []
        found = [{name: value.cpu() for name, value in state.items()} for state in states]
        for rank, theirs in enumerate(shapes[1:], start=1):
            for state_shapes in theirs:
                state = {}
                for name, (shape, dtype) in state_shapes.items():
                    buffer = torch.empty(shape, dtype=dtype, device=self._device)
                    dist.recv(buffer, src=rank, group=self.own)
                    state[name] = buffer.cpu()
                found.append(state)
        return found

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier(group=self.own)


_ON_THE_CPU = "DefaultCPUAllocator: can't allocate memory"
"""torch raises a bare RuntimeError for it there."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that there was no memory left, on a GPU or beside it."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and _ON_THE_CPU in str(error))
