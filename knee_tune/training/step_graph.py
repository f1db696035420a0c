"""A training step's forward and backward passes as one CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from knee_tune.distributed.group import Group

Backward = Callable[[Sequence[Any]], Tensor]
"""Turns the micro-batches of one step into gradients, and gives back sums that say of what."""

LAUNCHED_STEPS = 3
"""Steps that train kernel by kernel before one is recorded: by then cuDNN has chosen its
convolutions and ``torch.compile`` has compiled, which a recording cannot."""


def replayed(backward: Backward, group: Group, *, same_shapes: bool) -> Backward:
    """``backward`` as one replay per step, where a GPU can replay it; else as it is.

    Ranks exchange their gradients in ``backward``, which is left out of graphs; and batches of many
    shapes would need a graph, and its memory, for each.
    """
    graphs = group.device.type == "cuda" and group.world_size == 1 and same_shapes
    return StepGraph(backward) if graphs else backward


class StepGraph:
    """Replays what ``backward`` did in a step that it recorded.

    A step of a small network is hundreds of kernels of some microseconds each, which one thread of
    Python cannot launch as fast as a GPU runs them. A graph launches them at once.

    What a replay reads and writes lies where the recording left it: batches are copied in, the
    gradients stay the same tensors, and parameters must too. Random numbers follow the generator as
    they do without a graph.
    """

    def __init__(self, backward: Backward) -> None:
        self._backward = backward
        self._launched = 0
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._sums = torch.empty(0)

    def __call__(self, micro_batches: Sequence[Any]) -> Tensor:
        """The sums are valid until the next call."""
        if self._launched < LAUNCHED_STEPS:
            self._launched += 1
            return self._launch(micro_batches)
        if self._graph is None:
            self._graph = self._record(micro_batches)
        torch._foreach_copy_(self._inputs, _tensors(micro_batches))
        self._graph.replay()
        return self._sums

    def _launch(self, micro_batches: Sequence[Any]) -> Tensor:
        """On the stream that will be recorded: autograd holds on to the one it began on."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            sums = self._backward(micro_batches)
        here.wait_stream(self._stream)
        return sums

    def _record(self, micro_batches: Sequence[Any]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        inputs = pytree.tree_map_only(Tensor, torch.clone, list(micro_batches))
        # Other threads may go on with what a recording forbids: a loader's pins its memory.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._sums = self._backward(inputs)
        self._inputs = _tensors(inputs)
        return graph


def _tensors(micro_batches: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(list(micro_batches)) if isinstance(leaf, Tensor)]
