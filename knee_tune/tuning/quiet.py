"""Keeps Optuna's own log out of the output: our lines say what happens."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Our own lines say what happens; Optuna's log and its notes on experimental parts do not."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # A trial that goes on from a checkpoint may report a step again, with the same value.
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            yield
    finally:
        logger.setLevel(level)
