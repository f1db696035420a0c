"""A run's trunk: the knots that it may start from, and those that it leaves for other branches.

A knot is a checkpoint of warmup and explore, which runs of every explore fraction and budget have
in common. Writing one never ends a run, and nothing about them must be right: what a run cannot
use it trains itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from knee_tune.planning.checkpoint_folder import (
    checkpoint_path,
    checkpoint_paths,
    checkpoint_step,
)
from knee_tune.planning.keys import measured_alike
from knee_tune.planning.plan import TrainPlan, TrunkPlan
from knee_tune.schedules import Exploring
from knee_tune.training.checkpoint import save_checkpoint, sweep_drafts

ABANDONED_SECONDS = 3600.0
"""Age from which a half-written knot is nobody's: runs of one trunk write one after the other."""


class Trunk:
    """The trunk of one run, as its rank 0 sees it; ``say`` tells the people who watch."""

    def __init__(self, plan: TrainPlan, trunk: TrunkPlan, say: Callable[[str], None]) -> None:
        self.key = trunk.key
        self._plan, self._trunk, self._say = plan, trunk, say
        self._told = False

    def knots(self) -> list[Path]:
        """Everything that the run may start from, the highest first, sound or not."""
        sweep_drafts(self._trunk.folder, seconds=ABANDONED_SECONDS)
        found = checkpoint_paths(self._trunk.folder)
        return [knot for knot in found if self.reaches(checkpoint_step(knot))]

    def reaches(self, step: int) -> bool:
        """Whether the run is on its trunk at ``step``: a run of any budget would be the same."""
        plan, schedule = self._plan, self._plan.schedule
        on_trunk = isinstance(schedule, Exploring) and step <= schedule.knee_step
        return on_trunk and measured_alike(
            step, plan.evaluation_steps(), every=plan.steps_per_evaluation
        )

    def has_knot(self, step: int) -> bool:
        """Whether the state at ``step`` is one to keep."""
        return step in self._trunk.knots

    def wants(self, step: int) -> bool:
        """Whether the state at a knot is not there yet."""
        return not self._path(step).is_dir()

    def save(self, step: int, state: dict[str, Any], *, weights: Path | None) -> None:
        """Keep the state at ``step``. A full disk costs a word to the people who watch, no more."""
        try:
            save_checkpoint(
                self._trunk.folder,
                run=self.key,
                step=step,
                state=state,
                weights=weights,
                durable=False,
            )
        except OSError as error:
            if not self._told:
                self._say(f"{self._path(step)}: not saved, other runs train it again: {error}")
            self._told = True

    def _path(self, step: int) -> Path:
        return checkpoint_path(self._trunk.folder, step=step)
