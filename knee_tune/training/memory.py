"""How the C library handles the memory of a step."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's names for what ``mallopt`` sets."""

_BLOCK = 1 << 30
"""Bytes: smaller blocks are kept."""


def keep_freed_memory() -> None:
    """Have the C library keep what the tensors of a step leave, for the next step.

    It gives large blocks back to the system at once, and every page of the next ones is fetched
    and zeroed again: a quarter of the time of a small model's step. Only glibc has this switch.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, _BLOCK)
