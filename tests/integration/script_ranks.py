"""Training a script on real ranks: a folder of runs of one seed that may share a trunk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from knee_tune.plans.plan import SCRIPT, Placement, TaskOrder, TrainPlan, TrunkPlan
from knee_tune.schedules import Knee
from knee_tune.workers.protocol import (
    Callbacks,
    Decision,
    Failure,
    GroupRunner,
    Outcome,
    Report,
)
from tests.integration.runs import done, living_ranks, same

STEPS, EVERY, SHARED = 24, 8, 10
"""Steps of a run and from one evaluation to the next; the step at which branches may leave."""

OnReport = Callable[[Report], Decision]


def go_on(_: Report) -> Decision:
    return Decision(stop=False)


class Ranks:
    """Trains one script in a folder, any number of times."""

    def __init__(
        self,
        runner: GroupRunner,
        script: Path,
        home: Path,
        *,
        ranks: int = 1,
        objective: str = "valid_loss",
    ) -> None:
        self._runner, self._script, self.home, self._ranks = runner, script, home, ranks
        self._objective = objective
        (home / "logs").mkdir(exist_ok=True)
        (home / "trunks").mkdir(exist_ok=True)
        self.curve: dict[int, dict[str, float]] = {}

    def order(self, name: str) -> TaskOrder:
        recipe = {
            "script": str(self._script),
            "steps": STEPS,
            "evaluate_every": EVERY,
            "objective": self._objective,
            "seed_lr": 0.05,
        }
        return TaskOrder(
            task=SCRIPT,
            recipe=recipe,
            seed=3,
            data_dir=self.home,
            placement=Placement(world_size=self._ranks),
            log_dir=self.home / "logs" / name,
        )

    def train(
        self, name: str, *, explore: int, trunk: bool = True, on_report: OnReport = go_on
    ) -> Outcome:
        """Train a schedule that explores so long, as a branch of the trunk of this folder."""
        self.curve = {}
        steps = (SHARED,) if explore >= SHARED else ()
        folder = self.home / "trunks" / "one"
        plan = TrainPlan(
            **dict(self.order(name)),
            schedule=Knee(seed_lr=0.05, total_steps=STEPS, explore_steps=explore),
            steps_per_evaluation=EVERY,
            checkpoint_dir=self.home / name,
            trunk=TrunkPlan(key="one", folder=folder, checkpoint_steps=steps) if trunk else None,
        )

        def heard(report: Report) -> Decision:
            self.curve[report.step] = report.metrics
            return on_report(report)

        return self._runner.run(plan, Callbacks(on_report=heard))

    def weights(self, name: str) -> dict[str, Any]:
        return load_file(self.home / name / "weights.safetensors")


def check_killed_rank(training: Ranks) -> None:
    """A run whose last rank is killed goes on, with the bits of the uninterrupted one."""
    done(training.train("alone", explore=18, trunk=False))
    uninterrupted = training.curve
    died = training.train("killed", explore=18, on_report=kill_last_rank(step=16))
    assert isinstance(died, Failure), died
    assert (died.kind, died.by_machine) == ("signal", True)
    again = done(training.train("killed", explore=18))
    assert again.first_step == SHARED
    assert training.curve == uninterrupted
    assert same(training.weights("killed"), training.weights("alone"))


def check_pruned(training: Ranks) -> None:
    """A run that is told to stop leaves its script on every rank at once, without weights."""
    ended = done(training.train("pruned", explore=18, on_report=lambda _: Decision(stop=True)))
    assert (ended.state, ended.step) == ("stopped", EVERY)
    assert not (training.home / "pruned" / "weights.safetensors").exists()


def kill_last_rank(*, step: int) -> OnReport:
    """Kill a group's last rank when it reports of ``step``."""

    def heard(report: Report) -> Decision:
        if report.step == step:
            living_ranks()[-1].kill()
        return Decision(stop=False)

    return heard
