"""What a study shows beside the terminal: pages in Optuna Dashboard, artifacts in MLflow, a report.

Nothing in here ends a study: what cannot be written (a full disk, a database that is locked)
becomes a line.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Self

from knee_tune.app.opened import OpenedStudy
from knee_tune.reporting.note import study_note
from knee_tune.reporting.tables import (
    optimal_table,
    replicates_table,
    surface_table,
    trials_table,
)
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.ridge import Ridge
from knee_tune.specs.tracking import Attached
from knee_tune.tuning.artifacts import attach_to_study, attach_weights
from knee_tune.tuning.dashboard import link_trials, show_figures, write_study_note
from knee_tune.tuning.study import study_record

INTERVAL = 20.0
"""Seconds between two updates of a running study, at least."""

SHARE = 20
"""Updates take at most one part in so many of a running study's time."""

ON_THE_PAGE = ("surface", "ridge")
"""Figures that Optuna Dashboard shows; it has curves and importances of its own."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the end of a study's run adds to its MLflow run, what it found, where its report is."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ridge: Ridge | None = None
    report: Path | None = None


def publish(opened: OpenedStudy, *, on_line: Say) -> Published:
    """Everything about a study as it is now, with all statistics; takes seconds."""
    record, ridge = study_record(opened.study), None
    figures: dict[str, dict[str, Any]] = {}
    report: tuple[Path, ...] = ()
    with _or_a_line("statistics", on_line):
        from knee_tune.reporting.ridge import ridge_of

        ridge = ridge_of(record)
    with _or_a_line("figures", on_line):
        from knee_tune.reporting.figures import study_figures

        figures = study_figures(record, ridge)
    with _or_a_line("report", on_line):
        report = _write_report(opened, record, ridge)
    opened.tracker.flush()  # so that every run's address is known
    note = _note(opened, record, ridge)
    with _or_a_line("Optuna Dashboard", on_line):
        _show(opened, record, note, figures)
    with _or_a_line("artifacts in Optuna Dashboard", on_line):
        store = opened.places.home.dashboard_artifacts
        for file in report:
            attach_to_study(opened.study, file, store=store)
        if record.winner is not None:
            attach_weights(opened.study, winner=record.winner.number, store=store)
    with _or_a_line("MLflow", on_line):
        for artifact in _artifacts(record, ridge, figures, report):
            opened.tracker.record(artifact)
    return Published(
        metrics=_metrics(ridge),
        tags={"mlflow.note.content": note} | _tags(ridge),
        ridge=ridge,
        report=next(iter(report), None),
    )


class LivePages:
    """Keeps a running study's page in Optuna Dashboard up to date, in a thread of its own."""

    def __init__(self, opened: OpenedStudy, *, on_line: Say, interval: float = INTERVAL) -> None:
        self._opened, self._on_line, self._interval = opened, on_line, interval
        self._changed, self._over = threading.Event(), threading.Event()
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="live pages", daemon=True)

    def changed(self) -> None:
        """There is something new to show; returns at once."""
        self._changed.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._interval
        while not self._over.wait(pause):
            if self._changed.is_set():
                self._changed.clear()
                started = time.monotonic()
                show_now(self._opened, on_line=self._tell_once)
                pause = max(self._interval, SHARE * (time.monotonic() - started))

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_line(text)


def show_now(opened: OpenedStudy, *, on_line: Say) -> None:
    """Show in Optuna Dashboard how the study stands; without intervals, which take long."""
    with _or_a_line("Optuna Dashboard", on_line):
        from knee_tune.reporting.figures import study_figures
        from knee_tune.reporting.ridge import ridge_of

        record = study_record(opened.study)
        ridge = ridge_of(record, resamples=0)
        figures = study_figures(record, ridge) if record.best else {}
        _show(opened, record, _note(opened, record, ridge), figures)


def _show(
    opened: OpenedStudy, record: StudyRecord, note: str, figures: Mapping[str, dict[str, Any]]
) -> None:
    write_study_note(opened.study, note)
    show_figures(opened.study, {name: figures[name] for name in ON_THE_PAGE if name in figures})
    unlinked = (each for each in record.trials if each.run_url is None and _has_ended(each.state))
    links = {trial.number: opened.tracker.run_of(trial.key) for trial in unlinked}
    link_trials(opened.study, {number: link.url for number, link in links.items() if link})


def _has_ended(state: str) -> bool:
    return state in ("complete", "pruned", "failed")


def _note(opened: OpenedStudy, record: StudyRecord, ridge: Ridge | None) -> str:
    run, command = opened.tracker.run_of(None), opened.places.ui_command
    link = ""
    if run is not None and command is not None:
        start = f" (start `{command}` first)" if " " in command else ""
        link = f"[MLflow run of this study]({run.url}){start}"
    more = opened.places.command("report", record.name)
    return study_note(record, ridge, links=(link, f"Report: `{more}`"))


def _write_report(
    opened: OpenedStudy, record: StudyRecord, ridge: Ridge | None
) -> tuple[Path, ...]:
    """The report as files, HTML first."""
    return ()


def _artifacts(
    record: StudyRecord,
    ridge: Ridge | None,
    figures: Mapping[str, dict[str, Any]],
    report: tuple[Path, ...],
) -> Iterator[Attached]:
    """What the MLflow run of the study holds."""
    for file in report:
        yield Attached(name=file.name, file=file)
    for name, figure in figures.items():
        yield Attached(name=f"plots/{name}.html", figure=figure)
    tables = {
        "tables/trials.csv": trials_table(record),
        "tables/replicates.csv": replicates_table(record),
    }
    if ridge is not None:
        tables |= {
            "tables/surface.csv": surface_table(ridge.surface),
            "tables/surface.json": ridge.surface.model_dump_json(indent=2),
            "tables/optimal.csv": optimal_table(ridge),
            "ridge.json": ridge.model_dump_json(indent=2),
        }
    for name, text in tables.items():
        yield Attached(name=name, text=text)


def _metrics(ridge: Ridge | None) -> dict[str, float]:
    if ridge is None:
        return {}
    metrics: dict[str, float | None] = {
        "spearman": ridge.spearman.value if ridge.spearman else None,
        "crossover_p": ridge.crossover.p if ridge.crossover else None,
    }
    if (best := ridge.recommended) is not None:
        metrics |= {
            "recommended_seed_lr": best.seed_lr,
            "recommended_explore_fraction": best.explore_fraction,
            f"expected_{ridge.surface.metric}": best.expected.value,
        }
    return {name: value for name, value in metrics.items() if value is not None and isfinite(value)}


def _tags(ridge: Ridge | None) -> dict[str, str]:
    return {} if ridge is None else {"knee.verdict": ridge.verdict}


@contextmanager
def _or_a_line(what: str, on_line: Say) -> Iterator[None]:
    """Whatever goes wrong becomes a line: the study itself is sound."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        on_line(f"{what}: could not be written ({type(error).__name__}: {reason})")
