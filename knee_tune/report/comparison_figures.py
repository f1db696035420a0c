"""Figures of a comparison: its rows beside the paper's, and how random seeds scatter in each."""

from typing import Any

from knee_tune.config.recipe import Direction
from knee_tune.records.shown import in_words, learning_rate
from knee_tune.records.values import Estimate
from knee_tune.report.plotting import (
    BLUE,
    GREY,
    ORANGE,
    Limits,
    axis,
    bars,
    figure,
    limits_of,
    marks,
    subplot,
)
from knee_tune.report.run_figures import seeds_figure
from knee_tune.stats.comparison import Comparison, RowOutcome

MOST_PANELS = 4

PANEL = 250
"""Pixels per metric."""


def seeds_of_rows(comparison: Comparison, metric: str) -> dict[str, Any] | None:
    """How random seeds scatter in every row; None where nothing was measured."""
    groups = {row.label: row.metrics[metric].values for row in comparison.rows}
    return seeds_figure(groups, metric=metric, direction=direction_of(comparison, metric))


def scattered(comparison: Comparison) -> tuple[str, ...]:
    """Metrics whose random seeds are drawn: the one that is judged, and those of analyses."""
    names = (comparison.metric, "sharpness", "fisher")
    return tuple(
        name
        for name in names
        if name in comparison.metrics
        and any(len(row.metrics[name].values) > 1 for row in comparison.rows)
    )


def direction_of(comparison: Comparison, metric: str) -> Direction | None:
    """The better way of the metric that rows are judged by; None of another one."""
    return comparison.direction if metric == comparison.metric else None


def metric_limits(comparison: Comparison, metric: str) -> Limits:
    """What of all runs' values is drawn where it is. ValueError where nothing was measured."""
    values = (value for row in comparison.rows for value in row.metrics[metric].values.values())
    return limits_of(values, direction_of(comparison, metric))


def beside_figure(comparison: Comparison) -> dict[str, Any] | None:
    """A row of two panels per metric, ours and the paper's; None where nothing was measured.

    At another budget each has a scale of its own: numbers differ then, and the course is compared.
    """
    names = [
        name
        for name in comparison.papers_metrics or (comparison.metric,)
        if any(row.metrics[name].values for row in comparison.rows)
    ][:MOST_PANELS]
    if not names:
        return None
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    height = 1 / len(names)
    for panel, name in enumerate(names):
        top = 1 - panel * height
        limits = metric_limits(comparison, name)
        for side, (left, right) in enumerate(((0.0, 0.46), (0.56, 1.0))):
            suffix = subplot(2 * panel + side)
            last = panel == len(names) - 1
            axes[f"yaxis{suffix}"] = axis(
                in_words(name) if side == 0 else "",
                domain=[top - 0.8 * height, top],
                anchor=f"x{suffix}",
                automargin=True,
                **({"matches": f"y{subplot(2 * panel)}"} if side and comparison.scale == 1 else {}),
            )
            axes[f"xaxis{suffix}"] = _x_axis(comparison, last=last) | {
                "domain": [left, right],
                "anchor": f"y{suffix}",
                "automargin": True,
            }
            drawn = _ours(comparison, name, limits) if side == 0 else _papers(comparison, name)
            traces += [
                each
                | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
                | ({"showlegend": False} if panel else {})
                for each in drawn
            ]
    return figure(
        traces,
        x=axes.pop("xaxis"),
        y=axes.pop("yaxis"),
        height=110 + PANEL * len(names),
        **axes,
    )


def _ours(comparison: Comparison, metric: str, limits: Limits) -> list[dict[str, Any]]:
    """Every seed as a point, means with their intervals above."""
    known = [row for row in comparison.rows if row.metrics[metric].values]
    seeds = [
        (row, seed, value) for row in known for seed, value in row.metrics[metric].values.items()
    ]
    series = comparison.explored is not None
    points = marks([value for _, _, value in seeds], limits)
    means = marks([_mean(row, metric).value for row in known], limits, size=9)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "each random seed",
            "legendgroup": "seeds",
            "x": [_x(row) for row, _, _ in seeds],
            "text": [f"{row.label}, random seed {seed}" for row, seed, _ in seeds],
            "hovertemplate": "%{text}<br>%{customdata:.4g}<extra></extra>",
            **points,
            "marker": points["marker"] | {"color": GREY, "opacity": 0.55},
        },
        {
            "type": "scatter",
            "mode": "lines+markers" if series else "markers",
            "name": "ours: mean, 95% interval",
            "legendgroup": "ours",
            "x": [_x(row) for row in known],
            "error_y": bars([_mean(row, metric) for row in known], colour=BLUE),
            "line": {"color": BLUE, "width": 2},
            "text": [row.label for row in known],
            "hovertemplate": "%{text}<br>%{customdata:.4g}<extra></extra>",
            **means,
            "marker": means["marker"] | {"color": BLUE},
        },
    ]


def _papers(comparison: Comparison, metric: str) -> list[dict[str, Any]]:
    """Means with standard deviations, where the table has them."""
    known = [row for row in comparison.rows if row.metrics[metric].paper is not None]
    spread = [row.metrics[metric].paper_std for row in known]
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if comparison.explored is not None else "markers",
            "name": "the paper"
            + (": mean, standard deviation" if any(each is not None for each in spread) else ""),
            "legendgroup": "paper",
            "x": [_x(row) for row in known],
            "y": [row.metrics[metric].paper for row in known],
            "error_y": {
                "type": "data",
                "array": spread,
                "thickness": 1.4,
                "width": 3,
                "color": ORANGE,
                "visible": any(each is not None for each in spread),
            },
            "line": {"color": ORANGE, "width": 2},
            "marker": {"color": ORANGE, "size": 10, "symbol": "diamond-open"},
            "text": [row.label for row in known],
            "hovertemplate": "the paper: %{text}<br>%{y:.4g}<extra></extra>",
        }
    ]


def _x_axis(comparison: Comparison, *, last: bool) -> dict[str, Any]:
    if comparison.explored is None:
        return axis("", type="category", showticklabels=last)
    title = f"epochs at LR {learning_rate(comparison.explored.lr)}, of the paper's"
    return axis(title if last else "", showticklabels=last)


def _x(row: RowOutcome) -> float | str:
    return row.label if row.explore_epochs is None else row.explore_epochs


def _mean(row: RowOutcome, metric: str) -> Estimate:
    mean = row.metrics[metric].mean
    assert mean is not None, "a row with values has a mean"
    return mean
