"""What a study shows beside the terminal: pages in Optuna Dashboard, artifacts in MLflow, a report.

Nothing in here ends a study: what cannot be written (a full disk, a database that is locked)
becomes a line.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from knee_tune.commands.opened import OpenedStudy
from knee_tune.commands.report import (
    Format,
    report_of,
    statistics_of,
    usual_path,
    write_report,
)
from knee_tune.errors import first_line
from knee_tune.records.events import Attached
from knee_tune.records.findings import Ridge
from knee_tune.records.study import StudyRecord
from knee_tune.report.answer import answer_of, study_note
from knee_tune.report.document import Report
from knee_tune.report.report import study_figures
from knee_tune.report.tables import study_tables
from knee_tune.stats.comparison import Comparison
from knee_tune.study.dashboard import (
    attach_to_study,
    attach_weights,
    link_trials,
    show_figures,
    write_study_note,
)
from knee_tune.study.patience import StorageGoneError
from knee_tune.study.study import study_record, trial_attrs

ON_THE_PAGE: Mapping[str, str] = MappingProxyType(
    {
        "surface": "Seed LR and explore fraction together",
        "ridge": "The best explore fraction for each seed LR",
        "beside": "Ours, and the paper's",
    }
)
"""Figures that Optuna Dashboard shows, with their titles."""

Statistics = Ridge | Comparison | None


def metrics_of(record: StudyRecord, statistics: Statistics) -> dict[str, float]:
    """The study as a whole in numbers: the ridge and what is recommended; slopes of a series."""
    if isinstance(statistics, Comparison):
        return _finite({f"slope_{each.metric}": each.slope.value for each in statistics.trends})
    if statistics is None:
        return {}
    metrics: dict[str, float | None] = {
        "spearman": statistics.spearman.value if statistics.spearman else None,
        "crossover_p": statistics.crossover.p if statistics.crossover else None,
    }
    if (answer := answer_of(record, statistics)) is not None:
        metrics |= {
            "recommended_seed_lr": answer.seed_lr,
            "recommended_explore_fraction": answer.explore_fraction,
            f"expected_{answer.metric}": answer.expected.value,
        }
    return _finite(metrics)


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None and isfinite(value)}


INTERVAL = 20.0
"""Seconds between two updates of a running study, at least."""

SHARE = 20
"""Updates take at most one part in so many of a running study's time."""

MOST_COLUMNS = 6
"""Of a heat map on half a page that leave room for numbers in its cells."""

CARD_HEIGHT = 450
"""Pixels that the dashboard shows of a figure."""

FORMS: tuple[Format, ...] = ("html", "md", "json")

ENDED = ("complete", "pruned", "failed")

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
    record = study_record(opened.study)
    statistics: Statistics = None
    with _or_a_line("statistics", opened, on_line):
        statistics = statistics_of(record)
    if record.best is None and not isinstance(statistics, Comparison):
        show_now(opened, on_line=on_line)
        return Published()
    report = None
    files: tuple[Path, ...] = ()
    with _or_a_line("report", opened, on_line):
        report = report_of(opened.study, opened.places, record=record, statistics=statistics)
        files = _write(report, opened)
    opened.tracker.flush()  # so that every run's address is known
    with _or_a_line("Optuna Dashboard", opened, on_line):
        _show(opened, record, statistics, report.figures if report else {})
        _attach(opened, record, files)
    with _or_a_line("MLflow", opened, on_line):
        for artifact in _pages(report, files):
            opened.tracker.record(artifact)
        for name, text in study_tables(record, statistics):
            opened.tracker.record(Attached(name=f"tables/{name}", text=text))
    ridge = statistics if isinstance(statistics, Ridge) else None
    return Published(
        metrics=metrics_of(record, statistics),
        tags={"mlflow.note.content": study_note(record, statistics, links=_more(opened))}
        | ({"knee.verdict": ridge.verdict} if ridge else {}),
        ridge=ridge,
        report=files[0] if files else None,
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
    with _or_a_line("Optuna Dashboard", opened, on_line):
        record = study_record(opened.study)
        statistics = statistics_of(record, resamples=0)
        _show(opened, record, statistics, study_figures(record, statistics))


def _show(
    opened: OpenedStudy,
    record: StudyRecord,
    statistics: Statistics,
    figures: Mapping[str, dict[str, Any]],
) -> None:
    links = [*_more(opened), *_link_to_study(opened)]
    write_study_note(opened.study, study_note(record, statistics, links=links))
    show_figures(
        opened.study,
        {
            name: _titled(_legible(figures[name]), title)
            for name, title in ON_THE_PAGE.items()
            if name in figures
        },
    )
    unlinked = [each for each in record.trials if each.run_url is None and each.state in ENDED]
    runs = {trial.number: opened.tracker.run_of(trial.key) for trial in unlinked}
    link_trials(opened.study, {number: run.url for number, run in runs.items() if run})


def _more(opened: OpenedStudy) -> tuple[str, ...]:
    command = opened.places.command("report", opened.study.study_name)
    return (f"All of it: `{command}`",)


def _link_to_study(opened: OpenedStudy) -> Iterator[str]:
    run, command = opened.tracker.run_of(None), opened.places.ui_command
    if run is not None and command is not None:
        start = f" (while `{command}` runs)" if " " in command else ""
        yield f"[Its trials in MLflow]({run.url}){start}"


def _write(report: Report, opened: OpenedStudy) -> tuple[Path, ...]:
    """The report as files, HTML first."""
    opened.workers.held.raise_if_gone()  # before its folder is made
    return tuple(
        write_report(report, usual_path(opened.places, report.study, form), form) for form in FORMS
    )


def _attach(opened: OpenedStudy, record: StudyRecord, files: Sequence[Path]) -> None:
    store = opened.places.home.dashboard_artifacts
    for file in files:
        attach_to_study(opened.study, file, name=f"report{file.suffix}", store=store)
    winner = record.winner
    if winner is not None and winner.trial is not None:
        number = winner.trial.number
        noted = trial_attrs(opened.study, number).get("weights", "")
        weights = opened.places.home.weights(noted)
        attach_weights(opened.study, winner=number, weights=weights, store=store)


def _pages(report: Report | None, files: Sequence[Path]) -> Iterator[Attached]:
    for file in files:
        yield Attached(name=f"report{file.suffix}", file=file)
    if report is not None:
        titles = {name: each.title for each in report.sections for name in each.figures}
        for name, figure in report.figures.items():
            titled = _titled(figure, titles.get(name, name))
            yield Attached(name=f"plots/{name}.html", figure=titled)


def _legible(figure: dict[str, Any]) -> dict[str, Any]:
    """The dashboard has half a page for a figure: numbers in many cells would be dots."""
    traces = [
        {name: value for name, value in trace.items() if name != "texttemplate"}
        if len(trace.get("x", ())) > MOST_COLUMNS
        else trace
        for trace in figure["data"]
    ]
    return {"data": traces, "layout": figure["layout"] | {"height": CARD_HEIGHT}}


def _titled(figure: dict[str, Any], title: str) -> dict[str, Any]:
    """In a report a heading stands above a figure; alone, it needs a title and room for it."""
    layout = figure["layout"]
    margin = layout.get("margin", {})
    above = {"text": title, "x": 0.02, "y": 1, "yref": "container", "yanchor": "top"}
    return figure | {
        "layout": layout
        | {
            "title": above | {"pad": {"t": 34}},  # below plotly's buttons
            "margin": margin | {"t": margin.get("t", 40) + 52},
        }
    }


@contextmanager
def _or_a_line(what: str, opened: OpenedStudy, on_line: Say) -> Iterator[None]:
    """Whatever goes wrong becomes a line: the study itself is sound."""
    try:
        yield
    except StorageGoneError:
        pass  # the command ends of it, and says so
    except Exception as error:
        if opened.workers.held.gone:
            return  # so does it of that
        reason = first_line(error)
        on_line(f"{what}: could not be written ({type(error).__name__}: {reason})")
