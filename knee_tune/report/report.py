"""The report of a study: everything that it shows, as values; HTML and Markdown only write it."""

from typing import Any, ClassVar

from pydantic import Field, field_serializer

from knee_tune.config.study import ReferenceTable
from knee_tune.records.findings import (
    AuditReport,
    Confirmation,
    Crossover,
    Importances,
    Optimum,
    Recommendation,
    Ridge,
    Surface,
    Verdict,
)
from knee_tune.records.shown import bare_in_words, sentence
from knee_tune.records.study import BaselineRecord, Counts, Steps, StudyRecord
from knee_tune.records.values import Estimate
from knee_tune.report import accounts, sections
from knee_tune.report.answer import (
    answer_of,
    comparison_tiles,
    comparison_words,
    search_tiles,
    search_words,
    winner_settings,
)
from knee_tune.report.comparison_figures import beside_figure, scattered, seeds_of_rows
from knee_tune.report.document import Report, ReportContext, Section, Table, written_at
from knee_tune.report.run_figures import (
    confirmation_figure,
    curves_of_study,
    importance_figure,
    seeds_of_study,
    steps_figure,
)
from knee_tune.report.surface_figures import (
    crossover_figure,
    metrics_figure,
    ridge_figure,
    slices_figure,
    surface_figure,
)
from knee_tune.report.wording import ridge_words
from knee_tune.stats.comparison import Comparison

Figures = dict[str, dict[str, Any]]


class StudyReport(Report):
    """The report of a search."""

    explains_search: ClassVar[bool] = True

    recommended: Recommendation
    verdict: Verdict | None
    words: str
    optimal: tuple[Optimum, ...] = Field(description="of seed LRs with two fractions or more")
    spearman: Estimate | None
    crossover_p: float | None
    crossover: Crossover | None
    surface: Surface | None
    steps: Steps
    counts: Counts
    audit: AuditReport | None
    importances: Importances | None
    baselines: tuple[BaselineRecord, ...]
    confirmation: Confirmation | None
    test: dict[int, dict[str, float]]
    reference: tuple[ReferenceTable, ...]

    @field_serializer("optimal")
    def _flat(self, optimal: tuple[Optimum, ...]) -> list[dict[str, Any]]:
        """The fraction that was tried and its interval beside the seed LR, as they always were."""
        return [
            {
                "seed_lr": each.seed_lr,
                "explore_fraction": each.raw.value,
                "low": each.raw.low,
                "high": each.raw.high,
                **each.model_dump(include={"gp", "cubic", "metric"}),
            }
            for each in optimal
            if each.raw is not None
        ]


class ComparisonReport(Report):
    """The report of a comparison: ours beside the paper's."""

    comparison: Comparison = Field(description="all numbers")


def build_report(
    record: StudyRecord, statistics: Ridge | Comparison | None, *, context: ReportContext
) -> StudyReport | ComparisonReport:
    """Everything about a study; ValueError if no trial (of a comparison: no run) is complete."""
    common: dict[str, Any] = {
        "study": record.name,
        "task": record.task,
        "preset": record.spec.preset,
        "description": record.spec.description,
        "written": written_at(context),
        "direction": record.direction,
        "environment": context.environment,
        "replay": context.replay,
        "figures": study_figures(record, statistics, importances=context.importances),
    }
    if isinstance(statistics, Comparison):
        return ComparisonReport(
            **common,
            metric=statistics.metric,
            left_out=_left_out_of_comparison(statistics),
            tiles=comparison_tiles(statistics),
            sections=_sections_of_comparison(record, statistics, context),
            comparison=statistics,
        )
    ridge, answer = statistics, answer_of(record, statistics)
    if answer is None:
        raise ValueError(f"study {record.name}: no trial is complete")
    return StudyReport(
        **common,
        metric=record.metric,
        left_out=_left_out_of_search(record, ridge, context),
        tiles=search_tiles(answer, record),
        settings=winner_settings(record),
        sections=_sections_of_search(record, ridge, context, answer),
        recommended=answer,
        verdict=ridge.verdict if ridge else None,
        words=ridge_words(ridge) if ridge else "",
        optimal=tuple(each for each in ridge.optimal if each.raw) if ridge else (),
        spearman=ridge.spearman if ridge else None,
        crossover_p=ridge.crossover.p if ridge and ridge.crossover else None,
        crossover=ridge.crossover if ridge else None,
        surface=ridge.surface if ridge else None,
        steps=record.steps,
        counts=record.counts,
        audit=record.audit_report,
        importances=context.importances,
        baselines=record.baselines,
        confirmation=record.confirmation,
        test=context.test,
        reference=record.spec.reference,
    )


def study_figures(
    record: StudyRecord,
    statistics: Ridge | Comparison | None,
    *,
    importances: Importances | None = None,
) -> Figures:
    """Figures that have something to show, by name, in the order of the report.

    As dicts, ready for ``plotly.graph_objects.Figure``. Of a search: surface, ridge, crossover,
    slices, seeds, metrics, curves, steps, importance, confirmation; of a comparison: beside,
    seeds_<metric> of each, steps.
    """
    if isinstance(statistics, Comparison):
        figures = {"beside": beside_figure(statistics)} | {
            f"seeds_{name}": seeds_of_rows(statistics, name) for name in scattered(statistics)
        }
    else:
        ridge, confirmation = statistics, record.confirmation
        figures = {
            "surface": surface_figure(ridge.surface, winner=record.winner) if ridge else None,
            "ridge": ridge_figure(ridge, record.spec.reference) if ridge else None,
            "crossover": crossover_figure(ridge) if ridge else None,
            "slices": slices_figure(ridge) if ridge else None,
            "seeds": seeds_of_study(record),
            "metrics": metrics_figure(record),
            "curves": curves_of_study(record),
            "steps": None,  # its place
            "importance": importance_figure(importances) if importances else None,
            "confirmation": confirmation_figure(confirmation) if confirmation else None,
        }
    figures["steps"] = steps_figure(record.steps)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _sections_of_search(
    record: StudyRecord, ridge: Ridge | None, context: ReportContext, answer: Recommendation
) -> tuple[Section, ...]:
    return _told(
        _answer_section(search_words(answer, record, ridge), record.measures),
        sections.surface_section(record, ridge) if ridge else None,
        sections.ridge_section(record, ridge) if ridge else None,
        sections.evidence_section(ridge) if ridge else None,
        sections.seeds_of_search(record),
        sections.metrics_section(record),
        sections.curves_section(record),
        accounts.cost_section(record),
        accounts.audit_section(record),
        accounts.importance_section(context.importances),
        accounts.baselines_section(record),
        accounts.confirmation_section(record.confirmation),
        accounts.tested_section(record, context),
        accounts.reference_section(record),
        accounts.trials_section(record),
        accounts.again_section(context, unit="trial"),
    )


def _sections_of_comparison(
    record: StudyRecord, comparison: Comparison, context: ReportContext
) -> tuple[Section, ...]:
    return _told(
        _answer_section(comparison_words(comparison), record.measures),
        sections.beside_section(comparison),
        sections.trend_section(comparison),
        sections.seeds_of_comparison(comparison),
        sections.others_section(comparison),
        accounts.cost_section(record),
        accounts.runs_section(record, comparison),
        accounts.again_section(context, unit="run"),
    )


def _told(*each: Section | None) -> tuple[Section, ...]:
    """Those that have something to say, the answer first."""
    return tuple(section for section in each if section is not None)


def _answer_section(words: tuple[str, ...], measures: dict[str, str]) -> Section:
    """The answer, and below it how its numbers are measured, where their names do not say."""
    table = Table(
        caption="How the numbers are measured",
        columns=("metric", "how"),
        rows=tuple((sentence(bare_in_words(name)), how) for name, how in measures.items()),
    )
    return Section(
        key="answer", title="The answer", words=words, tables=(table,) if measures else ()
    )


def _left_out_of_search(
    record: StudyRecord, ridge: Ridge | None, context: ReportContext
) -> tuple[str, ...]:
    """A line for each part of a report that there is nothing to show of."""
    pruned = len(record.pruned_trials)
    reasons = {
        "Ridge: one seed LR only, so there is no relation to show.": (
            ridge is not None and len(ridge.optimal) < 2
        ),
        "Fresh random seeds: none were tried; the run command with --confirm 3:5 does.": (
            record.confirmation is None
        ),
        f"Audit of pruning: not made for the {pruned} pruned trials; knee-tune audit does.": (
            pruned > 0 and not record.audit.trials
        ),
        "Audit of pruning: no trial was pruned.": pruned == 0 and not record.audit.trials,
        "Other schedules: none were trained; the run command with --schedule cosine does.": (
            not record.baselines
        ),
        "Importance: it needs four complete trials, varied in both hyperparameters.": (
            context.importances is None
        ),
        "Test split: not looked at; only knee-tune register does, once, with the winner.": (
            not context.test
        ),
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def _left_out_of_comparison(comparison: Comparison) -> tuple[str, ...]:
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
