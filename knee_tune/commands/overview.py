"""Tables 5, 6 and 7 of the paper: what several studies found, side by side.

They are summaries: every cell is the row of another table, and comes from the study that trains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from knee_tune.commands.home import Places
from knee_tune.config.resolve import scaled_name
from knee_tune.config.study import ReferenceRow
from knee_tune.records.study import StudyRecord
from knee_tune.stats.comparison import Measured, RowOutcome, comparison_of
from knee_tune.study.storage import is_missing, open_storage
from knee_tune.study.study import load_study, study_names, study_record


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A published number, and the row of a study that answers it."""

    column: str
    paper: float
    """The metric; in Table 7 the epochs after which it reaches the target."""
    study: str
    schedule: str
    epochs: int
    explore_epochs: int | None = None
    """None: that schedule's only row of so many epochs."""

    def is_of(self, row: ReferenceRow) -> bool:
        """Whether this row of the study is meant."""
        return (row.schedule, row.epochs) == (self.schedule, self.epochs) and (
            self.explore_epochs in (None, row.explore_epochs)
        )


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of such a table: one experiment at one budget."""

    experiment: str
    metric: str
    budget: str
    """As the paper has it; in Table 7 the target."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A cell with what our study has measured."""

    cell: Cell
    command: str
    """What trains it."""
    ours: Measured | None
    """None: not trained."""
    epochs: float | None
    """That ours was trained for."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A table with everything that was found for it."""

    table: str
    lines: tuple[tuple[Line, tuple[Found, ...]], ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The commands that train what is not there, each once."""
        found = (each for _, cells in self.lines for each in cells)
        return tuple(dict.fromkeys(each.command for each in found if each.ours is None))


def overview_of(table: str, places: Places, *, scale: float | None = None) -> Overview:
    """Table 5, 6 or 7 with what the studies in ``places`` found, at ``scale`` times their epochs.

    Where there is no storage, or not these studies, nothing was found. KeyError for other tables.
    """
    storage = None if is_missing(places.storage_url) else open_storage(places.storage_url)
    names = study_names(storage) if storage is not None else []
    scaled = () if scale in (None, 1.0) else ("--scale", f"{scale:g}")

    @cache
    def outcomes(study: str) -> Outcomes:
        name = scaled_name(study, scale or 1.0) if scaled else study
        if storage is None or name not in names:
            return ()
        return _outcomes(study_record(load_study(storage, name)))

    def found(cell: Cell, metric: str) -> Found:
        table, _, task = cell.study.partition("-")
        command = places.command("reproduce", table, "--task", task, *scaled)
        for row, outcome in outcomes(cell.study):
            ours = outcome.metrics.get(metric)
            if cell.is_of(row) and ours is not None and ours.values:
                return Found(cell=cell, command=command, ours=ours, epochs=outcome.trained_epochs)
        return Found(cell=cell, command=command, ours=None, epochs=None)

    return Overview(
        table=table,
        lines=tuple(
            (line, tuple(found(cell, line.metric) for cell in line.cells))
            for line in SUMMARIES[table]
        ),
    )


Outcomes = Sequence[tuple[ReferenceRow, RowOutcome]]


def _outcomes(record: StudyRecord) -> Outcomes:
    """The rows of a study with what was measured; none before a run is complete."""
    table = record.spec.compare
    if table is None or not any(run.state == "complete" for run in record.compared):
        return ()
    return tuple(zip(table.rows, comparison_of(record).rows, strict=True))


def as_json(overview: Overview) -> dict[str, Any]:
    """The object that ``reproduce table5 --json`` prints."""
    return {
        "table": overview.table,
        "rows": [
            {
                "experiment": line.experiment,
                "metric": line.metric,
                "budget": line.budget,
                "cells": [
                    {
                        "column": each.cell.column,
                        "paper": each.cell.paper,
                        "ours": _as_json(each),
                        "command": each.command,
                    }
                    for each in found
                ],
            }
            for line, found in overview.lines
        ],
    }


def _as_json(found: Found) -> dict[str, Any] | None:
    if found.ours is None or found.ours.mean is None:
        return None
    mean = found.ours.mean
    return {
        "mean": mean.value,
        "low": mean.low,
        "high": mean.high,
        "std": found.ours.std,
        "n": len(found.ours.values),
        "epochs": found.epochs,
    }


# Where every cell comes from. Rows that no other table of the paper has are in studies called after
# these tables, as table5-iwslt.

Origin = tuple[float, str, str, int, int | None]
"""A published number; study, schedule, epochs and explore epochs of the row that it is of."""


def _line(
    experiment: str, budget: str, metric: str, columns: tuple[str, ...], *origins: Origin | None
) -> Line:
    """None stands for a cell that the paper leaves empty."""
    return Line(
        experiment=experiment,
        metric=metric,
        budget=budget,
        cells=tuple(
            Cell(
                column=column,
                paper=origin[0],
                study=origin[1],
                schedule=origin[2],
                epochs=origin[3],
                explore_epochs=origin[4],
            )
            for column, origin in zip(columns, origins, strict=True)
            if origin is not None
        ),
    )


_FULL = ("Knee", "Knee, fixed 50%", "Baseline", "One-cycle", "Cosine", "Linear")
_SHORT = ("Knee", "One-cycle", "Cosine", "Linear")
_TARGET = ("Knee", "Cosine", "Linear")

SUMMARIES: Mapping[str, tuple[Line, ...]] = {
    "table5": (
        _line(
            *("ImageNet", "90 epochs", "test_accuracy", _FULL),
            (76.71, "table8-imagenet", "knee", 90, 30),
            (76.58, "table5-imagenet", "knee", 90, 45),
            (75.87, "table8-imagenet", "step", 90, None),
            (75.39, "table19-imagenet", "one_cycle", 90, None),
            (76.41, "table19-imagenet", "cosine", 90, None),
            (76.54, "table19-imagenet", "linear", 90, None),
        ),
        _line(
            *("CIFAR-10", "200 epochs", "test_accuracy", _FULL),
            (95.26, "table9-cifar10", "knee", 200, 100),
            (95.26, "table9-cifar10", "knee", 200, 100),
            (95.10, "table9-cifar10", "step", 200, None),
            (94.09, "table17-cifar10", "one_cycle", 200, None),
            (95.23, "table17-cifar10", "cosine", 200, None),
            (95.18, "table17-cifar10", "linear", 200, None),
        ),
        _line(
            *("IWSLT'14", "50 epochs", "test_bleu", _FULL),
            (35.53, "table23-iwslt", "knee", 50, 40),
            (35.23, "table5-iwslt", "knee", 50, 25),
            (34.97, "table23-iwslt", "linear", 50, None),
            (34.77, "table23-iwslt", "one_cycle", 50, None),
            (35.21, "table23-iwslt", "cosine", 50, None),
            (34.97, "table23-iwslt", "linear", 50, None),
        ),
        _line(
            *("WMT'14", "70 epochs", "test_bleu", _FULL),
            (27.53, "table21-wmt14", "knee", 70, 50),
            (27.41, "table5-wmt14", "knee", 70, 35),
            (27.29, "table21-wmt14", "linear", 70, None),
            (27.19, "table21-wmt14", "one_cycle", 70, None),
            (27.35, "table21-wmt14", "cosine", 70, None),
            (27.29, "table21-wmt14", "linear", 70, None),
        ),
        _line(
            *("BERT", "31250 (iters)", "squad_f1", _FULL),
            (91.51, "table10-bert", "knee", 31250, 15625),
            (91.51, "table10-bert", "knee", 31250, 15625),
            (91.34, "table10-bert", "linear", 31250, None),
            None,
            None,
            (91.34, "table10-bert", "linear", 31250, None),
        ),
    ),
    "table6": (
        _line(
            *("ImageNet", "50 epochs", "test_accuracy", _SHORT),
            (75.92, "table20-imagenet", "knee", 50, 30),
            (75.36, "table20-imagenet", "one_cycle", 50, None),
            (75.71, "table20-imagenet", "cosine", 50, None),
            (75.82, "table20-imagenet", "linear", 50, None),
        ),
        _line(
            *("CIFAR-10", "150 epochs", "test_accuracy", _SHORT),
            (95.14, "table18-cifar10", "knee", 150, 100),
            (93.84, "table18-cifar10", "one_cycle", 150, None),
            (95.06, "table18-cifar10", "cosine", 150, None),
            (95.02, "table18-cifar10", "linear", 150, None),
        ),
        _line(
            *("IWSLT'14", "35 epochs", "test_bleu", _SHORT),
            (35.08, "table24-iwslt", "knee", 35, 30),
            (34.43, "table24-iwslt", "one_cycle", 35, None),
            (34.46, "table24-iwslt", "cosine", 35, None),
            (34.16, "table24-iwslt", "linear", 35, None),
        ),
        _line(
            *("WMT'14", "30 epochs", "test_bleu", _SHORT),
            (27.28, "table22-wmt14", "knee", 30, 25),
            (26.80, "table22-wmt14", "one_cycle", 30, None),
            (26.95, "table22-wmt14", "cosine", 30, None),
            (26.77, "table22-wmt14", "linear", 30, None),
        ),
        _line(
            *("BERT", "20854 (iters)", "squad_f1", _SHORT),
            (91.29, "table10-bert", "knee", 20854, 10427),
            None,
            None,
            (90.64, "table10-bert", "linear", 20854, None),
        ),
    ),
    # The epochs that each schedule needs: the metric of ours at those epochs stands beside them.
    "table7": (
        _line(
            *("IWSLT'14", "BLEU 35.08", "test_bleu", _TARGET),
            (35, "table24-iwslt", "knee", 35, 30),
            (45, "table7-iwslt", "cosine", 45, None),
            (60, "table7-iwslt", "linear", 60, None),
        ),
        _line(
            *("WMT'14", "BLEU 27.28", "test_bleu", _TARGET),
            (30, "table22-wmt14", "knee", 30, 25),
            (60, "table7-wmt14", "cosine", 60, None),
            (70, "table21-wmt14", "linear", 70, None),
        ),
    ),
}
"""Tables 5, 6 and 7 by name."""
