"""How a study of ten thousand trials feels: asking, pruning, telling and looking at it.

    python -m benchmarks.scale [--trials 9900] [--folder DIR]

A study of ``digits`` in PostgreSQL on a space of 10,000 points. Its first trials are trained by
``knee-tune run``; the others are copies of a trained one at other points, with values of a known
surface and 20 reports each, written by COPY. ``--folder`` keeps the server's files, so that the
study is filled once. Medians of processor time, without the server's, and in brackets of time on
the clock.
"""

import argparse
import copy
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import optuna
import psycopg
import torch
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from benchmarks.postgresql import PostgresServer, binaries, private_server
from knee_tune.schedules import Knee
from knee_tune.study.attributes import replicate_attr
from knee_tune.study.pruners import SCHEDULE, KneePruner
from knee_tune.study.samplers import Axes, axes_of, make_sampler, wanted
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, spec_of

STUDY = "scale"

EPOCHS = 20
"""Of a trial, each with a report."""

OPTIONS = (
    *("--task", "digits", "--nproc", "1", "--study-name", STUDY, "--sampler", "random"),
    *("--set", f"recipe.epochs={EPOCHS}", "--pruner", "none", "--tracking-uri", "none"),
    *("--set", "space.seed_lr.low=0.005", "--set", "space.seed_lr.high=0.5"),
    *("--set", "space.seed_lr.per_decade=50"),
    *("--set", "space.explore_fraction.low=0", "--set", "space.explore_fraction.high=0.98"),
    *("--set", "space.explore_fraction.step=0.01"),
)
"""A space of 101 x 99 = 9,999 points."""

TRAINED = 3
"""Trials that are trained."""

PRUNED = 0.4
"""Share of the trials that were pruned, half-way."""

REPEATS = 5


@contextmanager
def served(folder: Path | None) -> Iterator[PostgresServer]:
    """A server of its own, or the one whose files are in ``folder``, made if it is not there."""
    if folder is None:
        with private_server() as server:
            yield server
        return
    programs = binaries()
    assert programs is not None, "PostgreSQL is installed"
    folder.mkdir(parents=True, exist_ok=True)
    server = PostgresServer(folder, programs=programs)
    try:
        yield server
    finally:
        server.stop()


class Clock(NamedTuple):
    """Seconds: of the processor, this process and the commands that it ran; on the clock."""

    processor: float
    clock: float

    @classmethod
    def now(cls) -> Self:
        """What both show."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = time.process_time() + children.ru_utime + children.ru_stime
        return cls(processor, time.perf_counter())

    def since(self) -> "Clock":
        """What has gone by."""
        now = self.now()
        return Clock(now.processor - self.processor, now.clock - self.clock)


def median(spent: Sequence[Clock]) -> Clock:
    """Each by itself."""
    return Clock(*map(statistics.median, zip(*spent, strict=True)))


def timed(call: Callable[[], Any]) -> Clock:
    """What a call takes."""
    began = Clock.now()
    call()
    return began.since()


def command(*arguments: str, home: Path, url: str) -> None:
    """Run knee-tune."""
    subprocess.run(
        [sys.executable, "-m", "knee_tune", *arguments, "--home", str(home), "--storage", url],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def fill(url: str, *, home: Path, trials: int) -> None:
    """Have the study hold ``trials`` finished trials."""
    command("run", *OPTIONS, "--trials", str(TRAINED), home=home, url=url)
    study = load_study(open_storage(url), STUDY)
    known = study.trials
    if len(known) >= trials:
        return
    axes = axes_of(spec_of(study))
    tried = {tuple(map(trial.params.get, axes)) for trial in known}
    grid = [each for each in product(*(axis.points for axis in axes.values())) if each not in tried]
    rng = np.random.default_rng(0)
    points = [grid[row] for row in rng.permutation(len(grid))[: trials - len(known)]]
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        _copy_trials(connection, study, [dict(zip(axes, point, strict=True)) for point in points])


def _copy_trials(
    connection: "psycopg.Connection[Any]", study: optuna.Study, points: list[dict[str, Any]]
) -> None:
    """Write a trial at every point, each table in one go."""
    model = next(trial for trial in study.trials if trial.state.name == "COMPLETE")
    steps = sorted(model.intermediate_values)
    rng = np.random.default_rng(1)
    pruned = rng.random(len(points)) < PRUNED
    spread = {name: distribution_to_json(model.distributions[name]) for name in model.params}
    cursor = connection.cursor()
    first_id, first = cursor.execute(
        "SELECT max(trial_id) + 1, max(number) + 1 FROM trials"
    ).fetchone() or (1, 0)
    rows: dict[str, list[tuple[Any, ...]]] = {}

    def row(table: str, *values: Any) -> None:
        rows.setdefault(table, []).append(values)

    for index, point in enumerate(points):
        trial, number = first_id + index, first + index
        state = "PRUNED" if pruned[index] else "COMPLETE"
        row(
            "trials (trial_id, number, study_id, state, datetime_start, datetime_complete)",
            *(trial, number, study._study_id, state, model.datetime_start, model.datetime_complete),
        )
        height = np.log(point["seed_lr"] / 0.05) / np.log(10)
        loss = height**2 + (point["explore_fraction"] + 0.3 * height - 0.6) ** 2
        final = 92 - 10 * loss + rng.normal(0, 0.5)
        for name, value in point.items():
            row(
                "trial_params (trial_id, param_name, param_value, distribution_json)",
                *(trial, name, value, spread[name]),
            )
        row("trial_values (trial_id, objective, value, value_type)", trial, 0, final, "FINITE")
        reached = steps[: len(steps) // 2] if pruned[index] else steps
        curve = {at: final - 20 * (1 - at / steps[-1]) + rng.normal() for at in reached}
        for at, value in curve.items():
            row(
                "trial_intermediate_values "
                "(trial_id, step, intermediate_value, intermediate_value_type)",
                *(trial, at, value, "FINITE"),
            )
        end = None if pruned[index] else final
        for key, value in _notes(model, point, number=number, curve=curve, end=end).items():
            row("trial_user_attributes (trial_id, key, value_json)", trial, key, json.dumps(value))
    for table, values in rows.items():
        with cursor.copy(f"COPY {table} FROM STDIN") as writer:
            for each in values:
                writer.write_row(each)
    cursor.execute(f"SELECT setval('trials_trial_id_seq', {first_id + len(points)})")
    connection.commit()


def _notes(
    model: FrozenTrial,
    point: Mapping[str, float],
    *,
    number: int,
    curve: Mapping[int, float],
    end: float | None,
) -> dict[str, Any]:
    """What knee-tune notes with a trial at ``point``; ``end`` is its value, None if pruned."""
    notes: dict[str, Any] = copy.deepcopy(model.user_attrs)
    total = notes[SCHEDULE]["total_steps"]
    schedule = {
        "seed_lr": point["seed_lr"],
        "explore_steps": round(point["explore_fraction"] * total),
    }
    notes[SCHEDULE] |= schedule
    notes["plan"]["schedule"] |= schedule
    notes["key"] = f"trial-{number:04d}"
    replicate = notes[replicate_attr(0)]
    name = next(iter(replicate["curve"][0]["metrics"]))
    replicate |= {
        "curve": [{"step": step, "metrics": {name: value}} for step, value in curve.items()],
        "state": "pruned" if end is None else "complete",
        "value": end,
        "metrics": {} if end is None else {name: end},
    }
    notes["metrics"] = replicate["metrics"]
    notes["steps_trained"] = max(curve)
    notes["steps_pruned"] = total - max(curve)
    return notes


def measure(url: str) -> Iterator[tuple[str, Clock]]:
    """Each thing that a driver does, and what it takes."""
    began = Clock.now()
    study = load_study(open_storage(url), STUDY)
    count = len(study.get_trials(deepcopy=False))
    yield f"first look at {count:,} trials", began.since()
    axes = axes_of(spec_of(study))
    model = next(each for each in study.get_trials(deepcopy=False) if SCHEDULE in each.user_attrs)
    knee = {name: value for name, value in model.user_attrs[SCHEDULE].items() if name != "name"}
    for sampler in ("gp", "tpe", "random", "grid"):
        yield f"ask, {sampler}", _ask(study, sampler, axes)
    study.sampler = make_sampler("random", seed=os.getpid(), axes=axes)
    study.pruner = KneePruner()
    trial = study.ask({name: axis.distribution() for name, axis in axes.items()})
    KneePruner.describe(trial, Knee(**knee))
    reporting, pruning = [], []
    for step in range(1, EPOCHS):
        at = step * knee["total_steps"] // EPOCHS
        reporting.append(
            timed(functools.partial(trial.report, 200.0, at))
        )  # it is good, and goes on
        pruning.append(timed(trial.should_prune))
    yield "report", median(reporting)
    yield "should_prune, a driver's first", pruning[0]
    yield "should_prune, its first trial", median(pruning[1:])
    yield "should_prune", median([timed(trial.should_prune) for _ in range(REPEATS)])
    yield "tell", timed(lambda: study.tell(trial, state=TrialState.FAIL))


def _ask(study: optuna.Study, sampler: str, axes: Axes) -> Clock:
    """One asking, and whether one is wanted; the first one imports."""
    study.sampler = make_sampler(sampler, seed=os.getpid(), axes=axes, start="bracket")
    spent = []
    for _ in range(REPEATS + 1):
        began = Clock.now()
        wanted(study, axes, trials=None)
        trial = study.ask()
        for name, axis in axes.items():
            axis.suggest(trial, name)
        spent.append(began.since())
        study.tell(trial, state=TrialState.FAIL)
    return median(spent[1:])


def main() -> None:
    """Measure and print, where PostgreSQL is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=9_900)
    parser.add_argument("--folder", type=Path, help="keeps the server, and the filled study")
    chosen = parser.parse_args()
    if binaries() is None:
        print("scale: left out, PostgreSQL is not installed (Debian, Ubuntu: postgresql)")
        return
    torch.set_num_threads(1)  # as for a driver
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch, served(chosen.folder) as server:
        home = (chosen.folder or Path(scratch)) / "home"
        _say("filling", timed(lambda: fill(server.url, home=home, trials=chosen.trials)))
        for what, spent in measure(server.url):
            _say(what, spent)
        for name in ("status", "report"):
            look = functools.partial(command, name, STUDY, home=home, url=server.url)
            _say(f"knee-tune {name}", timed(look))


def _say(what: str, spent: Clock) -> None:
    print(f"{what:32} {spent.processor:8.3f} s ({spent.clock:.3f})", flush=True)


if __name__ == "__main__":
    main()
