"""Sections that give an account: cost, pruning, fresh seeds, other schedules, every trial."""

from collections.abc import Iterator, Mapping

from knee_tune.config.study import ReferenceRow, ReferenceTable
from knee_tune.records.findings import Candidate, Confirmation, Importances
from knee_tune.records.shown import (
    NOTHING,
    duration,
    estimate,
    explored,
    in_words,
    learning_rate,
    number,
    of_split,
    percent,
    sentence,
)
from knee_tune.records.study import StudyRecord
from knee_tune.report.document import Command, ReportContext, Section, Table
from knee_tune.report.wording import difference_words, judged_shortly
from knee_tune.stats.comparison import Comparison

MOST_BEST = MOST_NEWEST = 50
"""Trials in the table of a report: one of thousands is no reading, and the page has to open."""


def cost_section(record: StudyRecord) -> Section | None:
    """What the study cost beside runs that each train alone; None before one has finished."""
    words = record.steps.words
    if not words:
        return None
    unit = "runs" if record.spec.compare else "trials"
    if record.seconds:
        words.insert(0, f"time in which {unit} were trained: {duration(record.seconds)}")
    extra = {
        "for the confirmation": record.confirmation.steps if record.confirmation else None,
        "for the audit of pruning": record.audit.steps if record.audit.trials else None,
    }
    outside = [f"{steps.trained:,} {what}" for what, steps in extra.items() if steps is not None]
    if outside:
        words.append(f"outside the search: {' and '.join(outside)}")
    return Section(
        key="steps",
        title="What it cost",
        words=tuple(f"{sentence(line.replace('trials', unit))}." for line in words),
        figures=("steps",),
    )


def audit_section(record: StudyRecord) -> Section | None:
    """How often pruning was wrong; None without an audit."""
    report = record.audit_report
    if report is None:
        return None
    trials = {trial.number: trial for trial in record.trials}
    rows = tuple(
        (
            str(each.number),
            learning_rate(trials[each.number].seed_lr),
            explored(*trials[each.number].point[1:]),
            "diverged" if each.value is None else number(each.value),
            NOTHING if each.rank is None else str(each.rank),
            "wrong" if each.wrong else "right",
        )
        for each in report.verdicts
    )
    return Section(
        key="audit",
        title="Was pruning right?",
        words=(
            f"{report.wrong.of} of {report.pruned} pruned trials, chosen at random, were trained "
            f"to their end. Wrong prunes (better than every complete trial): {report.wrong.words}."
            f" Among the best three: {report.top.words}. In the best quarter: "
            f"{report.top_quarter.words}.",
            f"Pruning saved {report.steps_saved:,} steps; the audit trained "
            f"{report.steps_trained:,}.",
        ),
        tables=(
            Table(
                caption=f"Audited trials{of_split(record.metric)}",
                columns=("trial", "seed LR", "explore", record.metric, "rank", "its prune was"),
                rows=rows,
            ),
        ),
    )


def importance_section(importances: Importances | None) -> Section | None:
    """What matters more; None if it could not be computed."""
    if importances is None:
        return None
    theirs = ""
    if importances.dashboard:
        theirs = (
            "Optuna Dashboard's chart of hyperparameter importance is PED-ANOVA's, which asks what "
            "sets the best tenth of the trials apart from the others, and has other numbers for "
            f"the same trials: {_shares(importances.dashboard)}."
        )
    return Section(
        key="importance",
        title="Which of the two matters more",
        words=(
            f"By {importances.evaluator}, from {importances.trials} complete trials: "
            f"{_shares(importances.values)}. A share is {importances.measures}.",
            *filter(None, [theirs]),
        ),
        figures=("importance",),
    )


def baselines_section(record: StudyRecord) -> Section | None:
    """Other schedules; None if none was trained."""
    if not record.baselines:
        return None
    winner = record.winner
    rows = [
        (
            each.schedule.replace("_", " "),
            learning_rate(each.seed_lr),
            NOTHING,
            number(each.value) if each.value is not None else each.reason or each.state,
            str(each.seed),
        )
        for each in record.baselines
    ]
    best = winner.trial if winner else None
    if best is not None:
        first = best.replicates[0] if best.replicates else None
        rows.append(
            (
                "knee (best trial)",
                learning_rate(best.seed_lr),
                explored(*best.point[1:]),
                number(first.value if first else best.value),
                str(best.seed),
            )
        )
    return Section(
        key="baselines",
        title="Other schedules",
        words=(
            "Trained outside the search with the same budget, one random seed each, beside the run "
            "of the best trial with its first seed. The best of many runs is rather too good.",
        ),
        tables=(
            Table(
                caption=f"{sentence(in_words(record.metric))} by schedule",
                columns=("schedule", "seed LR", "explore", record.metric, "random seed"),
                rows=tuple(rows),
                marked=len(rows) - 1 if best is not None else None,
            ),
        ),
    )


def confirmation_section(confirmation: Confirmation | None) -> Section | None:
    """The best points again, with seeds that the search did not use; None if not asked for."""
    if confirmation is None:
        return None
    count = confirmation.comparisons
    together = f" The {count} differences hold together (Bonferroni)." if count > 1 else ""
    failures = tuple(
        f"{sentence(each.setting)} is out: {run.reason or 'no value'} (random seed {run.seed})."
        for each in confirmation.candidates
        for run in each.runs
        if run.value is None
    )
    return Section(
        key="confirmation",
        title="With fresh random seeds",
        words=(
            *([f"{sentence(race.words)}."] if (race := confirmation.race) else []),
            f"{sentence(confirmation.words)}.",
            "The best of a search owes part of its lead to luck. So the best points and the "
            f"default were trained again with {_seeds(confirmation)} that "
            f"the search did not use. Intervals are Student's t at 95%.{together}",
            *failures,
        ),
        figures=("confirmation",),
        tables=(
            Table(
                caption=f"{sentence(in_words(confirmation.metric))} over fresh seeds",
                columns=(
                    *("seed LR", "explore", "seeds", in_words(confirmation.metric)),
                    *("difference to the default", "verdict"),
                ),
                rows=tuple(_candidate(each, confirmation) for each in confirmation.candidates),
                marked=confirmation.winner,
            ),
        ),
    )


def tested_section(record: StudyRecord, context: ReportContext) -> Section | None:
    """What the test split said of the models that were registered; None if none was."""
    if not context.test:
        return None
    trials = {trial.number: trial for trial in record.trials}
    names = sorted({name for metrics in context.test.values() for name in metrics})
    rows = tuple(
        (
            str(trial),
            learning_rate(trials[trial].seed_lr),
            explored(*trials[trial].point[1:]),
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


def reference_section(record: StudyRecord) -> Section | None:
    """The paper's tables; None if the study names none."""
    if not record.spec.reference:
        return None
    return Section(
        key="paper",
        title="The paper's own numbers",
        words=(
            "From the paper that proposed the Knee schedule"
            + (f" ({record.spec.source})" if record.spec.source else "")
            + ". Where task, model or metric differ, compare what they say, not the numbers.",
        ),
        tables=tuple(_reference(table) for table in record.spec.reference),
    )


def trials_section(record: StudyRecord) -> Section:
    """Every trial there is; of many the best and the newest."""
    winner = record.winner
    best = winner.trial if winner else None
    shown = record.shown(best=MOST_BEST, newest=MOST_NEWEST)
    numbers = [trial.number for trial in shown]
    counts = record.counts
    cut = ""
    if len(shown) < len(record.trials):
        cut = (
            f" Below are {len(shown)} of {len(record.trials):,}, the best {MOST_BEST} and the "
            f"newest {MOST_NEWEST}; the command that lists every one is at the end."
        )
    rows = tuple(
        (
            str(trial.number),
            learning_rate(trial.seed_lr),
            explored(*trial.point[1:]),
            number(trial.value),
            NOTHING if trial.spread is None else f"{trial.spread:.2g}",
            f"{trial.steps.trained:,}",
            f"{trial.steps.reused:,}",
            trial.state if trial.state == "complete" else trial.reason or trial.state,
        )
        for trial in shown
    )
    return Section(
        key="trials",
        title="Trials" if cut else "All trials",
        words=(
            f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed, "
            f"{counts.running} running.{cut}",
            *_codes(record),
        ),
        tables=(
            Table(
                caption=f"Trials; {record.metric} is the mean over random seeds"
                f"{of_split(record.metric)}, sd their standard deviation",
                columns=(
                    *("trial", "seed LR", "explore", record.metric, "sd"),
                    *("steps trained", "steps reused", "state"),
                ),
                rows=rows,
                marked=numbers.index(best.number) if best and best.number in numbers else None,
                folded=True,
            ),
        ),
    )


def runs_section(record: StudyRecord, comparison: Comparison) -> Section:
    """Every run there is."""
    names = [
        name
        for name in comparison.metrics
        if any(row.metrics[name].values for row in comparison.rows)
    ]
    rows = tuple(
        (
            comparison.rows[run.row].label,
            str(run.seed),
            *(number(run.metrics.get(name)) for name in names),
            f"{run.steps.trained:,}",
            f"{run.steps.reused:,}",
            run.state if run.state == "complete" else run.reason or run.state,
        )
        for run in sorted(record.compared, key=lambda each: (each.row, each.seed))
    )
    return Section(
        key="runs",
        title="All runs",
        tables=(
            Table(
                caption="Runs by row and random seed, metrics of the splits they name",
                columns=(
                    *("row", "random seed", *map(in_words, names)),
                    *("steps trained", "steps reused", "state"),
                ),
                rows=rows,
                folded=True,
            ),
        ),
    )


def again_section(context: ReportContext, *, unit: str) -> Section:
    """Environment, versions, and how to get these numbers again; ``unit`` is a trial or a run."""
    return Section(
        key="again",
        title="Environment, and how to replay",
        words=(
            "Training is deterministic: with the same versions on the same kind of machine a "
            f"{unit} comes out the same, to the bit if its runs were trained one by one, up to "
            "rounding if they were trained together as one batched model.",
        ),
        tables=(
            Table(
                caption="Where the study was trained, and the versions that wrote this report",
                columns=("what", "which"),
                rows=tuple(context.environment.items()),
            ),
        )
        if context.environment
        else (),
        commands=context.replay
        + (
            (
                Command(
                    what="The whole study, with its settings: save this as study.yaml and type "
                    "knee-tune run --study study.yaml",
                    text=context.study_file,
                ),
            )
            if context.study_file
            else ()
        ),
    )


def _shares(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{'seed LR' if name == 'seed_lr' else name.replace('_', ' ')} {share:.0%}"
        for name, share in values.items()
    )


def _seeds(confirmation: Confirmation) -> str:
    """``5 random seeds``; of a race, up to so many."""
    seeds = len(confirmation.seeds)
    if confirmation.race is None:
        return f"{seeds} random seeds"
    return f"up to {seeds} random seeds, the same ones for all, until they were clearly behind,"


def _candidate(candidate: Candidate, confirmation: Confirmation) -> tuple[str, ...]:
    difference = candidate.difference
    return (
        learning_rate(candidate.seed_lr),
        explored(*candidate.point[1:]),
        str(len(candidate.runs)),
        estimate(candidate.mean),
        "the default itself"
        if candidate.default
        else difference_words(difference, confirmation.metric, of=candidate.mean),
        NOTHING if difference is None else judged_shortly(difference, confirmation.direction),
    )


def _codes(record: StudyRecord) -> Iterator[str]:
    """Which trials were trained by which code; nothing if all by the same."""
    if len(record.codes) > 1:
        parts = (f"{what} by {code or 'code not noted'}" for code, what in record.codes.items())
        yield (
            "Not all by the same code and libraries, so numbers may differ for that reason too: "
            f"{'; '.join(parts)}."
        )


def _reference(table: ReferenceTable) -> Table:
    metrics = sorted({name for row in table.rows for name in row.metrics})
    page = f", page {table.page}" if table.page else ""
    runs = f"; means over {table.runs} runs" if table.runs else ""
    note = f". {table.note}" if table.note else ""
    return Table(
        caption=f"{table.table} (section {table.section}{page}{runs}){note}",
        columns=("schedule", "epochs", "seed LR", "explore epochs", "explore", *metrics),
        rows=tuple(tuple(_reference_row(row, metrics)) for row in table.rows),
        folded=len(table.rows) > 12,
    )


def _reference_row(row: ReferenceRow, metrics: list[str]) -> Iterator[str]:
    yield row.schedule.replace("_", " ")
    yield str(row.epochs)
    yield NOTHING if row.seed_lr is None else learning_rate(row.seed_lr)
    yield NOTHING if row.explore_epochs is None else str(row.explore_epochs)
    yield NOTHING if row.explore_epochs is None else percent(row.explore_epochs / row.epochs)
    for name in metrics:
        value, spread = row.metrics.get(name), row.std.get(name)
        yield number(value) + ("" if spread is None else f" ± {spread:.2g}")
