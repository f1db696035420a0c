"""What a study shows beside the terminal: pages in Optuna Dashboard, artifacts in MLflow, a report.

Nothing in here ends a study: what cannot be written (a full disk, a database that is locked)
becomes a line.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from knee_tune.commands.home import Places
from knee_tune.commands.opened import OpenedStudy
from knee_tune.commands.report import (
    Format,
    comparison_report_of,
    report_of,
    usual_path,
    write_report,
)
from knee_tune.errors import first_line
from knee_tune.records.events import Attached
from knee_tune.records.findings import Ridge
from knee_tune.records.study import StudyRecord
from knee_tune.report.answer import answer_of, study_note
from knee_tune.report.comparison import comparison_note
from knee_tune.report.comparison_figures import comparison_figures
from knee_tune.report.document import (
    Report,
    compared_table,
    optimal_table,
    replicates_table,
    surface_table,
    trials_table,
)
from knee_tune.report.run_figures import study_figures
from knee_tune.stats.comparison import Comparison, comparison_of
from knee_tune.stats.ridge import RESAMPLES, ridge_of
from knee_tune.study.dashboard import (
    attach_to_study,
    attach_weights,
    link_trials,
    show_figures,
    write_study_note,
)
from knee_tune.study.patience import StorageGoneError
from knee_tune.study.study import Study, study_record, trial_attrs

# What is known of a study as it is now, of a search or of a comparison, for whoever shows it.


class Findings(ABC):
    """The record of a study and its statistics."""

    on_the_page: ClassVar[Mapping[str, str]]
    """Figures that Optuna Dashboard shows, with their titles."""
    ridge: Ridge | None = None

    def __init__(self, record: StudyRecord) -> None:
        self.record = record

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether there is anything to report."""

    @abstractmethod
    def note(self, links: Sequence[str]) -> str:
        """The summary of the study, Markdown."""

    @abstractmethod
    def figures(self) -> dict[str, dict[str, Any]]:
        """Plotly figures by name."""

    @abstractmethod
    def report(self, study: Study, places: Places) -> Report:
        """The report; UserError if nothing is complete."""

    @abstractmethod
    def tables(self) -> Iterator[Attached]:
        """The numbers as files."""

    def metrics(self) -> dict[str, float]:
        """Of the study as a whole, finite ones."""
        return {}

    def tags(self) -> dict[str, str]:
        """What the study is found by."""
        return {}


class SearchFindings(Findings):
    """Of a search."""

    on_the_page = MappingProxyType(
        {
            "surface": "Seed LR and explore fraction together",
            "ridge": "The best explore fraction for each seed LR",
        }
    )

    def __init__(self, record: StudyRecord, ridge: Ridge | None) -> None:
        super().__init__(record)
        self.ridge = ridge

    @property
    def complete(self) -> bool:
        """Whether there is a trial to recommend."""
        return self.record.best is not None

    def note(self, links: Sequence[str]) -> str:
        """What to use, how sure that is, and what it cost."""
        return study_note(self.record, self.ridge, links=links)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Surface, ridge and what else there is."""
        return study_figures(self.record, self.ridge)

    def report(self, study: Study, places: Places) -> Report:
        """See :func:`knee_tune.commands.report.report_of`."""
        return report_of(study, places, record=self.record, ridge=self.ridge)

    def tables(self) -> Iterator[Attached]:
        """Trials, replicates, the surface, the optima."""
        yield Attached(name="tables/trials.csv", text=trials_table(self.record))
        yield Attached(name="tables/replicates.csv", text=replicates_table(self.record))
        if (ridge := self.ridge) is not None:
            yield Attached(name="tables/surface.csv", text=surface_table(ridge.surface))
            yield Attached(name="tables/surface.json", text=ridge.surface.model_dump_json(indent=2))
            yield Attached(name="tables/optimal.csv", text=optimal_table(ridge))

    def metrics(self) -> dict[str, float]:
        """The ridge in numbers, and what is recommended."""
        if (ridge := self.ridge) is None:
            return {}
        metrics: dict[str, float | None] = {
            "spearman": ridge.spearman.value if ridge.spearman else None,
            "crossover_p": ridge.crossover.p if ridge.crossover else None,
        }
        if (answer := answer_of(self.record, ridge)) is not None:
            metrics |= {
                "recommended_seed_lr": answer.seed_lr,
                "recommended_explore_fraction": answer.explore_fraction,
                f"expected_{answer.metric}": answer.expected.value if answer.expected else None,
            }
        return _finite(metrics)

    def tags(self) -> dict[str, str]:
        """The verdict on the inverse relation."""
        return {"knee.verdict": self.ridge.verdict} if self.ridge else {}


class ComparisonFindings(Findings):
    """Of a study that trains the rows of a table."""

    on_the_page = MappingProxyType({"beside": "Ours, and the paper's"})

    def __init__(self, record: StudyRecord, comparison: Comparison | None) -> None:
        super().__init__(record)
        self.comparison = comparison

    @property
    def complete(self) -> bool:
        """Whether a run is."""
        return self.comparison is not None

    def note(self, links: Sequence[str]) -> str:
        """What was found, and the table beside the paper's."""
        if self.comparison is None:
            return study_note(self.record, None, links=links)
        return comparison_note(
            self.record.name, self.record.spec.description, self.comparison, links=links
        )

    def figures(self) -> dict[str, dict[str, Any]]:
        """Beside the paper's, and over the random seeds."""
        return comparison_figures(self.comparison) if self.comparison else {}

    def report(self, study: Study, places: Places) -> Report:
        """See :func:`knee_tune.commands.report.comparison_report_of`."""
        return comparison_report_of(study, places, record=self.record)

    def tables(self) -> Iterator[Attached]:
        """Every run, with its numbers."""
        yield Attached(name="tables/compared.csv", text=compared_table(self.record))

    def metrics(self) -> dict[str, float]:
        """Slopes, where the rows are a series."""
        trends = self.comparison.trends if self.comparison else ()
        return _finite({f"slope_{trend.metric}": trend.slope.value for trend in trends})


def findings_of(record: StudyRecord, *, resamples: int = RESAMPLES) -> Findings:
    """All statistics; without resamples it is quick, and a search has no intervals."""
    if record.spec.compare is None:
        return SearchFindings(record, ridge_of(record, resamples=resamples))
    done = any(run.state == "complete" for run in record.compared)
    return ComparisonFindings(record, comparison_of(record) if done else None)


def without_statistics(record: StudyRecord) -> Findings:
    """The record alone, where statistics could not be had."""
    if record.spec.compare is None:
        return SearchFindings(record, None)
    return ComparisonFindings(record, None)


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
    found = without_statistics(record)
    with _or_a_line("statistics", opened, on_line):
        found = findings_of(record)
    if not found.complete:
        show_now(opened, on_line=on_line)
        return Published()
    report = None
    files: tuple[Path, ...] = ()
    with _or_a_line("report", opened, on_line):
        report = found.report(opened.study, opened.places)
        files = _write(report, opened)
    opened.tracker.flush()  # so that every run's address is known
    with _or_a_line("Optuna Dashboard", opened, on_line):
        _show(opened, found, report.figures if report else {})
        _attach(opened, record, files)
    with _or_a_line("MLflow", opened, on_line):
        for artifact in (*_pages(report, files), *found.tables()):
            opened.tracker.record(artifact)
    return Published(
        metrics=found.metrics(),
        tags={"mlflow.note.content": found.note(_more(opened))} | found.tags(),
        ridge=found.ridge,
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
        found = findings_of(study_record(opened.study), resamples=0)
        _show(opened, found, found.figures())


def _show(opened: OpenedStudy, found: Findings, figures: Mapping[str, dict[str, Any]]) -> None:
    links = [*_more(opened), *_link_to_study(opened)]
    write_study_note(opened.study, found.note(links))
    show_figures(
        opened.study,
        {
            name: _titled(_legible(figures[name]), title)
            for name, title in found.on_the_page.items()
            if name in figures
        },
    )
    unlinked = [
        each for each in found.record.trials if each.run_url is None and each.state in ENDED
    ]
    runs = {trial.number: opened.tracker.run_of(trial.key) for trial in unlinked}
    link_trials(opened.study, {number: run.url for number, run in runs.items() if run})


def _more(opened: OpenedStudy) -> tuple[str, ...]:
    command = opened.places.command("report", opened.study.study_name)
    return (f"All of it: `{command}`",)


def _link_to_study(opened: OpenedStudy) -> Iterator[str]:
    run, command = opened.tracker.run_of(None), opened.places.ui_command
    if run is not None and command is not None:
        start = f" (while `{command}` runs)" if " " in command else ""
        yield f"[MLflow run of this study]({run.url}){start}"


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
