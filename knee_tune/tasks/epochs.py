"""Where in its epochs a run goes on."""

from collections.abc import Iterator
from itertools import count


def epochs_after(start_step: int, steps: int) -> Iterator[tuple[int, range]]:
    """Every epoch (from 0) of ``steps`` steps, and those of them after ``start_step``; for ever."""
    epoch, made = divmod(start_step, steps)
    yield epoch, range(made, steps)
    yield from ((later, range(steps)) for later in count(epoch + 1))
