"""Memory that ran out, however Python and torch say it."""

import torch

_ON_THE_CPU = "DefaultCPUAllocator: can't allocate memory"
"""torch raises a bare RuntimeError for it there."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that there was no memory left, on a GPU or beside it."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and _ON_THE_CPU in str(error))
