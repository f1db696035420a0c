"""What driving a trial costs beside training it.

    python -m benchmarks.orchestration [--repeats 3] [--epochs 240]
    python -m benchmarks.orchestration --against DIR [--repeats 3]

Side by side, in turn, on one machine: a digits training by the bare loop in this process, and the
same training as a trial of a real study (forked rank, channel, Optuna on SQLite, MLflow on SQLite).
Then the time from asking for a group of two ranks to its first step, by the forkserver and by a
fresh torchrun.

With ``--against``: a whole ``run --task digits --preset quick`` in a fresh home, by this checkout
and by the one in ``DIR`` (``git worktree add DIR COMMIT``), in turn and in this environment: from
the command to the first steps, from the last ones to the exit, and the processor time of all
processes.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import OpenedStudy, open_for_training, resolve_asked
from knee_tune.commands.run import StudyStart, run_study
from knee_tune.commands.workers import GroupOptions
from knee_tune.config.recipe import Recipe
from knee_tune.config.study import ResolvedStudy
from knee_tune.jobs import run_job
from knee_tune.plans.plan import TrainPlan
from knee_tune.plans.planner import knee_schedule
from knee_tune.records.values import Point
from knee_tune.schedules import Decay
from knee_tune.study.events import End, Origin, Watcher
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Callbacks, Channel, Decision, Report

Asked = ResolvedStudy[Recipe]

WHOLE = ("run", "--task", "digits", "--preset", "quick")


class Nobody(Channel):
    """A channel and a watcher that leads nowhere, but takes the time of a trial."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def report(self, report: Report) -> Decision:
        """Go on."""
        return Decision(stop=False)

    def progress(self, step: int) -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def trial_started(
        self,
        number: int,
        plan: TrainPlan,
        *,
        explore_fraction: float,
        decay: Decay | None = None,
        replicates: int,
    ) -> None:
        """Take the time."""
        self.started = time.perf_counter()

    def trial_progressed(self, number: int, step: int) -> None:
        """Nothing."""

    def trial_reused(self, number: int, step: int, *, replicate: int, origin: Origin) -> None:
        """Nothing."""

    def trial_reported(self, number: int, report: Report, *, replicate: int) -> None:
        """Nothing."""

    def batch_started(self, points: Mapping[int, Point], plan: TrainPlan) -> None:
        """Not of interest."""

    def batch_progressed(self, step: int) -> None:
        """Not of interest."""

    def batch_reported(self, report: Report) -> None:
        """Not of interest."""

    def trial_finished(self, number: int, end: End, *, value: float | None, reason: str) -> None:
        """Take the time."""
        self.ended = time.perf_counter()


def bare_loop(asked: Asked, folder: Path) -> float:
    """Seconds of the training alone, in this process."""
    with opened_for(asked, folder, GroupOptions()) as opened:
        plan = _plan(opened, folder)
    torch.set_num_threads(1)
    began = time.perf_counter()
    run_job(plan, Group(), Nobody())
    return time.perf_counter() - began


def driven_trial(asked: Asked, folder: Path) -> float:
    """Seconds of the same training as a trial: from its start to its end in the study."""
    nobody = Nobody()

    @contextmanager
    def watch(_: StudyStart) -> Iterator[Watcher]:
        yield nobody

    run_study(
        asked, study_places(folder), GroupOptions(), timeout=None, register=False, watch=watch
    )
    return nobody.ended - nobody.started


def first_steps(asked: Asked, folder: Path, options: GroupOptions, runs: int) -> list[float]:
    """Seconds from asking for a group to its first step; the first group warms up, uncounted."""
    with opened_for(asked, folder, options) as opened:
        return [first_step(opened, folder, run) for run in range(runs + 1)][1:]


def first_step(opened: OpenedStudy, folder: Path, run: int) -> float:
    """Seconds from asking for a group to its first step; ``run`` numbers the calls."""
    plan = _plan(opened, folder / str(run))
    steps: list[float] = []
    began = time.perf_counter()
    at_once = Callbacks(
        on_report=lambda report: Decision(stop=True),
        on_progress=lambda step: steps.append(time.perf_counter()),
    )
    opened.workers.runner.run(plan, at_once)
    return steps[0] - began


class Command(NamedTuple):
    """Seconds of a whole command."""

    to_first_steps: float
    from_last_steps: float
    whole: float
    processor: float
    """Of all its processes, waiting left out."""


def whole_command(checkout: Path) -> Command:
    """A study of one small trial after the other, by the code of ``checkout``, in a fresh home."""
    with tempfile.TemporaryDirectory() as home:
        used = _processor_time()
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "knee_tune", *WHOLE, "--home", home],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as command:
            assert command.stdout is not None
            steps = [time.perf_counter() for line in command.stdout if ": step " in line]
        ended = time.perf_counter()
        if command.returncode or not steps:
            raise RuntimeError(f"{checkout}: the command ended with code {command.returncode}")
        return Command(
            to_first_steps=steps[0] - began,
            from_last_steps=ended - steps[-1],
            whole=ended - began,
            processor=_processor_time() - used,
        )


def _processor_time() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def side_by_side(other: Path, repeats: int) -> None:
    """Print what a whole command costs here and in another checkout; the first ones warm up."""
    checkouts = (Path(__file__).parents[1], other.resolve())
    pairs = [[whole_command(checkout) for checkout in checkouts] for _ in range(repeats + 1)][1:]
    print(f"a whole digits study, this checkout and {other} (medians of {repeats} pairs)")
    for name in Command._fields:
        here, there = ([getattr(pair[at], name) for pair in pairs] for at in (0, 1))
        ratio = statistics.median(ours / theirs for ours, theirs in zip(here, there, strict=True))
        print(
            f"  {name.replace('_', ' '):15} {statistics.median(here):7.2f} s, "
            f"{statistics.median(there):7.2f} s, ratio {ratio:.3f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    chosen = parser.parse_args()
    if chosen.against is not None:
        side_by_side(chosen.against, chosen.repeats)
        return
    settings = (f"recipe.epochs={chosen.epochs}", "recipe.model.hidden=[512,512]")
    asked = resolve_asked(task="digits", trials=1, settings=settings)
    bare, driven = [], []
    for _ in range(chosen.repeats):
        bare.append(_in_fresh_folder(bare_loop, asked))
        driven.append(_in_fresh_folder(driven_trial, asked))
    ratio = statistics.median(d / b for d, b in zip(driven, bare, strict=True))
    print(f"one digits trial, {chosen.epochs} evaluations, one rank (median of {chosen.repeats})")
    print(f"  bare loop    {statistics.median(bare):7.2f} s")
    print(f"  driven trial {statistics.median(driven):7.2f} s, ratio {ratio:.3f}")

    quick = resolve_asked(task="digits", trials=1, nproc=2, settings=("recipe.epochs=1",))
    print("from asking for two ranks to their first step (median)")
    for runner, runs in (("forkserver", 15), ("torchrun", 3)):
        with tempfile.TemporaryDirectory() as folder:
            options = GroupOptions(nproc=2, runner=runner)  # type: ignore[arg-type]
            seconds = first_steps(quick, Path(folder), options, runs)
        print(f"  {runner:10} {statistics.median(seconds):7.2f} s, max {max(seconds):.2f} s")


def _in_fresh_folder(measure: Callable[[Asked, Path], float], asked: Asked) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return measure(asked, Path(folder))


def study_places(folder: Path) -> Places:
    """Databases and checkpoints, all below ``folder``."""
    home = Home(folder)
    return Places.of(home, storage=home.optuna_url, tracking_uri=f"sqlite:///{folder}/mlflow.db")


@contextmanager
def opened_for(asked: Asked, folder: Path, options: GroupOptions) -> Iterator[OpenedStudy]:
    """A study in ``folder``, untracked, with its workers."""
    home = Home(folder)
    places = Places.of(home, storage=home.optuna_url, tracking_uri="none")
    with open_for_training(asked, places, options) as opened:
        yield opened


def _plan(opened: OpenedStudy, folder: Path) -> TrainPlan:
    workers = opened.workers
    lr = workers.recipe.seed_lr
    schedule = knee_schedule(workers.recipe, workers.facts, seed_lr=lr, explore_fraction=0.5)
    return workers.solitary_plan(schedule, log_key="bench", checkpoint_dir=folder / "checkpoints")


if __name__ == "__main__":
    main()
