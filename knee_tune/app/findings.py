"""What is known of a study as it is now, of a search or of a comparison, for whoever shows it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import Any, ClassVar

from knee_tune.app.home import Places
from knee_tune.app.report import comparison_report_of, report_of
from knee_tune.reporting.answer import answer_of
from knee_tune.reporting.compared import Comparison, comparison_of
from knee_tune.reporting.compared_figures import comparison_figures
from knee_tune.reporting.compared_words import comparison_note
from knee_tune.reporting.document import Report
from knee_tune.reporting.figures import study_figures
from knee_tune.reporting.note import study_note
from knee_tune.reporting.ridge import RESAMPLES, ridge_of
from knee_tune.reporting.tables import (
    compared_table,
    optimal_table,
    replicates_table,
    surface_table,
    trials_table,
)
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.ridge import Ridge
from knee_tune.specs.tracking import Attached
from knee_tune.tuning.study import Study


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
        """See :func:`knee_tune.app.report.report_of`."""
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
        """See :func:`knee_tune.app.report.comparison_report_of`."""
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
