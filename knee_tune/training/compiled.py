"""A model by ``torch.compile``, for the training step alone."""

from typing import cast

import torch
from torch import nn

from knee_tune.distributed.group import Group


def compiled(model: nn.Module, group: Group, *, accumulate: int, same_shapes: bool) -> nn.Module:
    """``model`` as training calls it, over the same parameters; ``model`` itself stays bare.

    Evaluation and checkpoints use the bare one: its names are those of every other run, and batches
    of another size compile nothing anew.

    On a GPU the step replays CUDA graphs, but for three cases. Among peers the exchange of
    gradients is no part of a graph. Of several micro-batches the first one's gradients lie in
    memory of a graph that the second one's replay writes over (``accumulate``: how many there are).
    And batches of many shapes would need a graph, and its memory, for each (not ``same_shapes``).
    """
    alone = group.device.type == "cuda" and group.world_size == 1
    graphs = alone and accumulate == 1 and same_shapes
    return cast(nn.Module, torch.compile(model, mode="reduce-overhead" if graphs else "default"))
