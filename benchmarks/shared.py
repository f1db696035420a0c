"""What sharing trunks through a store costs, and what it saves.

    python -m benchmarks.shared [--repeats 9] [--studies 3]

Put and get of checkpoints of 1 MB and 100 MB, in a folder and on an S3 server in the loopback
(moto, in a process of its own), and eight writers of one checkpoint at the same moment. Then whole
``knee-tune run`` commands, in turn: alone, with a store that is empty, and with one that another
home has filled. Processor time is ours, without the server's; a busy machine leaves it as it is.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.s3 import private_server
from knee_tune.runs.object_store import ObjectStore, open_store
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, study_record

MB = 1_000_000

STUDY = (
    *("run", "--task", "digits", "--preset", "quick", "--sampler", "grid", "--pruner", "none"),
    *("--set", "space.seed_lr={values: [0.05]}"),
    *("--set", "space.explore_fraction={values: [0.2, 0.4, 0.6, 0.8]}"),
    *("--set", "recipe.epochs=10", "--no-fuse", "--no-register"),
    *("--study-name", "shared", "--tracking-uri", "none"),
)
"""Four trials of one trunk with four checkpoints."""


class Took(NamedTuple):
    """What a command took, and trained."""

    seconds: float
    processor: float
    steps: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--studies", type=int, default=3)
    arguments, _ = parser.parse_known_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name, private_server() as server:
        folder = Path(name)
        for url in (str(folder / "store"), server.url):
            store = open_store(url)
            console.print(_objects(store, folder, repeats=arguments.repeats))
            console.print(f"eight writers of one checkpoint, 20 times: {_race(store, folder)}")
        if arguments.studies:
            console.print(_studies(server.url, folder, repeats=arguments.studies))


def _objects(store: ObjectStore, folder: Path, *, repeats: int) -> Table:
    table = Table("MB", "put, ms", "processor", "get, ms", "processor", title=store.url, box=None)
    for size in (1, 100):
        file = folder / "state.pt"
        file.write_bytes(os.urandom(size * MB))
        puts, gets = [], []
        for _ in range(max(repeats if size == 1 else repeats // 2, 1)):
            name = uuid.uuid4().hex
            puts.append(_timed(partial(store.put, "bench", name, {"state.pt": file})))
            with tempfile.TemporaryDirectory(dir=folder) as into:
                gets.append(_timed(partial(store.get, "bench", name, Path(into))))
            store.drop("bench", name)
        figures = (median(each) * 1e3 for took in (puts, gets) for each in zip(*took, strict=True))
        table.add_row(str(size), *(f"{figure:.0f}" for figure in figures))
    return table


def _race(store: ObjectStore, folder: Path) -> str:
    file = folder / "state.pt"
    file.write_bytes(os.urandom(MB))
    winners: Counter[int] = Counter()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            name = uuid.uuid4().hex
            puts = [pool.submit(store.put, "race", name, {"state.pt": file}) for _ in range(8)]
            winners[sum(put.result() for put in puts)] += 1
            store.drop("race", name)
    return ", ".join(f"{count} times {number} won" for number, count in sorted(winners.items()))


def _studies(url: str, folder: Path, *, repeats: int) -> Table:
    taken: dict[str, list[Took]] = {"alone": [], "first to share": [], "second to share": []}
    for repeat in range(repeats):
        shared = ("--shared", f"{url}/{repeat}")
        for what, options in zip(taken, ((), shared, shared), strict=True):
            taken[what].append(_run(folder / f"{what}-{repeat}", options))
    table = Table("", "seconds", "processor", "steps", title="four trials of digits", box=None)
    for what, runs in taken.items():
        seconds, processor, steps = (median(each) for each in zip(*runs, strict=True))
        table.add_row(what, f"{seconds:.1f}", f"{processor:.1f}", f"{steps:,.0f}")
    return table


def _run(home: Path, options: tuple[str, ...]) -> Took:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "knee_tune", *STUDY, "--home", str(home), *options]
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    record = study_record(load_study(open_storage(f"sqlite:///{home}/optuna.db"), "shared"))
    return Took(
        seconds=seconds,
        processor=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        steps=record.steps.trained,
    )


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and those of the processor in this process."""
    began, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - used


if __name__ == "__main__":
    main()
