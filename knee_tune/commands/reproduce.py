"""``knee-tune reproduce``: a table of the paper again, as a study of ours and its report."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from knee_tune.commands.home import Places
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.run import Watch, run_study
from knee_tune.commands.workers import Device, GroupOptions, has_gpu
from knee_tune.config.recipe import Recipe
from knee_tune.config.resolve import scaled_name
from knee_tune.config.strict_yaml import available, find, read_document
from knee_tune.config.study import StudySpec
from knee_tune.errors import UserError
from knee_tune.records.findings import Ridge
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Estimate
from knee_tune.stats.comparison import Comparison, Measured, comparison_of
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.cores import usable_cores

TABLE_STUDY = re.compile(r"(table\d+)-(.+)")
"""Studies that repeat a table are called ``tableN-TASK`` or ``tableN-TASK-PRESET``."""

TABLE_NUMBER = re.compile(r"Table (\d+)")


@dataclass(frozen=True, kw_only=True)
class Design:
    """A study file that repeats one of the paper's tables."""

    table: str
    task: str
    preset: str | None
    """None: the size that needs no ``--preset``."""
    study: str
    nproc: int | None
    """Ranks that the file asks for."""

    def answers(self, table: str, task: str, preset: str | None) -> bool:
        """Whether this is what was asked for."""
        return (self.table, self.task, self.preset) == (table, task, preset)

    @property
    def command(self) -> str:
        """What to type after ``knee-tune reproduce``."""
        preset = f" --preset {self.preset}" if self.preset else ""
        return f"{self.table} --task {self.task}{preset}"


def designs() -> Iterator[Design]:
    """Every table that can be reproduced, on every task; one study may be beside two tables."""
    for study in available("studies"):
        if named := TABLE_STUDY.fullmatch(study):
            path = find("studies", study)
            data = read_document(path, str(path)).data
            task = str(data.get("task"))
            usual = named[2] == task
            beside = TABLE_NUMBER.findall(str((data.get("compare") or {}).get("table")))
            for table in dict.fromkeys([named[1], *(f"table{number}" for number in beside)]):
                yield Design(
                    table=table,
                    task=task,
                    preset=None if usual else str(data.get("preset")),
                    study=study,
                    nproc=data.get("nproc"),
                )


def find_design(table: str, *, task: str, preset: str | None) -> Design:
    """The design for a table on a task; UserError, naming what there is, if there is none."""
    known = list(designs())
    found = next((each for each in known if each.answers(table, task, preset)), None)
    if found is None:
        asked = f"{table} --task {task}" + (f" --preset {preset}" if preset else "")
        there = "; ".join(_in_short(known))
        raise UserError(f"reproduce {asked}: there is no such design; there are: {there}")
    return found


def _in_short(known: list[Design]) -> Iterator[str]:
    """Tables and tasks with their presets, in as few words as an error has room for."""
    for table, task in sorted({(each.table, each.task) for each in known}):
        presets = [each.preset for each in known if (each.table, each.task) == (table, task)]
        named = ", ".join(filter(None, presets))
        yield f"{table} --task {task}" + (f" (--preset {named})" if named else "")


@dataclass(frozen=True, kw_only=True)
class ReproductionRequest:
    """What a person asks for; None leaves the choice to the study file."""

    table: str
    task: str
    preset: str | None = None
    name: str | None = None
    seeds: int | None = None
    scale: float | None = None
    fuse: bool = True
    nproc: int | None = None
    slots: int | None = None
    """Runs at a time."""
    device: Device = "auto"
    trials_per_gpu: int = 1
    amp: bool | None = None
    compile: bool = False
    trunk_cache: int = GroupOptions.trunk_cache
    settings: tuple[str, ...] = ()

    def resolve(self) -> tuple[StudySpec, Recipe, GroupOptions]:
        """The study to be run, and how; UserError for what there is not.

        Replicas are spread over all CPU cores: a rank on each. Without fusing, on tasks that do
        not fuse, and where the rows of a table are trained, as many runs are trained at a time
        instead. A study with another number of seeds or scale, or without fusing, has a name of
        its own.
        """
        design = find_design(self.table, task=self.task, preset=self.preset)
        plain = resolve_asked(task=self.task, study=design.study)[0]
        fuse = self.fuse and task_entry(self.task).fuses and plain.compare is None
        named = self.nproc or design.nproc
        seeds = self.seeds or plain.replicates
        if fuse:
            parts_of_work = seeds
        else:
            parts_of_work = seeds * len(plain.compare.rows) if plain.compare else plain.size
        cores = 1 if named or has_gpu(self.device) else min(usable_cores(), parts_of_work)
        nproc = named or (cores if fuse else 1)
        as_designed = self.scale in (None, plain.scale)
        parts = [
            design.study if as_designed else scaled_name(design.study, self.scale or plain.scale),
            f"{seeds}-seeds" if seeds != plain.replicates else "",
            "one-by-one" if plain.compare is None and not self.fuse else "",
        ]
        spec, recipe = resolve_asked(
            task=self.task,
            study=design.study,
            name=self.name or "-".join(filter(None, parts)),
            replicates=seeds,
            fuse=None if self.fuse else False,
            nproc=nproc,
            scale=self.scale,
            settings=self.settings,
        )
        options = GroupOptions(
            nproc=nproc,
            nproc_asked=self.nproc is not None,
            slots=self.slots or (1 if fuse else cores),
            device=self.device,
            trials_per_gpu=self.trials_per_gpu,
            amp=self.amp,
            compile=self.compile,
            trunk_cache=self.trunk_cache,
        )
        return spec, recipe, options


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One point of the study: means over its random seeds."""

    seed_lr: float
    explore_fraction: float
    explore_epochs: float
    metrics: dict[str, float]
    std: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came out of it."""

    table: str
    record: StudyRecord
    ridge: Ridge | None
    report: Path | None

    @property
    def rows(self) -> list[TableRow]:
        """Every complete point, by seed LR and explore fraction."""
        ranked = sorted(self.record.ranked, key=lambda trial: trial.point)
        return [_row(trial, self.record.spec) for trial in ranked]

    @property
    def comparison(self) -> Comparison | None:
        """The table's rows beside ours; None for a search, or before a run is complete."""
        if not any(run.state == "complete" for run in self.record.compared):
            return None
        return comparison_of(self.record)

    def _compared(self) -> list[dict[str, Any]]:
        found, table = self.comparison, self.record.spec.compare
        if found is None or table is None:
            return []
        return [
            {
                "label": row.shown,
                "setting": row.setting,
                "paper": {
                    name: {"mean": value, "std": row.std.get(name)}
                    for name, value in row.metrics.items()
                },
                "ours": {
                    name: _measured(each) for name, each in ours.metrics.items() if each.values
                },
                "failed": ours.missing,
            }
            for row, ours in zip(table.rows, found.rows, strict=True)
        ]

    def as_json(self) -> dict[str, Any]:
        """The object that ``reproduce --json`` prints."""
        ridge, steps = self.ridge, self.record.steps
        optimal = [
            {"seed_lr": each.seed_lr, "explore_fraction": each.raw.value, **_interval(each.raw)}
            for each in (ridge.optimal if ridge else ())
            if each.raw is not None
        ]
        spearman = ridge.spearman if ridge else None
        return {
            "table": self.table,
            "study": self.record.name,
            "optimal": optimal,
            "spearman": {"value": spearman.value, **_interval(spearman)} if spearman else None,
            "crossover_p": ridge.crossover.p if ridge and ridge.crossover else None,
            "verdict": ridge.verdict if ridge else None,
            "seconds": round(self.record.seconds, 1),
            "steps": {"trained": steps.trained, "independent": steps.independent},
            "rows": self._compared() or [vars(row) for row in self.rows],
            "report": str(self.report) if self.report else None,
        }


def reproduce(
    table: str,
    spec: StudySpec,
    recipe: Recipe,
    places: Places,
    options: GroupOptions,
    *,
    watch: Watch,
) -> Reproduction:
    """Run the study of a table, or what is left of it, and report.

    KeyboardInterrupt is raised on after every running trial was told; the same call continues.
    """
    summary = run_study(spec, recipe, places, options, timeout=None, register=False, watch=watch)
    return Reproduction(
        table=table,
        record=summary.record,
        ridge=summary.ridge,
        report=summary.report,
    )


def _row(trial: TrialRecord, spec: StudySpec) -> TableRow:
    values = defaultdict[str, list[float]](list)
    for replicate in trial.replicates:
        for name, value in replicate.metrics.items():
            values[name].append(value)
    return TableRow(
        seed_lr=trial.seed_lr,
        explore_fraction=trial.explore_fraction,
        explore_epochs=round(trial.explore_fraction * spec.recipe["epochs"], 6),
        metrics={name: fmean(each) for name, each in values.items()} or trial.metrics,
        std={name: stdev(each) for name, each in values.items() if len(each) > 1},
    )


def _measured(found: Measured) -> dict[str, Any]:
    """Mean, sample standard deviation, number of seeds, and the 95 % t interval."""
    assert found.mean is not None, "it has values"
    count = len(found.values)
    return {"mean": found.mean.value, "std": found.std, "n": count, **_interval(found.mean)}


def _interval(estimate: Estimate) -> dict[str, float | None]:
    return {"low": estimate.low, "high": estimate.high}
