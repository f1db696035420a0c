"""Figures of the surface: the heat map, the ridge on it, the crossover, and cuts through it."""

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from knee_tune.reporting.figure_parts import (
    ACCENT,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SCALE,
    axis,
    bars,
    figure,
    ramp,
    slice_line,
)
from knee_tune.reporting.shown import number
from knee_tune.specs.estimate import Estimate
from knee_tune.specs.records import Winner
from knee_tune.specs.ridge import Ridge, Surface
from knee_tune.specs.shown import learning_rate, percent
from knee_tune.specs.study import ReferenceRow, ReferenceTable

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
        "colorbar": {"title": {"text": surface.metric, "side": "right"}, "thickness": 12},
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
    traces = [
        _way(name, lrs, estimates, colour=colour, symbol=symbol, shift=gap ** (0.13 * (place - 1)))
        for place, (name, colour, symbol, estimates) in enumerate(ways)
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
    traces = [
        slice_line(
            surface.explore_fractions,
            surface.means[row],
            surface.errors[row],
            label=learning_rate(surface.seed_lrs[row]),
            colour=colour,
        )
        | {"connectgaps": True}
        for row, colour in enumerate(ramp(len(surface.seed_lrs)))
    ]
    low, high = _colour_range(surface)
    room = 0.06 * (high - low) or 1.0
    return figure(
        traces,
        x=axis("explore fraction", ticksuffix="%"),
        y=axis(surface.metric, range=[low - room, high + room]),
        height=440,
        legend={"title": {"text": "seed LR"}, "orientation": "v", "x": 1.02, "y": 1},
    )


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


def _colour_range(surface: Surface) -> tuple[float, float]:
    """From the best mean to the worst that is not far out (Tukey's outer fence).

    A single run that diverged would else leave one colour for all the others.
    """
    means = sorted(mean for row in surface.means for mean in row if mean is not None)
    if len(means) < 4:
        return means[0], means[-1]
    lower, _, upper = statistics.quantiles(means, n=4, method="inclusive")
    fence = 3 * (upper - lower)
    if surface.direction == "minimize":
        return means[0], max(mean for mean in means if mean <= upper + fence)
    return min(mean for mean in means if mean >= lower - fence), means[-1]


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
