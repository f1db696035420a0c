"""Where a run starts: at its own newest checkpoint or its trunk's highest knot, if one is sound."""

import shutil
from collections.abc import Callable
from pathlib import Path

from knee_tune.distributed.group import Group
from knee_tune.errors import UserError
from knee_tune.planning.checkpoint_folder import checkpoint_paths, checkpoint_step
from knee_tune.planning.plan import TrainPlan
from knee_tune.training.checkpoint import (
    Checkpoint,
    DamagedError,
    UnreadableError,
    load_checkpoint,
    run_fingerprint,
    sweep_drafts,
)
from knee_tune.training.trunk import Trunk


def find_start(
    plan: TrainPlan, trunk: Trunk | None, group: Group, say: Callable[[str], None]
) -> Checkpoint | None:
    """The state to start from, the same on every rank; None: from scratch.

    What is no good is named to the people who watch, and removed: the run is going to save that
    step itself. What only could not be read stays where it is. UserError if the ranks do not see
    the same files.
    """
    candidates = _candidates(plan, trunk) if group.leads else None
    for folder, run in group.gather(candidates)[0] or []:
        found, problem, readable = None, "", True
        try:
            found = load_checkpoint(folder, run=run, verify=group.leads)
        except DamagedError as error:
            problem, readable = str(error), not isinstance(error, UnreadableError)
        problems = [text for text in group.gather(problem) if text]
        if not problems:
            return found
        # Asked now that every rank has looked: another driver may have dropped it in between.
        if group.agree(not problem and folder.is_dir()):
            raise UserError(
                f"{folder}: not every rank finds this checkpoint; "
                "put it on a file system that all their machines share"
            )
        if group.leads:
            say(f"{folder}: no good, starting from an earlier checkpoint: {problems[0]}")
            if readable:
                shutil.rmtree(folder, ignore_errors=True)
    return None


def _candidates(plan: TrainPlan, trunk: Trunk | None) -> list[tuple[Path, str]]:
    """Checkpoints and whose state they must be, the furthest first."""
    sweep_drafts(plan.checkpoint_dir)
    own = [(path, run_fingerprint(plan)) for path in checkpoint_paths(plan.checkpoint_dir)]
    knots = [] if trunk is None else [(path, trunk.key) for path in trunk.knots()]
    return sorted(own + knots, key=lambda found: checkpoint_step(found[0]), reverse=True)
