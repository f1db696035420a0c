"""Slow imports, done while a worker group warms up on another core."""

import importlib
import threading


def preload(*, sampler: str) -> threading.Thread:
    """Import in the background what the trials will need; join it before importing anything else.

    What Optuna's storage needs takes half a second, its Dashboard (notes) about 2 s, torch (which
    the GP sampler uses) as long again; the warm process of the worker groups takes longer to start
    than all of them. One thread is fastest for the sampler's small matrices, and leaves the others
    to the ranks.
    """

    def load() -> None:
        for module in ("sqlalchemy.orm", "alembic.context", "optuna_dashboard"):
            importlib.import_module(module)
        if sampler == "gp":
            importlib.import_module("torch").set_num_threads(1)

    thread = threading.Thread(target=load, daemon=True, name="preload")
    thread.start()
    return thread
