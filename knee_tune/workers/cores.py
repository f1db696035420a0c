"""The cores that ranks and other processes of a machine share."""

import os


def usable_cores() -> int:
    """Cores that this process may use: those of the machine, or as many as it is bound to."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1
