"""The report of a study that trains the rows of a published table."""

from pydantic import Field

from knee_tune.reporting.compared import Comparison, comparison_of
from knee_tune.reporting.compared_figures import comparison_figures, scattered
from knee_tune.reporting.compared_sections import (
    beside_section,
    comparison_answer,
    cost_section,
    others_section,
    runs_section,
    seeds_section,
    trend_section,
)
from knee_tune.reporting.compared_words import comparison_tiles
from knee_tune.reporting.context import ReportContext, again_section, written_at
from knee_tune.reporting.document import Report, Section
from knee_tune.reporting.run_figures import steps_figure
from knee_tune.specs.records import StudyRecord


class ComparisonReport(Report):
    """Ours beside the paper's."""

    comparison: Comparison = Field(description="all numbers")


def build_comparison_report(record: StudyRecord, *, context: ReportContext) -> ComparisonReport:
    """Everything about a comparison with at least one complete run; ValueError without one."""
    comparison = comparison_of(record)
    steps = steps_figure(comparison.steps)
    return ComparisonReport(
        study=record.name,
        task=record.task,
        preset=record.spec.preset,
        description=record.spec.description,
        written=written_at(context),
        metric=comparison.metric,
        direction=comparison.direction,
        environment=context.environment,
        replay=context.replay,
        left_out=_left_out(comparison),
        tiles=comparison_tiles(comparison),
        sections=_sections(record, comparison, context),
        figures=comparison_figures(comparison) | ({"steps": steps} if steps else {}),
        comparison=comparison,
    )


def _sections(
    record: StudyRecord, comparison: Comparison, context: ReportContext
) -> tuple[Section, ...]:
    sections = [
        comparison_answer(comparison),
        beside_section(comparison),
        trend_section(comparison),
        seeds_section(comparison),
        others_section(comparison),
        cost_section(comparison),
        runs_section(record, comparison),
        again_section(context, unit="run"),
    ]
    return tuple(section for section in sections if section is not None)


def _left_out(comparison: Comparison) -> tuple[str, ...]:
    """A line for each part of a report that there is nothing to show of."""
    reasons = {
        "Intervals and the scatter of random seeds: one seed only; --replicates 5 gives them.": (
            not scattered(comparison)
        ),
        "Trend: the rows are different schedules, not one that explores for longer and longer.": (
            comparison.explored is None
        ),
        "Trend: no random seed has finished every row.": (
            comparison.explored is not None and not comparison.trends
        ),
        "Sharpness: not measured; a study file asks for it under analyses.": (
            not {"sharpness", "fisher"} & set(comparison.metrics)
        ),
        "Learning curves: in MLflow, with every run.": True,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)
