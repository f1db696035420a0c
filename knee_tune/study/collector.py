"""Python's collector of cycles, where hundreds of thousands of objects come to stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no cycles meanwhile: it would look at all that is there again and again.

    Of 10,000 trials it takes two thirds of the time in which they are read. Another
    thread that does the same at that time may end this early, which costs time alone.
    """
    at_work = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if at_work:
            gc.enable()
