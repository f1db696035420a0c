"""Complete tables of learning curves, trained by our own loop: what searches are replayed on.

    python -m benchmarks.curve_tables [--quick] [--tables DIR] [--seeds N]

A table holds the validation loss and accuracy of every evaluation of every run of a grid, seed LR x
explore fraction x random seed, on digits with label noise. Two families: thresholds are chosen on
the ``tuning`` tables, and only the ``report`` tables are reported. They differ in label noise,
budget, model and random seeds. Training them all takes half an hour on one core; what was trained
once, one file per random seed, is never trained again.
"""

import argparse
import hashlib
import json
import math
import tempfile
import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from knee_tune.errors import UserError
from knee_tune.jobs import run_job
from knee_tune.plans.plan import DescribePlan, TaskFacts, TaskOrder
from knee_tune.plans.planner import knee_schedule, on_trunk, train_plan
from knee_tune.schedules import Knee
from knee_tune.tasks.tabular.recipe import DigitsRecipe
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Decision, Report

SEED_LRS = tuple(0.005 * 1.5**i for i in range(9))
FRACTIONS = tuple(round(0.1 * i, 1) for i in range(10))
METRICS = ("loss", "accuracy")

TABLES = Path.home() / ".cache" / "knee-tune" / "curve-tables"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table to train: a recipe of digits, and the random seeds."""

    name: str
    family: Literal["tuning", "report", "quick"]
    changes: dict[str, Any]
    seeds: tuple[int, ...]
    seed_lrs: tuple[float, ...] = SEED_LRS
    fractions: tuple[float, ...] = FRACTIONS

    @property
    def recipe(self) -> DigitsRecipe:
        """The complete recipe."""
        return DigitsRecipe.model_validate(self.changes)

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever a curve would: recipe, grid, data, version of torch."""
        parts = [
            self.recipe.model_dump(mode="json"),
            self.seed_lrs,
            self.fractions,
            _facts(self.name).data_fingerprint,
            torch.__version__,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


SPECS = (
    TableSpec(
        name="tuning-a",
        family="tuning",
        changes={"label_noise": 0.1, "epochs": 20},
        seeds=tuple(range(101, 104)),
    ),
    TableSpec(
        name="tuning-b",
        family="tuning",
        changes={"label_noise": 0.3, "epochs": 15, "model": {"hidden": [32, 32]}},
        seeds=tuple(range(111, 114)),
    ),
    TableSpec(
        name="tuning-c",
        family="tuning",
        changes={"label_noise": 0.1, "epochs": 40, "model": {"hidden": [32, 32]}},
        seeds=(121,),
    ),
    TableSpec(name="report-a", family="report", changes={}, seeds=tuple(range(1, 6))),
    TableSpec(
        name="report-b", family="report", changes={"label_noise": 0.4}, seeds=tuple(range(11, 16))
    ),
    TableSpec(
        name="quick",
        family="quick",
        changes={"epochs": 6},
        seeds=(1, 2),
        seed_lrs=SEED_LRS[::4],
        fractions=FRACTIONS[::3],
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
    """The trained tables of ``family`` (``only`` one by name), with the random seeds there are.

    UserError if there is none.
    """
    tables = []
    for spec in SPECS:
        paths = [_path(folder, spec, seed) for seed in spec.seeds]
        found = [np.load(path) for path in paths if path.exists()]
        if found and spec.family == family and only in (None, spec.name):
            curves = {name: np.stack([file[name] for file in found]) for name in METRICS}
            tables.append(
                CurveTable(
                    name=spec.name,
                    seed_lrs=spec.seed_lrs,
                    fractions=spec.fractions,
                    steps=tuple(int(step) for step in found[0]["steps"]),
                    schedules=_schedules(spec),
                    curves=curves,
                )
            )
    if not tables:
        raise UserError(
            f"{folder}: no table of the family {family}; train it with "
            "python -m benchmarks.curve_tables"
        )
    return tables


def train_seed(spec: TableSpec, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Every run of the grid with one random seed: arrays (seed LR, fraction, evaluation).

    Runs are branches of shared trunks, which changes no bit of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        order = _order(spec, seed, Path(folder))
        grid = [[_curve(spec, order, schedule) for schedule in row] for row in _schedules(spec)]
    steps = max((tuple(curve) for row in grid for curve in row), key=len)
    nothing = dict.fromkeys(METRICS, math.nan)
    values = {
        name: np.array(
            [[[curve.get(step, nothing)[name] for step in steps] for curve in row] for row in grid]
        )
        for name in METRICS
    }
    return {"steps": np.array(steps), **values}


class _Listener(Channel):
    """A channel that keeps what is reported."""

    def __init__(self) -> None:
        self.curve: dict[int, dict[str, float]] = {}

    def report(self, report: Report) -> Decision:
        self.curve[report.step] = {name: report.metrics[f"valid_{name}"] for name in METRICS}
        return Decision(stop=False)

    def progress(self, step: int) -> None: ...

    def line(self, text: str) -> None: ...


def _curve(spec: TableSpec, order: TaskOrder, schedule: Knee) -> dict[int, dict[str, float]]:
    """One run's metrics after each evaluation; shorter if it diverged."""
    plan = on_trunk(
        train_plan(
            order,
            spec.recipe,
            _facts(spec.name),
            schedule=schedule,
            checkpoint_dir=order.log_dir / f"{schedule.seed_lr}-{schedule.explore_steps}",
        ),
        spec.recipe,
        _facts(spec.name),
        trunks=order.log_dir,
        explore_fractions=spec.fractions,
    )
    listener = _Listener()
    run_job(plan, Group(), listener)
    return listener.curve


def _order(spec: TableSpec, seed: int, folder: Path) -> TaskOrder:
    return TaskOrder(task="digits", recipe=spec.changes, seed=seed, data_dir=folder, log_dir=folder)


@cache
def _facts(name: str) -> TaskFacts:
    spec = next(spec for spec in SPECS if spec.name == name)
    order = _order(spec, 0, Path())
    done = run_job(DescribePlan(**dict(order)), Group(), _Listener())
    return TaskFacts.model_validate(done.result)


def _schedules(spec: TableSpec) -> tuple[tuple[Knee, ...], ...]:
    facts = _facts(spec.name)

    def knee(lr: float, fraction: float) -> Knee:
        schedule = knee_schedule(spec.recipe, facts, seed_lr=lr, explore_fraction=fraction)
        assert isinstance(schedule, Knee), "these recipes have no phases"
        return schedule

    return tuple(tuple(knee(lr, fraction) for fraction in spec.fractions) for lr in spec.seed_lrs)


def _path(folder: Path, spec: TableSpec, seed: int) -> Path:
    return folder / f"{spec.name}-{spec.fingerprint}" / f"seed-{seed}.npz"


def train_tables(specs: list[TableSpec], *, folder: Path) -> None:
    """Train what is missing: the first random seed of every table, then the second of every one."""
    torch.set_num_threads(1)
    jobs = [(index, spec, seed) for spec in specs for index, seed in enumerate(spec.seeds)]
    for _, spec, seed in sorted(jobs, key=lambda job: job[0]):
        path = _path(folder, spec, seed)
        if path.exists():
            continue
        began = time.perf_counter()
        arrays = train_seed(spec, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft.npz")
        np.savez_compressed(draft, allow_pickle=False, **arrays)
        draft.replace(path)
        runs = len(spec.seed_lrs) * len(spec.fractions)
        print(
            f"{spec.name}: {runs} runs of seed {seed} in {time.perf_counter() - began:.0f} s",
            flush=True,
        )


def main() -> None:
    """Train the tables that are missing and say what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one small table, half a minute")
    parser.add_argument("--family", choices=["tuning", "report"], help="only this one")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    chosen = parser.parse_args()
    families = (
        ("quick",) if chosen.quick else (chosen.family or "tuning", chosen.family or "report")
    )
    train_tables([spec for spec in SPECS if spec.family in families], folder=chosen.tables)


if __name__ == "__main__":
    main()
