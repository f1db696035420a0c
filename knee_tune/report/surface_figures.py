"""Figures of the surface: the heat map, the ridge on it, the crossover, and cuts through it."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from knee_tune.config.study import ReferenceRow, ReferenceTable
from knee_tune.records.findings import Ridge, Surface
from knee_tune.records.shown import in_words, learning_rate, number, percent
from knee_tune.records.study import StudyRecord, TrialRecord, Winner
from knee_tune.records.values import Estimate
from knee_tune.report.plotting import (
    ACCENT,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SCALE,
    Limits,
    axis,
    axis_range,
    bars,
    figure,
    limits_of,
    marks,
    ramp,
    subplot,
    within,
)

MOST_COLUMNS = 14
"""More explore fractions than this leave no room for numbers in the cells."""


def surface_figure(surface: Surface, *, winner: Winner | None) -> dict[str, Any]:
    """Mean metric over seed LR x explore fraction, standard errors in the cells.

    The best fraction of a row is in bold, the recommended setting framed. Both axes are categories:
    as numbers, labels such as 1.5e-04 would be drawn on a distorted line.
    """
    cell = surface.cell(winner.point) if winner else None
    columns = [percent(fraction) for fraction in surface.explore_fractions]
    rows = [learning_rate(lr) for lr in surface.seed_lrs]
    low, high = _colour_range(surface)
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": columns,
        "y": rows,
        "z": surface.means,
        "zmin": low,
        "zmax": high,
        "text": [_cells(surface, row) for row in range(len(rows))],
        "colorscale": SCALE,
        "reversescale": surface.direction == "minimize",
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "hovertemplate": "seed LR %{y}, explore %{x}<br>%{text}<extra></extra>",
        "colorbar": {"title": {"text": in_words(surface.metric), "side": "right"}, "thickness": 12},
    }
    if len(columns) <= MOST_COLUMNS:
        trace["texttemplate"] = "%{text}"
    return figure(
        [trace],
        x=axis("explore fraction", type="category", showgrid=False),
        y=axis("seed LR", type="category", showgrid=False),
        height=max(300, 130 + 44 * len(rows)),
        shapes=[_frame(*cell)] if cell else [],
    )


def ridge_figure(ridge: Ridge, reference: Sequence[ReferenceTable]) -> dict[str, Any] | None:
    """The best explore fraction against seed LR, three ways, beside the paper's points.

    None with a single seed LR: there is nothing to compare.
    """
    optimal = ridge.optimal
    if len(optimal) < 2:
        return None
    lrs = [each.seed_lr for each in optimal]
    ways: list[tuple[str, str, str, list[Estimate | None]]] = [
        ("best fraction tried", BLUE, "circle", [each.raw for each in optimal]),
        ("Gaussian process", ORANGE, "square", [each.gp for each in optimal]),
        ("cubic surface", GREEN, "triangle-up", [each.cubic for each in optimal]),
    ]
    gap = min(high / low for low, high in pairwise(lrs))
    shifts = (1.0, gap**-0.13, gap**0.13)  # what was tried stands at its seed LR
    traces = [
        _way(name, lrs, estimates, colour=colour, symbol=symbol, shift=shift)
        for shift, (name, colour, symbol, estimates) in zip(shifts, ways, strict=True)
        if any(estimate is not None for estimate in estimates)
    ]
    traces += [
        _paper(f"the paper, {table.table}", knees) for table, knees in paper_ridges(reference)
    ]
    return figure(
        traces,
        x=axis(
            "seed LR (log axis)",
            type="log",
            tickmode="array",
            tickvals=lrs,
            ticktext=[learning_rate(lr) for lr in lrs],
        ),
        y=axis("best explore fraction", ticksuffix="%", range=[-6, 106], dtick=20),
        height=460,
    )


def paper_ridges(
    reference: Iterable[ReferenceTable],
) -> list[tuple[ReferenceTable, list[ReferenceRow]]]:
    """The tables with a best explore duration for each of several seed LRs, and those rows."""
    found = []
    for table in reference:
        knees = [
            row
            for row in table.rows
            if row.schedule == "knee" and row.seed_lr is not None and row.explore_epochs is not None
        ]
        if len({row.seed_lr for row in knees}) == len(knees) > 1:
            found.append((table, knees))
    return found


def crossover_figure(ridge: Ridge) -> dict[str, Any] | None:
    """What long exploring gains over short, at low and at high seed LRs; None without the test."""
    test = ridge.crossover
    if test is None:
        return None
    ends = [test.low_lrs, test.high_lrs]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [each.value for each in ends],
        "y": ["lowest third<br>of seed LRs", "highest third<br>of seed LRs"],
        "error_x": bars(ends, colour=GREY),
        "marker": {"color": [BLUE, ORANGE], "size": 12},
        "hovertemplate": "%{x:+.3g}<extra></extra>",
        "showlegend": False,
    }
    return figure(
        [trace],
        x=axis(
            "← short exploring better      long exploring better →",
            zeroline=True,
            zerolinewidth=2,
        ),
        y=axis("", type="category", range=[-0.6, 1.6]),
        height=230,
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
    )


def slices_figure(ridge: Ridge) -> dict[str, Any] | None:
    """The metric against the explore fraction, a line per seed LR; None with one fraction."""
    surface = ridge.surface
    if len(surface.explore_fractions) < 2:
        return None
    limits = surface_limits(surface)
    traces = [
        slice_line(
            surface.explore_fractions,
            surface.means[row],
            surface.errors[row],
            label=learning_rate(surface.seed_lrs[row]),
            colour=colour,
            limits=limits,
        )
        | {"connectgaps": True}
        for row, colour in enumerate(ramp(len(surface.seed_lrs)))
    ]
    return figure(
        traces,
        x=axis("explore fraction", ticksuffix="%"),
        y=axis(in_words(surface.metric), range=axis_range(limits)),
        height=440,
        legend={"title": {"text": "seed LR"}, "orientation": "v", "x": 1.02, "y": 1},
    )


def slice_line(
    fractions: Sequence[float],
    means: Sequence[float | None],
    errors: Sequence[float | None],
    *,
    label: str,
    colour: str,
    limits: Limits,
) -> dict[str, Any]:
    """A metric against the explore fraction at the seed LR ``label``, with standard errors."""
    drawn = marks(means, limits)
    shown = [
        None if mean is None else error
        for mean, error in zip(within(means, limits), errors, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "x": [100 * fraction for fraction in fractions],
        "error_y": {
            "type": "data",
            "array": shown,
            "thickness": 1,
            "width": 2,
            "visible": any(error is not None for error in shown),
        },
        "line": {"color": colour, "width": 2},
        "hovertemplate": f"seed LR {label}, explore %{{x:.4g}}%<br>%{{customdata:.4g}}"
        "<extra></extra>",
        **drawn,
    }


def _cells(surface: Surface, row: int) -> list[str]:
    """The numbers in one row of the heat map."""
    means, errors = surface.means[row], surface.errors[row]
    known = [mean for mean in means if mean is not None]
    best = (min if surface.direction == "minimize" else max)(known, default=None)
    cells = []
    for mean, error in zip(means, errors, strict=True):
        if mean is None:
            cells.append("")
            continue
        said = f"<b>{number(mean)}</b>" if mean == best else number(mean)
        cells.append(said if error is None else f"{said}<br>±{error:.2g}")
    return cells


def surface_limits(surface: Surface) -> Limits:
    """From the best mean to the worst that is drawn where it is."""
    return limits_of((mean for row in surface.means for mean in row), surface.direction)


def _colour_range(surface: Surface) -> Limits:
    """From the best mean to the worst that is not far out: that one has the last colour, too."""
    low, high = surface_limits(surface)
    inside = [
        mean for row in surface.means for mean in row if mean is not None and low <= mean <= high
    ]
    return min(inside), max(inside)


def _frame(row: int, column: int) -> dict[str, Any]:
    """Around the recommended cell. On a category axis a shape counts cells from 0."""
    return {
        "type": "rect",
        "x0": column - 0.48,
        "x1": column + 0.48,
        "y0": row - 0.48,
        "y1": row + 0.48,
        "line": {"color": ACCENT, "width": 4},
    }


def _way(
    name: str,
    lrs: Sequence[float],
    estimates: Sequence[Estimate | None],
    *,
    colour: str,
    symbol: str,
    shift: float,
) -> dict[str, Any]:
    """One way of finding the optimum; ``shift`` keeps the error bars of the three apart."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [lr * shift for lr in lrs],
        "y": [None if each is None else 100 * each.value for each in estimates],
        "error_y": bars(estimates, scale=100),
        "marker": {"color": colour, "symbol": symbol, "size": 10},
        "line": {"color": colour, "width": 1.5, "dash": "solid" if symbol == "circle" else "dot"},
        "customdata": [learning_rate(lr) for lr in lrs],
        "hovertemplate": f"{name}: %{{y:.3g}}% at seed LR %{{customdata}}<extra></extra>",
    }


def _paper(name: str, rows: Sequence[ReferenceRow]) -> dict[str, Any]:
    points = [
        (row.seed_lr, 100 * row.explore_epochs / row.epochs)
        for row in rows
        if row.explore_epochs is not None
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [lr for lr, _ in points],
        "y": [fraction for _, fraction in points],
        "marker": {"color": GREY, "symbol": "diamond-open", "size": 10, "line": {"width": 2}},
        "line": {"color": GREY, "width": 1, "dash": "dash"},
        "hovertemplate": f"{name}: %{{y:.3g}}% at seed LR %{{x}}<extra></extra>",
    }


MOST_PANELS = 3

PANEL = 260
"""Height of a panel."""


def other_metrics(record: StudyRecord) -> tuple[str, ...]:
    """Names of the metrics beside the study's own that its complete trials have, at most three."""
    names = {name for trial in record.ranked for name in trial.metrics} - {record.metric}
    return tuple(sorted(names)[:MOST_PANELS])


def metrics_figure(record: StudyRecord) -> dict[str, Any] | None:
    """A panel for each of the other metrics, a line per seed LR; None if there is none."""
    names, ranked = other_metrics(record), record.ranked
    trials = {
        (trial.seed_lr, trial.explore_fraction): trial
        for trial in reversed(ranked)
        if trial.decay == ranked[0].decay
    }
    if not names or len({fraction for _, fraction in trials}) < 2:
        return None
    rows = defaultdict[float, list[TrialRecord]](list)
    for (lr, _), trial in sorted(trials.items()):
        rows[lr].append(trial)
    axes, traces = {}, []
    height = 1 / len(names)
    for panel, name in enumerate(names):
        suffix = subplot(panel)
        top = 1 - panel * height
        limits = limits_of(trial.metrics.get(name) for trial in ranked)
        axes[f"yaxis{suffix}"] = axis(
            in_words(name),
            domain=[top - 0.86 * height, top],
            anchor="x",
            automargin=True,
            range=axis_range(limits),
        )
        for (lr, row), colour in zip(rows.items(), ramp(len(rows)), strict=True):
            line = _line(row, name, label=learning_rate(lr), colour=colour, limits=limits)
            shown = panel == 0 and len(rows) > 1
            traces.append(line | {"yaxis": f"y{suffix}", "showlegend": shown})
    first = axes.pop("yaxis")
    return figure(
        traces,
        x=axis("explore fraction", ticksuffix="%", anchor=f"y{len(names) if names[1:] else ''}"),
        y=first,
        height=100 + PANEL * len(names),
        legend={
            "title": {"text": "seed LR"},
            "orientation": "v",
            "x": 1.02,
            "y": 1,
            "tracegroupgap": 0,
        },
        **axes,
    )


def _line(
    trials: list[TrialRecord], metric: str, *, label: str, colour: str, limits: Limits
) -> dict[str, Any]:
    """Means over random seeds with their standard errors."""
    known = [trial for trial in trials if metric in trial.metrics]
    return slice_line(
        [trial.explore_fraction for trial in known],
        [trial.metrics[metric] for trial in known],
        [_standard_error(trial, metric) for trial in known],
        label=label,
        colour=colour,
        limits=limits,
    ) | {"legendgroup": label}


def _standard_error(trial: TrialRecord, metric: str) -> float | None:
    values = [each.metrics[metric] for each in trial.replicates if metric in each.metrics]
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
