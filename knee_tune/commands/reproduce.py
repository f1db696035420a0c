"""``knee-tune reproduce``: a table of the paper again, as a study of ours and its report."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.workers import GroupOptions, has_gpu
from knee_tune.config.recipe import Recipe
from knee_tune.config.resolve import scaled_name
from knee_tune.config.strict_yaml import available, find, read_document
from knee_tune.config.study import ResolvedStudy, StudySpec
from knee_tune.errors import UserError
from knee_tune.records.findings import Ridge
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Estimate
from knee_tune.stats.comparison import Measured, comparison_of
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
        there = _in_short(known, table=table, task=task)
        raise UserError(f"reproduce {asked}: there is no such design; {there}")
    return found


def _in_short(known: list[Design], *, table: str, task: str) -> str:
    """What there is instead, in as few words as an error has room for: of the task, or the table.

    Without either, the tasks.
    """
    of_task = [each for each in known if each.task == task]
    of_table = [each for each in known if each.table == table]
    if not of_task and not of_table:
        return f"the tasks are {', '.join(sorted({each.task for each in known}))}"
    near = of_table if table in {each.table for each in of_task} or not of_task else of_task
    return f"there are {', '.join(sorted(each.command for each in near))}"


def resolve_table(
    table: str,
    *,
    task: str,
    preset: str | None = None,
    name: str | None = None,
    seeds: int | None = None,
    scale: float | None = None,
    fuse: bool = True,
    settings: Sequence[str] = (),
    nproc: int | None = None,
    slots: int | None = None,
    options: GroupOptions,
) -> tuple[ResolvedStudy[Recipe], GroupOptions]:
    """The study that repeats a table, and how it is trained; UserError for what there is not.

    None leaves the choice to the study file, or (``nproc``, and ``slots``: runs at a time) to the
    machine; of ``options`` those two are not read. Replicas are spread over all CPU cores: a rank
    on each. Without fusing, on tasks that do not fuse, and where the rows of a table are trained,
    as many runs are trained at a time instead. A study with another number of seeds or scale, or
    without fusing, has a name of its own.
    """
    design = find_design(table, task=task, preset=preset)
    plain = resolve_asked(task=task, study=design.study)
    fused = fuse and task_entry(task).fuses and plain.compare is None
    named = nproc or design.nproc
    replicates = seeds or plain.replicates
    if fused:
        parts_of_work = replicates
    else:
        parts_of_work = replicates * len(plain.compare.rows) if plain.compare else plain.size
    cores = 1 if named or has_gpu(options.device) else min(usable_cores(), parts_of_work)
    ranks = named or (cores if fused else 1)
    as_designed = scale in (None, plain.scale)
    parts = [
        design.study if as_designed else scaled_name(design.study, scale or plain.scale),
        f"{replicates}-seeds" if replicates != plain.replicates else "",
        "one-by-one" if plain.compare is None and not fuse else "",
    ]
    spec = resolve_asked(
        task=task,
        study=design.study,
        settings=settings,
        name=name or "-".join(filter(None, parts)),
        replicates=replicates,
        fuse=None if fuse else False,
        nproc=ranks,
        scale=scale,
    )
    if spec.typed_recipe.steps is not None:
        raise UserError("`settings` recipe.steps: a table's budgets are epochs; use recipe.epochs")
    placed = replace(
        options,
        nproc=ranks,
        nproc_asked=nproc is not None,
        slots=slots or (1 if fused else cores),
    )
    return spec, placed


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One point of the study: means over its random seeds."""

    seed_lr: float
    explore_fraction: float
    explore_epochs: float
    metrics: dict[str, float]
    std: dict[str, float]


def table_rows(record: StudyRecord) -> list[TableRow]:
    """Every complete point, by seed LR and explore fraction."""
    ranked = sorted(record.ranked, key=lambda trial: trial.point)
    return [_row(trial, record.spec) for trial in ranked]


def compared_rows(record: StudyRecord) -> list[dict[str, Any]]:
    """The table's rows beside ours; empty for a search, or before a run is complete."""
    table = record.spec.compare
    if table is None or not any(run.state == "complete" for run in record.compared):
        return []
    return [
        {
            "label": row.shown,
            "setting": row.setting,
            "paper": {
                name: {"mean": value, "std": row.std.get(name)}
                for name, value in row.metrics.items()
            },
            "ours": {name: _measured(each) for name, each in ours.metrics.items() if each.values},
            "failed": ours.missing,
        }
        for row, ours in zip(table.rows, comparison_of(record).rows, strict=True)
    ]


def as_json(
    table: str, record: StudyRecord, *, ridge: Ridge | None, report: Path | None
) -> dict[str, Any]:
    """The object that ``reproduce --json`` prints."""
    optimal = [
        {"seed_lr": each.seed_lr, "explore_fraction": each.raw.value, **_interval(each.raw)}
        for each in (ridge.optimal if ridge else ())
        if each.raw is not None
    ]
    steps, spearman = record.steps, ridge.spearman if ridge else None
    return {
        "table": table,
        "study": record.name,
        "optimal": optimal,
        "spearman": {"value": spearman.value, **_interval(spearman)} if spearman else None,
        "crossover_p": ridge.crossover.p if ridge and ridge.crossover else None,
        "verdict": ridge.verdict if ridge else None,
        "seconds": round(record.seconds, 1),
        "steps": {"trained": steps.trained, "independent": steps.independent},
        "rows": compared_rows(record) or [vars(row) for row in table_rows(record)],
        "report": str(report) if report else None,
    }


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
