"""Sections of a report that say what was found: surface, ridge, evidence, learning curves."""

from collections.abc import Sequence

from knee_tune.reporting.answer import Answer, answer_in_words
from knee_tune.reporting.document import Section, Table
from knee_tune.reporting.metric_figures import other_metrics
from knee_tune.reporting.run_figures import curves_shown
from knee_tune.reporting.seed_figures import FEWEST_SEEDS
from knee_tune.reporting.shown import (
    NOTHING,
    correlation,
    estimate,
    fraction_estimate,
    in_words,
    number,
    p_value,
    sentence,
    split_of,
)
from knee_tune.reporting.surface_figures import paper_ridges
from knee_tune.specs.records import StudyRecord, TrialRecord
from knee_tune.specs.ridge import Crossover, Ridge, Surface
from knee_tune.specs.shown import learning_rate, percent

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
