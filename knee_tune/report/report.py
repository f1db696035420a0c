"""The report of a study: everything that it shows, as values; HTML and Markdown only write it."""

from typing import ClassVar

from knee_tune.config.recipe import Spec
from knee_tune.config.study import ReferenceTable
from knee_tune.records.findings import (
    AuditReport,
    Confirmation,
    Crossover,
    Importances,
    Optimum,
    Ridge,
    Surface,
    Verdict,
)
from knee_tune.records.shown import learning_rate, number, percent
from knee_tune.records.study import BaselineRecord, Counts, Steps, StudyRecord
from knee_tune.records.values import Estimate
from knee_tune.report.answer import Answer, answer_of, tiles_of
from knee_tune.report.document import (
    Report,
    ReportContext,
    Section,
    Table,
    again_section,
    written_at,
)
from knee_tune.report.run_figures import study_figures
from knee_tune.report.sections import (
    answer_section,
    audit_section,
    baselines_section,
    confirmation_section,
    curves_section,
    evidence_section,
    importance_section,
    metrics_section,
    reference_section,
    ridge_section,
    seeds_section,
    steps_section,
    surface_section,
    trials_section,
)


class Optimal(Spec):
    """The best explore fraction tried at one seed LR; low and high are its bootstrap interval."""

    seed_lr: float
    explore_fraction: float
    low: float | None
    high: float | None
    gp: Estimate | None
    cubic: Estimate | None
    metric: Estimate | None


class StudyReport(Report):
    """The report of a search."""

    explains_search: ClassVar[bool] = True

    recommended: Answer
    verdict: Verdict | None
    words: str
    optimal: tuple[Optimal, ...]
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


def build_report(
    record: StudyRecord, *, ridge: Ridge | None, context: ReportContext
) -> StudyReport:
    """Everything about a study with at least one complete trial; ValueError without one."""
    answer = answer_of(record, ridge)
    if answer is None:
        raise ValueError(f"study {record.name}: no trial is complete")
    return StudyReport(
        study=record.name,
        task=record.task,
        preset=record.spec.preset,
        description=record.spec.description,
        written=written_at(context),
        metric=record.metric,
        direction=record.direction,
        recommended=answer,
        verdict=ridge.verdict if ridge else None,
        words=ridge.words if ridge else "",
        optimal=tuple(_optimal(each) for each in ridge.optimal if each.raw) if ridge else (),
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
        environment=context.environment,
        replay=context.replay,
        left_out=_left_out(record, ridge, context),
        tiles=tiles_of(answer, record),
        sections=_sections(record, ridge, context, answer),
        figures=study_figures(record, ridge, importances=context.importances),
    )


def _sections(
    record: StudyRecord, ridge: Ridge | None, context: ReportContext, answer: Answer
) -> tuple[Section, ...]:
    """Those that have something to say, the answer first."""
    sections = [
        answer_section(record, ridge, answer),
        surface_section(record, ridge) if ridge else None,
        ridge_section(record, ridge) if ridge else None,
        evidence_section(ridge) if ridge else None,
        seeds_section(record),
        metrics_section(record),
        curves_section(record),
        steps_section(record),
        audit_section(record),
        importance_section(context.importances),
        baselines_section(record),
        confirmation_section(record.confirmation),
        _test_section(record, context),
        reference_section(record),
        trials_section(record),
        again_section(context, unit="trial"),
    ]
    return tuple(section for section in sections if section is not None)


def _optimal(optimum: Optimum) -> Optimal:
    assert optimum.raw is not None
    return Optimal(
        seed_lr=optimum.seed_lr,
        explore_fraction=optimum.raw.value,
        low=optimum.raw.low,
        high=optimum.raw.high,
        gp=optimum.gp,
        cubic=optimum.cubic,
        metric=optimum.metric,
    )


def _left_out(record: StudyRecord, ridge: Ridge | None, context: ReportContext) -> tuple[str, ...]:
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


def _test_section(record: StudyRecord, context: ReportContext) -> Section | None:
    """What the test split said of the models that were registered; None if none was."""
    if not context.test:
        return None
    trials = {trial.number: trial for trial in record.trials}
    names = sorted({name for metrics in context.test.values() for name in metrics})
    rows = tuple(
        (
            str(trial),
            learning_rate(trials[trial].seed_lr),
            percent(trials[trial].explore_fraction),
            *(number(metrics.get(name)) for name in names),
        )
        for trial, metrics in sorted(context.test.items())
    )
    return Section(
        key="test",
        title="On the test split",
        words=(
            "Measured once, when a model was registered, with the weights of its first random "
            "seed. Nothing was chosen by these numbers; all others are of the validation split.",
        ),
        tables=(
            Table(
                caption="Test metrics of registered trials",
                columns=("trial", "seed LR", "explore", *names),
                rows=rows,
            ),
        ),
    )
