"""The trunk store for a training loop and an Optuna study of one's own."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from knee_tune.plans.identity import digest_of
from knee_tune.plans.plan import checkpoint_path, checkpoint_paths, checkpoint_step
from knee_tune.runs.trunks import TrunkStore
from knee_tune.schedules import Knee
from knee_tune.scripts.state import needs_pickle
from knee_tune.training.checkpoint import (
    ABANDONED_SECONDS,
    Checkpoint,
    DamagedError,
    UnreadableError,
    load_checkpoint,
    save_checkpoint,
    sweep_drafts,
)

TASK = "own"
"""How notes of the store call what is trained here."""


class TrunkCache:
    """States of training at the end of an explore phase, or within it, for others to start from.

    Trials of one seed LR and one warmup are the same training until the decay begins, whatever
    their explore fraction, budget and shape of the decay::

        cache = knee_tune.TrunkCache("trunks", limit=5 * 10**9)
        key = {"width": 64, "seed": seed}

        found = cache.nearest(knee, key=key)  # None, or a checkpoint with .step and .state
        ...                                   # load its state, train from found.step + 1 on
        if step == knee.knee_step:            # here others may branch
            cache.keep(knee, step, {"model": model.state_dict(), ...}, key=key)

    ``key`` holds all that decides the training besides the schedule, and that may change: sizes,
    data, batch size, random seed, a version of the code. JSON must be able to hold it. The version
    of torch is added. What is not in it, nor in the state, must follow from the step alone: the
    order of the data, dropout. No checkpoint is taken or given in a decay. Where parameter groups
    have a ``decay_scale`` above 1 the knee is that of the earliest, ``knee.with_decay_scale(...)``.

    Processes and threads may share ``folder``. Checkpoints are written whole, with checksums, hold
    no pickle, and take at most ``limit`` bytes in all: those that save least are dropped first.
    ValueError for a limit that is not positive.
    """

    def __init__(self, folder: str | Path, *, limit: int = 20 * 10**9) -> None:
        if limit <= 0:
            raise ValueError(f"limit must be positive, in bytes, got {limit}")
        self._store = TrunkStore(Path(folder), limit=limit)

    def nearest(
        self, knee: Knee, *, key: Mapping[str, Any], at_most: int | None = None
    ) -> Checkpoint | None:
        """Load the highest checkpoint that a run of ``knee`` may start from; None: from scratch.

        At its knee or before, and not above the step ``at_most``. Tensors are on the CPU. One that
        is damaged is warned of, and removed. ValueError for a ``key`` that JSON cannot hold.
        """
        name = _trunk(knee, key)
        self._store.root.mkdir(parents=True, exist_ok=True)
        self._store.note_use(name, TASK, knee)
        folder = self._store.root / name
        sweep_drafts(folder, seconds=ABANDONED_SECONDS)
        highest = knee.knee_step if at_most is None else min(at_most, knee.knee_step)
        for path in checkpoint_paths(folder):
            if checkpoint_step(path) > highest:
                continue
            try:
                return load_checkpoint(path, run=name)
            except DamagedError as error:
                if path.is_dir():  # otherwise another process has dropped it just now
                    warnings.warn(f"{path}: no good, not started from: {error}", stacklevel=2)
                    if not isinstance(error, UnreadableError):
                        shutil.rmtree(path, ignore_errors=True)
        return None

    def keep(
        self, knee: Knee, step: int, state: Mapping[str, Any], *, key: Mapping[str, Any]
    ) -> None:
        """Keep the ``state`` after ``step``, for every run that is the same up to there.

        If there is one already, that stays. A full disk is warned of and ends nothing. ValueError
        for a step in the decay, and for a state with anything but tensors, numbers, texts and
        containers of them: nothing else can be loaded without running code of the file.
        """
        if not 0 < step <= knee.knee_step:
            raise ValueError(
                f"step {step}: only steps 1..{knee.knee_step} of this schedule, before its decay, "
                "are those of other schedules too"
            )
        for where, kind in needs_pickle(state):
            raise ValueError(
                f"state: {where or 'it'} is {kind}, which cannot be loaded without pickle; "
                "give tensors, numbers and texts"
            )
        name = _trunk(knee, key)
        folder = self._store.root / name
        if checkpoint_path(folder, step=step).is_dir():
            return
        try:
            self._store.root.mkdir(parents=True, exist_ok=True)
            save_checkpoint(folder, run=name, step=step, state=dict(state), durable=False)
            self._store.shrink()
        except OSError as error:
            warnings.warn(f"{folder}: step {step} is not kept: {error}", stacklevel=2)


def _trunk(knee: Knee, key: Mapping[str, Any]) -> str:
    """Name the trunk of all runs that are the same until their decays begin."""
    try:
        own = json.loads(json.dumps(dict(key), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"key: JSON cannot hold it: {error}") from None
    parts = {
        "key": own,
        "seed_lr": knee.seed_lr,
        "warmup_steps": knee.warmup_steps,
        "torch": torch.__version__,
    }
    return f"{TASK}-{digest_of(parts)}"
