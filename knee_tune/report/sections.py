"""Sections that say what was found: of a search and of a comparison."""

from collections.abc import Sequence

from knee_tune.config.recipe import Direction, averaged
from knee_tune.records.findings import Crossover, Ridge, Surface
from knee_tune.records.shown import (
    NOTHING,
    correlation,
    estimate,
    explored,
    fraction_estimate,
    in_words,
    learning_rate,
    number,
    of_split,
    p_value,
    percent,
    rounded,
    sentence,
    split_of,
)
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Estimate, Point
from knee_tune.report.comparison_figures import direction_of, metric_limits, scattered
from knee_tune.report.document import Section, Table
from knee_tune.report.plotting import far_out_words, limits_of
from knee_tune.report.run_figures import FEWEST_SEEDS, curve_limits, curves_shown
from knee_tune.report.surface_figures import other_metrics, paper_ridges, surface_limits
from knee_tune.report.wording import counted_seeds, difference_words, judged_shortly
from knee_tune.stats.comparison import PER_EPOCHS, Comparison, RowOutcome

MOST_POINTS = 200
"""Rows of the table of all metrics."""


def surface_section(record: StudyRecord, ridge: Ridge) -> Section:
    """Every point that was tried."""
    surface = ridge.surface
    better = "lower" if surface.direction == "minimize" else "higher"
    errors = any(error is not None for row in surface.errors for error in row)
    winner = record.winner
    framed = winner is not None and surface.cell(winner.point) is not None
    words = [
        f"Mean {in_words(surface.metric)} over {counted_seeds(surface.seeds)} for every seed LR "
        f"and explore fraction that was trained to its end; {better} is better. "
        + ("± is the standard error of the mean. " if errors else "")
        + "The best fraction of each seed LR is in bold"
        + ("; the frame marks the recommended setting." if framed else ".")
    ]
    if surface.decay is not None:
        words.append(_decays_words(record, surface.decay))
    if not errors:
        words.append(
            "With one random seed nothing says how far a number is chance; --replicates 3 or more "
            "does."
        )
    means = [mean for row in surface.means for mean in row]
    if far_out := far_out_words(means, surface_limits(surface)):
        words.append(
            f"{far_out} The smooth surfaces below take such a value for one at that edge, so that "
            "a single run that went wrong does not bend them everywhere."
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
    intervals = any(each.raw and each.raw.low is not None for each in ridge.optimal)
    words = [
        "Found three ways: the best fraction that was tried; the top of a smooth surface fitted to "
        "all points by a Gaussian process; and that of a cubic polynomial. Where the three agree "
        "the answer does not hang on the method."
        + (f" All from the {split} split." if (split := split_of(ridge.surface.metric)) else ""),
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
        caption=f"Best explore fraction by seed LR{of_split(ridge.surface.metric)}",
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
    far_out = [
        far_out_words(values, limits_of(values))
        for name in names
        if (values := [trial.metrics[name] for trial in record.ranked if name in trial.metrics])
    ]
    listed = " and ".join(in_words(name) for name in names)
    return Section(
        key="metrics",
        title="The other metrics",
        words=(
            f"At the end of the same runs: {listed}. The study did not choose by "
            f"{'them' if len(names) > 1 else 'it'}.",
            *dict.fromkeys(filter(None, far_out)),
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
    low, high = curve_limits(record)
    cut = any(
        not low <= value <= high
        for trial in trials
        for each in trial.curve
        for value in each.metrics.values()
    )
    view = "What is far out, as the first evaluations may be, is beyond the axis."
    means = ", means over random seeds" if many else ""
    return Section(
        key="curves",
        title="Learning curves and their knees",
        words=(
            f"{sentence(metric)} {which}{means}. A diamond marks the knee, where the LR (above) "
            "begins to fall; most of the gain comes after it, so a run that still explores looks "
            "worse than it ends.",
            *([view] if cut else []),
        ),
        figures=("curves",),
    )


def seeds_of_search(record: StudyRecord) -> Section | None:
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


def beside_section(comparison: Comparison) -> Section:
    """Every metric of the paper's table, theirs beside ours."""
    words = [
        f"{comparison.table} (section {comparison.section}), every row of it trained. "
        f"The paper's values are means{_runs(comparison)} ± standard deviations, where it gives "
        "them; ours are means with their 95% t intervals over the random seeds. "
        f"{_tested(comparison)}",
    ]
    if comparison.scale != 1:
        words.append(
            "At another budget compare the order of the rows and the direction, not the numbers: "
            "so both stand on scales of their own in the figure."
        )
    if comparison.note:
        words.append(comparison.note)
    names = comparison.papers_metrics or (comparison.metric,)
    return Section(
        key="beside",
        title="Beside the paper",
        words=tuple(words),
        figures=("beside",),
        wide=True,
        tables=tuple(_beside_table(comparison, name) for name in names),
    )


def trend_section(comparison: Comparison) -> Section | None:
    """The slopes; None where the rows are no series or nothing was measured in all of them."""
    if comparison.explored is None or not comparison.trends:
        return None
    lr = learning_rate(comparison.explored.lr)
    scaled = (
        ""
        if comparison.scale == 1
        else f" ({PER_EPOCHS * comparison.scale:.3g} of the epochs that were trained)"
    )
    rows = tuple(
        (
            in_words(trend.metric),
            rounded(trend.slope, sign=True),
            NOTHING if trend.paper is None else f"{trend.paper:+.2g}",
            trend.expected,
            NOTHING if trend.p is None else p_value(trend.p),
            str(trend.seeds),
        )
        for trend in comparison.trends
    )
    return Section(
        key="trend",
        title="More exploring, and what it changes",
        words=(
            f"For every random seed a straight line was laid through the rows: the metric against "
            f"the epochs at LR {lr}. Its slope is told per {PER_EPOCHS} of the paper's epochs"
            f"{scaled}; the interval and p are of the mean slope over the seeds (Student's t, "
            "every metric by itself). p is two-sided: how probable a slope at least this far from "
            "zero would be if there were none. A trend is told where the interval excludes zero, "
            "that is p < 0.05. The paper's slope is of the rows that it has a value for.",
            "A line is a summary: where the first epochs change most it says too little of them.",
        ),
        tables=(
            Table(
                caption=f"Slope per {PER_EPOCHS} of the paper's epochs at LR {lr}",
                columns=("metric", "slope", "the paper's", "expected", "p", "random seeds"),
                rows=rows,
            ),
        ),
    )


def seeds_of_comparison(comparison: Comparison) -> Section | None:
    """How random seeds scatter; None with one of them."""
    names = scattered(comparison)
    if not names:
        return None
    far_out = [
        far_out_words(
            [value for row in comparison.rows for value in row.metrics[name].values.values()],
            metric_limits(comparison, name),
        )
        for name in names
    ]
    table_rows = tuple(
        (row.label, *(_spread(row, name) for name in names)) for row in comparison.rows
    )
    return Section(
        key="seeds",
        title="Over the random seeds",
        words=(
            "By the paper's hypothesis longer exploring moves the distribution over random seeds "
            "to wider minima and higher test accuracy, and tightens it (its Figures 2 and 3)."
            if comparison.explored
            else "Every point is one run: another random seed falls somewhere among them.",
            *dict.fromkeys(filter(None, far_out)),
        ),
        figures=tuple(f"seeds_{name}" for name in names),
        tables=(
            Table(
                caption="Standard deviation over the random seeds, and lowest to highest",
                columns=("row", *(in_words(name) for name in names)),
                rows=table_rows,
            ),
        ),
    )


def others_section(comparison: Comparison) -> Section | None:
    """What was measured and is not in the paper's table; None if nothing."""
    names = [
        name
        for name in comparison.metrics
        if name not in (comparison.papers_metrics or (comparison.metric,))
        and any(row.metrics[name].values for row in comparison.rows)
    ]
    if not names:
        return None
    return Section(
        key="others",
        title="What else was measured",
        tables=(
            Table(
                caption="Means over random seeds with 95% intervals, each of the split it names",
                columns=("row", *(in_words(name) for name in names)),
                rows=tuple(
                    (row.label, *(rounded(row.metrics[name].mean) for name in names))
                    for row in comparison.rows
                ),
            ),
        ),
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


def _decays_words(record: StudyRecord, shown: str) -> str:
    """Which decay the surface is of, and the best trial of every one."""
    best: dict[str, TrialRecord] = {}
    for trial in record.ranked:
        best.setdefault(trial.decay or shown, trial)
    listed = ", ".join(
        f"{decay} {number(trial.value)} (trial {trial.number})" for decay, trial in best.items()
    )
    return f"Shown are the trials with the decay of the best one, {shown}. Best of each: {listed}."


def _listed(seed_lrs: Sequence[float]) -> str:
    return ", ".join(learning_rate(each) for each in seed_lrs)


def _metrics_table(record: StudyRecord, names: tuple[str, ...]) -> Table:
    points: dict[Point, TrialRecord] = {}
    for trial in record.ranked:
        points.setdefault(trial.point, trial)
    best = list(points.items())[:MOST_POINTS]
    cut = f"; the best {len(best)} of {len(points):,} points" if len(best) < len(points) else ""
    shown = (record.metric, *names)
    rows = tuple(
        (
            learning_rate(trial.seed_lr),
            explored(*point[1:]),
            *(number(trial.metrics.get(name)) for name in shown),
        )
        for point, trial in sorted(best, key=lambda each: each[0])
    )
    return Table(
        caption=f"All metrics{of_split(*shown)}, means over random seeds{cut}",
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
        caption=f"{surface.metric}{of_split(surface.metric)}, mean"
        + (" ± standard error" if known else ""),
        columns=("seed LR", *(percent(each) for each in surface.explore_fractions)),
        rows=tuple(rows),
        folded=True,
    )


def _tested(comparison: Comparison) -> str:
    chosen = {
        "last": "nothing was selected",
        "best": "the weights that were best on the validation split were kept",
    }.get(
        comparison.keep,
        f"the weights of the last {averaged(comparison.keep)} evaluations were averaged",
    )
    return (
        f"Training ran to the end of the budget and {chosen}; the test split is looked at once per "
        "run."
    )


def _beside_table(comparison: Comparison, metric: str) -> Table:
    reference = comparison.rows[comparison.reference]
    direction = direction_of(comparison, metric)
    return Table(
        caption=f"{sentence(in_words(metric))}; differences to {reference.label}, seed by seed, "
        "hold together (Bonferroni)",
        columns=("row", "epochs", "the paper", "ours", "random seeds", "difference", "verdict"),
        rows=tuple(
            (
                row.label,
                _epochs(row),
                _papers(row, metric),
                rounded(row.metrics[metric].mean),
                str(len(row.metrics[metric].values)),
                *_difference(row.metrics[metric].difference, metric, direction),
            )
            for row in comparison.rows
        ),
    )


def _difference(
    difference: Estimate | None, metric: str, direction: Direction | None
) -> tuple[str, str]:
    """A difference to the reference row, and whether it is good, where a better way is known."""
    if difference is None:
        return NOTHING, NOTHING
    told = judged_shortly(difference, direction) if direction else NOTHING
    return difference_words(difference, metric), told


def _epochs(row: RowOutcome) -> str:
    trained = f"{row.trained_epochs:.4g}"
    return trained if row.trained_epochs == row.epochs else f"{trained} of {row.epochs}"


def _papers(row: RowOutcome, metric: str) -> str:
    measured = row.metrics[metric]
    if measured.paper is None:
        return NOTHING
    return f"{measured.paper:g}" + (f" ± {measured.paper_std:g}" if measured.paper_std else "")


def _spread(row: RowOutcome, metric: str) -> str:
    values = list(row.metrics[metric].values.values())
    if len(values) < 2:
        return NOTHING
    return f"{row.metrics[metric].std:.2g} ({number(min(values))} to {number(max(values))})"


def _runs(comparison: Comparison) -> str:
    return f" over {comparison.runs} runs" if comparison.runs else ""
