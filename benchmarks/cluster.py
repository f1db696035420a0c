"""Training beyond one machine's fork server: whether it comes to the same, and what it costs.

``python -m benchmarks.cluster study``: one unpruned grid of digits by a plain driver, by a driver
on two Ray nodes that every trial's two ranks span, by a Slurm array of two drivers on two nodes,
and by two plain drivers that share PostgreSQL and an S3 bucket, but no disk; all on this machine.
Points, metrics, curves and files of weights must be the same, bit for bit. What is not installed is
left out, which is said.

``python -m benchmarks.cluster ray``: from asking for two ranks to their first step, on a Ray of
this machine and by the fork server, group by group in turn, both warm.
"""

import argparse
import hashlib
import importlib.util
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks import postgresql, s3
from benchmarks.orchestration import first_step, opened_for
from benchmarks.slurm import SCRIPT, is_installed, slurm
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.workers import GroupOptions
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Point
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, study_record
from knee_tune.training.checkpoint import WEIGHTS

NAME = "cluster"

STUDY = (
    *("--task", "digits", "--preset", "quick", "--nproc", "2", "--study-name", NAME),
    *("--sampler", "grid", "--pruner", "none", "--set", "recipe.epochs=10"),
    *("--set", "space.seed_lr={values: [0.02, 0.05, 0.1]}"),
    *("--set", "space.explore_fraction={values: [0.2, 0.4, 0.6, 0.8]}"),
    *("--no-fuse", "--no-register", "--tracking-uri", "none"),
)
"""Twelve trials on three trunks."""

DRIVERS = 2


class MissingError(Exception):
    """What a place needs is not installed here."""


# The same study everywhere


def plain(folder: Path) -> StudyRecord:
    """One driver, by the fork server."""
    _end_of(_started(folder))
    return _record(_database(folder))


def ray(folder: Path) -> StudyRecord:
    """One driver, whose trials span two nodes of a Ray cluster that have a processor each."""
    if not importlib.util.find_spec("ray"):
        raise MissingError("Ray is not installed")
    with ray_cluster(1, 1) as address:
        where = ("--runner", "ray", "--ray-address", address, "--strategy", "spread")
        _end_of(_started(folder, *where))
    return _record(_database(folder))


def slurm_array(folder: Path) -> StudyRecord:
    """An array of two drivers, on a node each, with one home."""
    if not is_installed():
        raise MissingError("Slurm is not installed")
    # Found as by people who have activated their environment.
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with slurm(folder / "slurm", _environment() | {"PATH": programs}) as cluster:
        array = ("sbatch", "--wait", f"--array=0-{DRIVERS - 1}", str(SCRIPT))
        cluster(*array, *STUDY, "--home", str(folder), folder=folder)
    return _record(_database(folder))


def two_homes(folder: Path) -> StudyRecord:
    """Two drivers with a home each, one PostgreSQL and one bucket."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(postgresql.private_server())
            bucket = stack.enter_context(s3.private_server())
        except FileNotFoundError as error:
            raise MissingError(str(error)) from None
        both = ("--storage", database.url, "--shared", bucket.url)
        for driver in [_started(folder / f"{each}", *both) for each in range(DRIVERS)]:
            _end_of(driver)
        return _record(database.url)


PLACES: dict[str, Callable[[Path], StudyRecord]] = {
    "a plain driver": plain,
    "two Ray nodes": ray,
    "a Slurm array": slurm_array,
    "two homes and S3": two_homes,
}


def _environment() -> dict[str, str]:
    """Ours, without anybody's studies and servers."""
    anybodys = ("KNEE_TUNE_", "OPTUNA_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(anybodys)}
    return kept | {"NO_COLOR": "1", "COLUMNS": "160"}


def _started(home: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "knee_tune", "run", *STUDY, "--home", str(home), *options],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end_of(driver: "subprocess.Popen[str]") -> None:
    """Wait for it. SystemExit with what it said if it fails."""
    said, _ = driver.communicate()
    if driver.returncode:
        raise SystemExit(f"a driver ended with exit code {driver.returncode}:\n{said}")


def _database(home: Path) -> str:
    return f"sqlite:///{home}/optuna.db"


def _record(url: str) -> StudyRecord:
    return study_record(load_study(open_storage(url), NAME))


def _bits(record: StudyRecord) -> dict[Point, Any]:
    """By point all that was measured, with every digit, and the digest of the weights."""
    return {
        trial.point: (trial.state, trial.value, trial.metrics, trial.curve, _weights(trial))
        for trial in record.trials
    }


def _weights(trial: TrialRecord) -> str:
    assert trial.checkpoint is not None, "it is complete"
    return hashlib.sha256((Path(trial.checkpoint) / WEIGHTS).read_bytes()).hexdigest()


@contextmanager
def ray_cluster(*processors: int) -> Iterator[str]:
    """The address of a cluster of ours on this machine: a node for each number of processors."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Short: a socket's path has 107 bytes.
    with mock.patch.dict(os.environ, token), tempfile.TemporaryDirectory(prefix="ray-") as folder:
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            for count in processors:
                cluster.add_node(num_cpus=count, include_dashboard=False, temp_dir=folder)
            yield cluster.address
        finally:
            cluster.shutdown()


def same_study(console: Console) -> bool:
    """Run the study in every place, and show what came of it; whether that is the same."""
    table = Table("", "trials", "points", "drivers", "steps", "seconds", "bits", box=None)
    first: dict[Point, Any] | None = None
    same = True
    for place, run in PLACES.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            began = time.perf_counter()
            try:
                record = run(Path(folder))
            except MissingError as error:
                console.print(f"{place}: left out, {error}")
                continue
            seconds, bits = time.perf_counter() - began, _bits(record)
        first = first or bits
        same = same and bits == first and len(record.trials) == len(bits)
        drivers = {trial.driver for trial in record.trials}
        counts = (len(record.trials), len(bits), len(drivers), record.steps.trained)
        verdict = "the same" if bits == first else "DIFFERENT"
        table.add_row(place, *(f"{count:,}" for count in counts), f"{seconds:.0f}", verdict)
    console.print(table)
    return same


# What Ray costs


def first_steps(runs: int) -> dict[str, list[float]]:
    """Seconds to a first step by each runner; the first group of each warms up, uncounted."""
    quick = resolve_asked(task="digits", trials=1, nproc=2, settings=("recipe.epochs=1",))
    with ExitStack() as stack:
        address = stack.enter_context(ray_cluster(2))
        ways = {
            "forkserver": GroupOptions(nproc=2),
            "ray": GroupOptions(nproc=2, runner="ray", ray_address=address),
        }
        seconds: dict[str, list[float]] = {runner: [] for runner in ways}
        studies = {}
        for runner, options in ways.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            study = stack.enter_context(opened_for(quick, folder, options))
            studies[runner] = (study, folder)
        for run in range(runs + 1):
            for runner, (study, folder) in studies.items():
                seconds[runner].append(first_step(study, folder, run))
                time.sleep(0.2)  # what the group before leaves is gone
    return {runner: found[1:] for runner, found in seconds.items()}


def main() -> None:
    """Measure and print; exit code 1 if a study differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["study", "ray"])
    parser.add_argument("--runs", type=int, default=15, help="of each runner")
    chosen = parser.parse_args()
    if chosen.what == "study":
        sys.exit(not same_study(Console()))
    found = first_steps(chosen.runs)
    print(f"from asking for two ranks to their first step (median of {chosen.runs}, in turn)")
    for runner, seconds in found.items():
        print(f"  {runner:10} {statistics.median(seconds):6.3f} s, max {max(seconds):.3f} s")
    ratio = statistics.median(found["ray"]) / statistics.median(found["forkserver"])
    print(f"  ratio      {ratio:6.2f}")


if __name__ == "__main__":
    main()
