"""Trials per second of many drivers on one PostgreSQL whose trials train nothing.

    python -m benchmarks.drivers [--drivers 4 16 64] [--trials 5]

So many drivers, each a process, share a study of so many trials each, with 20 reports in a trial.
First Optuna alone (``study.optimize``, two parameters, reports and ``should_prune``, at any points
and as many trials as come), then ours: points of a grid none of which is tried twice, an exact
number of trials, and everything that is kept of a trial. None may be lost, none tried twice.
Processor time is the drivers', without the server's.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple, cast

import optuna
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from benchmarks.postgresql import binaries, private_server
from knee_tune.commands.opened import resolve_asked
from knee_tune.plans.plan import Plan, Replica, TaskFacts, TaskOrder, TrainPlan
from knee_tune.plans.planner import train_plan
from knee_tune.runs.trainer import Trainer
from knee_tune.study.driver import Driver
from knee_tune.study.events import Watcher
from knee_tune.study.locks import asking_lock
from knee_tune.study.recovery import stale_trial_callback
from knee_tune.study.samplers import axes_of, make_sampler
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, open_study, study_record
from knee_tune.study.trial import Search
from knee_tune.tracking.tracker import NullTracker
from knee_tune.workers.protocol import Callbacks, Done, GroupRunner, Outcome, Report

REPORTS = 20

READY_SECONDS = 300.0
"""For all drivers to have begun; one that failed meanwhile is not waited for longer."""

FACTS = TaskFacts(steps_per_epoch=10, data_fingerprint="", parameters=0, examples={})

SETTINGS = (
    *(f"recipe.epochs={REPORTS}", "space.seed_lr.per_decade=50"),
    *("space.explore_fraction.low=0", "space.explore_fraction.high=0.98"),
    "space.explore_fraction.step=0.02",
)


class NothingTrained(GroupRunner):
    """Reports at once whatever a run is to report."""

    def run(self, plan: Plan, callbacks: Callbacks) -> Outcome:
        """See GroupRunner."""
        assert isinstance(plan, TrainPlan)
        metrics = {"valid_accuracy": 50.0, "valid_loss": 1.0}
        beside = {"train_loss": 1.0, "lr": 0.1}
        for step in plan.evaluation_steps():
            callbacks.on_report(
                Report(
                    step=step, total_steps=plan.total_steps, metrics=metrics | beside, seconds=0.0
                )
            )
        return Done(state="complete", step=plan.total_steps, result={"metrics": metrics})

    def close(self) -> None:
        """There is nothing to end."""


def of_optuna(url: str, home: Path, trials: int) -> Callable[[], None]:
    """A driver that is Optuna's own."""
    storage = RDBStorage(url, heartbeat_interval=15, grace_period=60)
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    study = optuna.create_study(
        storage=storage, study_name="optuna", sampler=sampler, load_if_exists=True
    )

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("seed_lr", 0.005, 0.5, log=True)
        trial.suggest_float("explore_fraction", 0, 1)
        for step in range(REPORTS):
            trial.report(50.0, step)
            trial.should_prune()
        return 50.0

    return lambda: study.optimize(objective, callbacks=[MaxTrialsCallback(trials)])


def of_ours(url: str, home: Path, trials: int) -> Callable[[], None]:
    """A driver of knee-tune's, with worker groups that train nothing."""
    spec = resolve_asked(
        task="digits", name="ours", settings=SETTINGS, sampler="random", pruner="none"
    )
    recipe = spec.typed_recipe
    tracker = NullTracker()
    storage = open_storage(url, on_stale=stale_trial_callback(tracker))
    study = open_study(storage, spec, data_fingerprint="")
    axes = axes_of(spec)
    study.sampler = make_sampler("random", seed=1, axes=axes)
    study.pruner = optuna.pruners.NopPruner()

    def plan(
        schedule: Any, *, log_key: str, seed: int, slot: int, replicas: Sequence[Replica] = ()
    ) -> TrainPlan:
        order = TaskOrder(
            task="digits",
            recipe=spec.recipe,
            seed=seed,
            data_dir=home,
            log_dir=home / "logs" / log_key,
        )
        folder = home / log_key
        return train_plan(order, recipe, FACTS, schedule=schedule, checkpoint_dir=folder)

    search = Search(
        study=study,
        spec=spec,
        facts=FACTS,
        axes=axes,
        plan=plan,
        asking=asking_lock(url, study="ours"),
    )
    driver = Driver(
        search,
        trainer=Trainer(NothingTrained(), trunks=None),
        slots=1,
        tracker=tracker,
        watcher=cast("Watcher", Silent()),
        after_trial=lambda _: None,
        on_interrupt=lambda: None,
    )
    return lambda: driver.run(trials=trials)


class Silent:
    """A watcher that says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


Make = Callable[[str, Path, int], Callable[[], None]]


def _drive(make: Make, url: str, home: Path, trials: int, begin: Barrier) -> None:
    run = make(url, home, trials)
    begin.wait()
    run()


class Took(NamedTuple):
    """Seconds: on the clock, and of the processor, all drivers together."""

    clock: float
    processor: float


def drive(make: Make, url: str, home: Path, *, drivers: int, trials: int) -> Took:
    """From when all drivers are ready until the last has ended; SystemExit if one of them fails.

    Their processor time has what they import, too.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(drivers + 1, timeout=READY_SECONDS)
    arguments = (make, url, home, trials, begin)
    processes = [context.Process(target=_drive, args=arguments) for _ in range(drivers)]
    for process in processes:
        process.start()
    begin.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a driver ended: {[process.exitcode for process in processes]}")
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(clock=clock, processor=used)


def main() -> None:
    """Measure and print, where PostgreSQL is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--drivers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--trials", type=int, default=5, help="of each driver")
    chosen = parser.parse_args()
    if binaries() is None:
        print("drivers: left out, PostgreSQL is not installed (Debian, Ubuntu: postgresql)")
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    for drivers in chosen.drivers:
        with tempfile.TemporaryDirectory() as folder, private_server() as server:
            home, trials = Path(folder), drivers * chosen.trials
            (home / "logs").mkdir()
            open_storage(server.url)  # Optuna's drivers that start together trip over its tables
            pace, effort = {}, {}
            for make in (of_optuna, of_ours):
                took = drive(make, server.url, home, drivers=drivers, trials=trials)
                study = load_study(open_storage(server.url), make.__name__.removeprefix("of_"))
                found = study.get_trials(deepcopy=False)
                complete = sum(trial.state == TrialState.COMPLETE for trial in found)
                pace[make], effort[make] = complete / took.clock, took.processor / complete
            record = study_record(study)
            points = {trial.point for trial in record.trials}
            print(
                f"{drivers} drivers: {pace[of_ours]:.1f} trials/s, Optuna alone "
                f"{pace[of_optuna]:.1f}, ratio {pace[of_ours] / pace[of_optuna]:.2f}; processor "
                f"{effort[of_ours]:.2f} s a trial against {effort[of_optuna]:.2f} s; "
                f"{complete} of {trials} trials complete, {len(found)} in all, at {len(points)} "
                "points",
                flush=True,
            )


if __name__ == "__main__":
    main()
