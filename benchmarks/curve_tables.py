"""Complete tables of learning curves: what searches are replayed on.

    python -m benchmarks.curve_tables [--quick] [--only NAME ...] [--tables DIR]

A table is a grid study of knee-tune itself, in which nothing is pruned: the metric that it watches,
at every evaluation of every run, seed LR x explore fraction x random seed. Two families: settings
are chosen on the ``tuning`` tables, and only the ``report`` tables are reported. What was trained
is kept and never trained again; the same command goes on where it was ended.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knee_tune.commands.home import Home, Places
from knee_tune.commands.look import look_at
from knee_tune.errors import UserError
from knee_tune.records.study import StudyRecord
from knee_tune.schedules import Knee
from knee_tune.schedules.schedule import fitted_knee

FRACTIONS = tuple(round(0.1 * i, 1) for i in range(10))
METRICS = ("accuracy", "loss", "ppl")

TABLES = Path.home() / ".cache" / "knee-tune" / "curve-tables"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A grid study: its task, what it changes of the default preset, and its random seeds."""

    name: str
    family: Literal["tuning", "report", "quick"]
    task: str
    metric: str
    seed_lrs: tuple[float, ...]
    seeds: int
    first_seed: int
    fractions: tuple[float, ...] = FRACTIONS
    preset: str = "default"
    settings: tuple[str, ...] = ()

    def command(self, home: Path) -> list[str]:
        """The command that trains it, or goes on."""
        grid = (
            f"space.seed_lr.values={json.dumps(self.seed_lrs)}",
            f"space.explore_fraction.values={json.dumps(self.fractions)}",
        )
        return [
            *(sys.executable, "-m", "knee_tune", "run", "--task", self.task),
            *("--preset", self.preset, "--study-name", self.name),
            *("--sampler", "grid", "--pruner", "none", "--nproc", "1"),
            *("--seed", str(self.first_seed), "--replicates", str(self.seeds)),
            *(word for setting in (*grid, *self.settings) for word in ("--set", setting)),
            *("--home", str(home), "--tracking-uri", "none"),
        ]

    def path(self, folder: Path) -> Path:
        """Its file: of another name whenever the command is another one."""
        asked = hashlib.sha256(json.dumps(self.command(Path())[1:]).encode()).hexdigest()[:12]
        return folder / f"{self.name}-{asked}.npz"


def _seed_lrs(first: float, ratio: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{first * ratio**i:.3g}") for i in range(count))


DIGITS = _seed_lrs(0.005, 1.5, 9)

SPECS = (
    TableSpec(
        name="digits-.1",
        family="tuning",
        task="digits",
        metric="accuracy",
        seed_lrs=DIGITS,
        first_seed=101,
        seeds=20,
        settings=("recipe.label_noise=0.1", "recipe.epochs=20"),
    ),
    TableSpec(
        name="digits-.3-deep",
        family="tuning",
        task="digits",
        metric="accuracy",
        seed_lrs=DIGITS,
        first_seed=131,
        seeds=20,
        settings=("recipe.label_noise=0.3", "recipe.epochs=15", "recipe.model.hidden=[32, 32]"),
    ),
    TableSpec(
        name="breast-cancer",
        family="tuning",
        task="breast-cancer",
        metric="accuracy",
        seed_lrs=DIGITS,
        first_seed=161,
        seeds=20,
    ),
    TableSpec(
        name="digits-.2",
        family="report",
        task="digits",
        metric="accuracy",
        seed_lrs=DIGITS,
        first_seed=1,
        seeds=20,
    ),
    TableSpec(
        name="digits-.4",
        family="report",
        task="digits",
        metric="accuracy",
        seed_lrs=DIGITS,
        first_seed=31,
        seeds=20,
        settings=("recipe.label_noise=0.4",),
    ),
    TableSpec(
        name="gpt",
        family="report",
        task="gpt",
        preset="demo",
        metric="loss",
        seed_lrs=_seed_lrs(0.0012, 1.7, 7),
        fractions=(0.2, 0.4, 0.6, 0.75, 0.9),
        first_seed=1,
        seeds=10,
        settings=("recipe.epochs=4", "recipe.warmup_steps=10"),
    ),
    TableSpec(
        name="translation",
        family="report",
        task="iwslt",
        preset="demo",
        metric="ppl",
        seed_lrs=_seed_lrs(0.003, 2, 5),
        fractions=(0.1, 0.3, 0.5, 0.7, 0.9),
        first_seed=1,
        seeds=6,
    ),
    TableSpec(
        name="cifar10",
        family="report",
        task="cifar10",
        preset="tiny",
        metric="accuracy",
        seed_lrs=_seed_lrs(0.0153, 1.8, 6),
        fractions=(0.1, 0.3, 0.5, 0.7, 0.9),
        first_seed=1,
        seeds=6,
        settings=("recipe.epochs=5",),
    ),
    TableSpec(
        name="quick",
        family="quick",
        task="digits",
        metric="accuracy",
        seed_lrs=DIGITS[::4],
        fractions=FRACTIONS[::3],
        first_seed=1,
        seeds=2,
        settings=("recipe.epochs=6",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class CurveTable:
    """Learning curves of a whole grid.

    ``curves[metric]`` has the shape (random seed, seed LR, explore fraction, evaluation); NaN where
    a run had diverged. ``schedules[i][j]`` is the schedule of seed LR i and fraction j.
    """

    name: str
    seed_lrs: tuple[float, ...]
    fractions: tuple[float, ...]
    steps: tuple[int, ...]
    """After which the evaluations ran."""
    schedules: tuple[tuple[Knee, ...], ...]
    curves: dict[str, Floats]

    @property
    def total_steps(self) -> int:
        """The budget."""
        return self.steps[-1]


def load_tables(family: str, *, folder: Path = TABLES, only: str | None = None) -> list[CurveTable]:
    """The trained tables of ``family`` (``only`` one by name).

    UserError if there is none.
    """
    tables = [
        _load(spec, spec.path(folder))
        for spec in SPECS
        if spec.family == family and only in (None, spec.name) and spec.path(folder).exists()
    ]
    if not tables:
        raise UserError(
            f"{folder}: no table of the family {family}; train it with "
            "python -m benchmarks.curve_tables"
        )
    return tables


def _load(spec: TableSpec, path: Path) -> CurveTable:
    with np.load(path) as arrays:
        steps = tuple(int(step) for step in arrays["steps"])
        warmup, curves = int(arrays["warmup_steps"]), arrays["curves"]

    def knee(lr: float, fraction: float) -> Knee:
        return fitted_knee(
            seed_lr=lr,
            total_steps=steps[-1],
            explore_steps=round(fraction * steps[-1]),
            warmup_steps=warmup,
        )

    return CurveTable(
        name=spec.name,
        seed_lrs=spec.seed_lrs,
        fractions=spec.fractions,
        steps=steps,
        schedules=tuple(tuple(knee(lr, at) for at in spec.fractions) for lr in spec.seed_lrs),
        curves={spec.metric: curves},
    )


def arrays_of(record: StudyRecord, spec: TableSpec) -> dict[str, npt.NDArray[Any]]:
    """What a table keeps of its finished study; UserError where a point of the grid is missing."""
    shape = (spec.seeds, len(spec.seed_lrs), len(spec.fractions))
    trials = {(trial.seed_lr, trial.explore_fraction): trial for trial in record.trials}
    steps = sorted(
        {each.step for trial in record.trials for run in trial.replicates for each in run.curve}
    )
    curves = np.full((*shape, len(steps)), math.nan)
    for i, lr in enumerate(spec.seed_lrs):
        for j, fraction in enumerate(spec.fractions):
            trial = trials.get((lr, fraction))
            if trial is None or trial.state not in ("complete", "pruned"):
                raise UserError(f"{spec.name}: {lr:g} at {fraction:g} was not trained to its end")
            for run in trial.replicates:
                for each in run.curve:
                    at = run.seed - spec.first_seed, i, j, steps.index(each.step)
                    curves[at] = each.metrics[record.metric]
    warmup = record.spec.recipe.get("warmup_steps", 0)
    return {"steps": np.array(steps), "warmup_steps": np.array(warmup), "curves": curves}


def train_table(spec: TableSpec, *, folder: Path) -> None:
    """Train what is missing of a table, and keep it."""
    path = spec.path(folder)
    if path.exists():
        return
    began = time.perf_counter()
    home = path.with_suffix(".home")
    subprocess.run(spec.command(home), check=True, stdout=subprocess.DEVNULL)
    places = Places.of(Home(home), storage=None, tracking_uri="none")
    draft = path.with_suffix(".draft.npz")
    arrays = arrays_of(look_at(places, spec.name), spec)
    np.savez_compressed(draft, allow_pickle=False, **arrays)
    draft.replace(path)
    runs = spec.seeds * len(spec.seed_lrs) * len(spec.fractions)
    print(f"{spec.name}: {runs} runs in {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    """Train the tables that are missing and say what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one small table, half a minute")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the tables of these names")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    chosen = parser.parse_args()
    for spec in SPECS:
        if spec.name in chosen.only if chosen.only else (spec.family == "quick") == chosen.quick:
            train_table(spec, folder=chosen.tables)


if __name__ == "__main__":
    main()
