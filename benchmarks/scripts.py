"""What it costs that knee-tune trains a script: until its first step, and at every step.

    python -m benchmarks.scripts [--repeats 5] [--steps 20000]

The start: from the order to the first step of ``examples/pytorch/train.py``, one rank and two,
forked from a warm process that has the script's imports ready, and by a fresh torchrun. The engine:
``run.steps()`` around an empty body in this process, with the notes and signs of life of a study,
for a model of a thousand numbers and one of a million, whose weights are looked at now and then.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from knee_tune.plans.plan import ENTRY, SCRIPT, Placement, TaskOrder, TrainPlan
from knee_tune.plans.step_note import begin_note
from knee_tune.records.values import StepCount
from knee_tune.schedules import Knee
from knee_tune.scripts.imports import installed_imports
from knee_tune.scripts.run import Rank, join
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Callbacks, Channel, Decision, GroupRunner, Report
from knee_tune.workers.torchrun import TorchrunRunner

EXAMPLE = Path(__file__).parents[1] / "examples" / "pytorch" / "train.py"


class Listening(Channel):
    """A driver's line that leads nowhere."""

    def report(self, report: Report) -> Decision:
        """Go on."""
        return Decision(stop=False)

    def progress(self, step: int) -> None:
        """Look at the clock, as a rank's line does."""
        time.monotonic()

    def line(self, text: str) -> None:
        """Nothing."""


def plan(home: Path, *, steps: int, ranks: int = 1) -> TrainPlan:
    """A run of the example, or of whoever joins with it."""
    every = max(1, steps // 10)
    recipe = {
        "script": str(EXAMPLE),
        "steps": steps,
        "evaluate_every": every,
        "objective": "valid_loss",
        "seed_lr": 0.05,
    }
    order = TaskOrder(
        task=SCRIPT,
        recipe=recipe,
        seed=1,
        data_dir=home,
        placement=Placement(world_size=ranks),
        log_dir=home / "logs",
    )
    return TrainPlan(
        **dict(order),
        schedule=Knee(seed_lr=0.05, total_steps=steps, explore_steps=steps // 2),
        steps_per_evaluation=every,
        checkpoint_dir=home / f"run-{time.monotonic_ns()}",
    )


def until_first_step(runner: GroupRunner, home: Path, *, ranks: int) -> float:
    """Seconds from the order to the first step that is told."""
    began, first = time.monotonic(), list[float]()

    def progressed(step: int) -> None:
        if step and not first:
            first.append(time.monotonic() - began)

    runner.run(plan(home, steps=2, ranks=ranks), Callbacks(on_progress=progressed))
    return first[0]


def per_step(home: Path, *, steps: int, numbers: int) -> float:
    """Microseconds of this process that the engine takes for a step."""
    order = plan(home, steps=steps)
    begin_note(order, StepCount())
    Rank.here = Rank(order, Group(), Listening())
    model = nn.Linear(numbers, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run = join(model, optimizer)
    began = time.process_time()
    for _ in run.steps():
        if run.evaluate_now:
            run.report(valid_loss=0.0)
    taken = time.process_time() - began
    Rank.here = None
    return 1e6 * taken / steps


def main() -> None:
    """Print a line per figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "logs").mkdir()
        for numbers in (1_000, 1_000_000):
            taken = [
                per_step(home, steps=asked.steps, numbers=numbers) for _ in range(asked.repeats)
            ]
            print(f"engine, {numbers:,} numbers: {statistics.median(taken):.1f} µs a step")
        forked = ForkserverRunner(
            ENTRY, preload=(ENTRY.partition(":")[0], *installed_imports(EXAMPLE))
        )
        until_first_step(forked, home, ranks=1)  # until it is warm
        for ranks in (1, 2):
            starts = [until_first_step(forked, home, ranks=ranks) for _ in range(asked.repeats)]
            print(f"fork server, {ranks} ranks: {statistics.median(starts):.2f} s to a first step")
        forked.close()
        started = until_first_step(TorchrunRunner(ENTRY), home, ranks=2)
        print(f"torchrun, 2 ranks: {started:.2f} s to a first step")


if __name__ == "__main__":
    main()
