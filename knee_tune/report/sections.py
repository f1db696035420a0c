"""Sections of a report that say what was found: surface, ridge, evidence, learning curves."""

from collections.abc import Iterator, Mapping, Sequence

from knee_tune.config.study import ReferenceRow, ReferenceTable
from knee_tune.records.findings import (
    Candidate,
    Confirmation,
    Crossover,
    Importances,
    Ridge,
    Surface,
)
from knee_tune.records.shown import (
    NOTHING,
    correlation,
    duration,
    estimate,
    fraction_estimate,
    in_words,
    learning_rate,
    number,
    p_value,
    percent,
    sentence,
    setting,
    split_of,
)
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.report.answer import Answer, answer_in_words
from knee_tune.report.document import Section, Table
from knee_tune.report.run_figures import FEWEST_SEEDS, curves_shown
from knee_tune.report.surface_figures import other_metrics, paper_ridges

MOST_POINTS = 200

"""Rows of the table of all metrics."""


def answer_section(record: StudyRecord, ridge: Ridge | None, answer: Answer) -> Section:
    """What to use, first; then what holds for other seed LRs."""
    words = answer_in_words(answer, record)
    if ridge is not None and len(ridge.optimal) > 1:
        words = (*words, ridge.words)
    return Section(key="answer", title="The answer", words=words)


def surface_section(record: StudyRecord, ridge: Ridge) -> Section:
    """Every point that was tried."""
    surface = ridge.surface
    seeds = f"{surface.seeds} random seeds" if surface.seeds != 1 else "one random seed"
    better = "lower" if surface.direction == "minimize" else "higher"
    errors = any(error is not None for row in surface.errors for error in row)
    winner = record.winner
    framed = winner is not None and surface.cell(winner.point) is not None
    words = [
        f"Mean {in_words(surface.metric)} over {seeds} for every seed LR and explore fraction that "
        f"was trained to its end; {better} is better. "
        + ("± is the standard error of the mean. " if errors else "")
        + "The best fraction of each seed LR is in bold"
        + ("; the frame marks the recommended setting." if framed else ".")
    ]
    if not errors:
        words.append(
            "With one random seed nothing says how far a number is chance; --replicates 3 or more "
            "does."
        )
    return Section(
        key="surface",
        title="Seed LR and explore fraction together",
        words=tuple(words),
        figures=("surface", "slices"),
        tables=(_surface_table(surface),),
    )


def ridge_section(record: StudyRecord, ridge: Ridge) -> Section | None:
    """The best fraction for every seed LR; None with one seed LR."""
    if len(ridge.optimal) < 2:
        return None
    split = split_of(ridge.surface.metric)
    intervals = any(each.raw and each.raw.low is not None for each in ridge.optimal)
    words = [
        "Found three ways: the best fraction that was tried; the top of a smooth surface fitted to "
        "all points by a Gaussian process; and that of a cubic polynomial. Where the three agree "
        f"the answer does not hang on the method. All from the {split} split.",
    ]
    if intervals:
        words.append(
            "Brackets and bars are 95% intervals: the random seeds were weighted anew by chance a "
            "thousand times, and the best fractions found again each time. Those of the surfaces "
            "also allow for how far a surface is off the means it smooths."
        )
    if pruned := record.counts.pruned:
        words.append(
            f"Take it with care: {pruned} {'trial was' if pruned == 1 else 'trials were'} pruned, "
            "and a seed LR may have lost its best fraction so. A study with --goal ridge prunes "
            "nothing."
        )
    papers = paper_ridges(record.spec.reference)
    if papers:
        tables = ", ".join(f"{table.table} (section {table.section})" for table, _ in papers)
        words.append(
            f"Open diamonds are the paper's own points, {tables}. Where task, model or budget "
            "differ, compare the direction, not the numbers."
        )
    rows = tuple(
        (
            learning_rate(each.seed_lr),
            fraction_estimate(each.raw),
            estimate(each.metric),
            fraction_estimate(each.gp),
            fraction_estimate(each.cubic),
        )
        for each in ridge.optimal
    )
    table = Table(
        caption=f"Best explore fraction by seed LR ({split} split)",
        columns=(
            "seed LR",
            "best tried",
            f"its {ridge.surface.metric}",
            "Gaussian process",
            "cubic surface",
        ),
        rows=rows,
    )
    return Section(
        key="ridge",
        title="The best explore fraction for each seed LR",
        words=tuple(words),
        figures=("ridge",),
        tables=(table,),
    )


def evidence_section(ridge: Ridge) -> Section | None:
    """Does the best fraction fall as the seed LR rises, and is that more than chance?"""
    if len(ridge.optimal) < 2:
        return None
    words = [f"Verdict: {ridge.verdict}."]
    if ridge.crossover is not None:
        words += _crossover_in_words(ridge.crossover, ridge.surface)
    else:
        words.append(
            "Evidence: there are too few points or random seeds for the crossover test, which "
            "compares long with short exploring at low and at high seed LRs."
        )
    if ridge.spearman is not None:
        words.append(
            "Description: the rank correlation (Spearman) of seed LR and best fraction tried is "
            f"{correlation(ridge.spearman)}. -1 means that every larger seed LR has a smaller best "
            "fraction, 0 no order at all. It sums up the picture above; it is no evidence, for "
            "chance alone makes it large too easily."
        )
    return Section(
        key="evidence",
        title="Do larger seed LRs need less exploring?",
        words=tuple(words),
        figures=("crossover",),
    )


def metrics_section(record: StudyRecord) -> Section | None:
    """What else was measured; None if nothing was."""
    names = other_metrics(record)
    if not names:
        return None
    listed = " and ".join(in_words(name) for name in names)
    return Section(
        key="metrics",
        title="The other metrics",
        words=(
            f"At the end of the same runs: {listed}. The study did not choose by "
            f"{'them' if len(names) > 1 else 'it'}.",
        ),
        figures=("metrics",),
        tables=(_metrics_table(record, names),),
    )


def curves_section(record: StudyRecord) -> Section | None:
    """How training went; None without evaluations."""
    trials = curves_shown(record)
    if not trials:
        return None
    lrs = {trial.seed_lr for trial in trials}
    which = (
        f"at seed LR {learning_rate(trials[0].seed_lr)}, a line per explore fraction"
        if len(lrs) == 1
        else "of the best trials"
    )
    metric = in_words(min(trials[0].curve[0].metrics))
    many = record.spec.replicates > 1
    means = ", means over random seeds" if many else ""
    return Section(
        key="curves",
        title="Learning curves and their knees",
        words=(
            f"{sentence(metric)} {which}{means}. A diamond marks the knee, where the LR (above) "
            "begins to fall; most of the gain comes after it, so a run that still explores looks "
            "worse than it ends.",
        ),
        figures=("curves",),
    )


def seeds_section(record: StudyRecord) -> Section | None:
    """How random seeds scatter at the recommended seed LR; None with too few of them."""
    winner = record.winner
    if winner is None or winner.trial is None or record.spec.replicates < FEWEST_SEEDS:
        return None
    return Section(
        key="seeds",
        title="Over the random seeds",
        words=(
            f"{sentence(in_words(record.metric))} of every random seed at seed LR "
            f"{learning_rate(winner.seed_lr)}, by explore fraction, and the means: how far a "
            "single run may be from what a setting gives on average (as in the paper's Figure 3).",
        ),
        figures=("seeds",),
    )


def _crossover_in_words(test: Crossover, surface: Surface) -> list[str]:
    metric = in_words(surface.metric)
    turned = ", turned so that positive is better" if surface.direction == "minimize" else ""
    return [
        "Evidence: for each random seed, the mean with long exploring (60 to 90% of the budget) "
        f"minus that with short exploring (30% or less). In {metric}{turned}, this is "
        f"{estimate(test.low_lrs, sign=True)} in the lowest third of the seed LRs "
        f"({_listed(test.lowest)}) and {estimate(test.high_lrs, sign=True)} in the highest third "
        f"({_listed(test.highest)}). If larger seed LRs need less exploring, the first is above "
        "zero and the second below. Seed LRs without a complete trial of either kind, as where "
        "one has diverged, are left out.",
        f"Both together: {p_value(test.p)} (crossover test: two one-sided t-tests over random "
        "seeds, the larger p counts). Were one of the two not there, chance would show so clear a "
        "picture with at most that probability; below 0.05 is the usual mark.",
    ]


def _listed(seed_lrs: Sequence[float]) -> str:
    return ", ".join(learning_rate(each) for each in seed_lrs)


def _metrics_table(record: StudyRecord, names: tuple[str, ...]) -> Table:
    points: dict[tuple[float, float], TrialRecord] = {}
    for trial in record.ranked:
        points.setdefault(trial.point, trial)
    best = list(points.items())[:MOST_POINTS]
    cut = f"; the best {len(best)} of {len(points):,} points" if len(best) < len(points) else ""
    shown = (record.metric, *names)
    rows = tuple(
        (
            learning_rate(lr),
            percent(fraction),
            *(number(trial.metrics.get(name)) for name in shown),
        )
        for (lr, fraction), trial in sorted(best, key=lambda each: each[0])
    )
    splits = " and ".join(sorted({split_of(name) for name in shown}))
    return Table(
        caption=f"All metrics ({splits} split), means over random seeds{cut}",
        columns=("seed LR", "explore", *shown),
        rows=rows,
        folded=len(rows) > 12,
    )


def _surface_table(surface: Surface) -> Table:
    rows = []
    for lr, means, errors in zip(surface.seed_lrs, surface.means, surface.errors, strict=True):
        cells = (
            NOTHING if mean is None else number(mean) + ("" if error is None else f" ± {error:.2g}")
            for mean, error in zip(means, errors, strict=True)
        )
        rows.append((learning_rate(lr), *cells))
    known = any(error is not None for row in surface.errors for error in row)
    return Table(
        caption=f"{surface.metric} ({split_of(surface.metric)} split), mean"
        + (" ± standard error" if known else ""),
        columns=("seed LR", *(percent(each) for each in surface.explore_fractions)),
        rows=tuple(rows),
        folded=True,
    )


# Sections of a report that give an account: cost, pruning, what matters, baselines, fresh seeds,
# the paper's tables, all trials.

MOST_BEST = MOST_NEWEST = 50

"""Trials in the table of a report: one of thousands is no reading, and the page has to open."""


def steps_section(record: StudyRecord) -> Section | None:
    """What the study cost beside trials that each train alone; None before one has finished."""
    words = record.steps.words
    if not words:
        return None
    extra = {
        "for the confirmation": record.confirmation.steps if record.confirmation else None,
        "for the audit of pruning": record.audit.steps if record.audit.trials else None,
    }
    outside = [f"{steps.trained:,} {what}" for what, steps in extra.items() if steps is not None]
    if record.seconds:
        words.insert(0, f"time in which trials were trained: {duration(record.seconds)}")
    if outside:
        words.append(f"outside the search: {' and '.join(outside)}")
    sentences = tuple(f"{sentence(line)}." for line in words)
    return Section(key="steps", title="What it cost", words=sentences, figures=("steps",))


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
            percent(trials[each.number].explore_fraction),
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
                caption=f"Audited trials ({split_of(record.metric)} split)",
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


def _shares(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{'seed LR' if name == 'seed_lr' else name.replace('_', ' ')} {share:.0%}"
        for name, share in values.items()
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
            NOTHING if each.seed is None else str(each.seed),
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
                percent(best.explore_fraction),
                number(first.value if first else best.value),
                NOTHING if best.seed is None else str(best.seed),
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
        f"{sentence(setting(each.seed_lr, each.explore_fraction))} is out: "
        f"{run.reason or 'no value'} (random seed {run.seed})."
        for each in confirmation.candidates
        for run in each.runs
        if run.value is None
    )
    return Section(
        key="confirmation",
        title="With fresh random seeds",
        words=(
            f"{sentence(confirmation.words)}.",
            "The best of a search owes part of its lead to luck. So the best points and the "
            f"paper's default were trained again with {len(confirmation.seeds)} random seeds that "
            f"the search did not use. Intervals are Student's t at 95%.{together}",
            *failures,
        ),
        figures=("confirmation",),
        tables=(
            Table(
                caption=f"{sentence(in_words(confirmation.metric))} over fresh seeds",
                columns=("seed LR", "explore", confirmation.metric, "difference to the default"),
                rows=tuple(_candidate(each) for each in confirmation.candidates),
                marked=confirmation.winner,
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
            percent(trial.explore_fraction),
            number(trial.value),
            NOTHING if trial.spread is None else f"{trial.spread:.2g}",
            f"{trial.steps_trained:,}",
            f"{trial.steps_reused:,}",
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
                caption=f"Trials; {record.metric} is the mean over random seeds "
                f"({split_of(record.metric)} split), sd their standard deviation",
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


def _codes(record: StudyRecord) -> Iterator[str]:
    """Which trials were trained by which code; nothing if all by the same."""
    if len(record.codes) > 1:
        parts = (f"{what} by {code or 'code not noted'}" for code, what in record.codes.items())
        yield (
            "Not all by the same code and libraries, so numbers may differ for that reason too: "
            f"{'; '.join(parts)}."
        )


def _candidate(candidate: Candidate) -> tuple[str, ...]:
    return (
        learning_rate(candidate.seed_lr),
        percent(candidate.explore_fraction),
        estimate(candidate.mean),
        "the default itself" if candidate.default else estimate(candidate.difference, sign=True),
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
