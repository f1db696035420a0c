"""How random seeds scatter around their means, as in Figures 2 and 3 of the paper."""

import statistics
from collections.abc import Mapping
from typing import Any

from knee_tune.reporting.figure_parts import axis, figure, ramp, subplot
from knee_tune.reporting.shown import in_words
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.shown import percent

MANY_SEEDS = 15
"""From so many on a histogram says more than points."""

FEWEST_SEEDS = 5
"""Fewer are no distribution."""

BINS = 24

Groups = Mapping[str, Mapping[int, float]]
"""By what people read: a metric by random seed."""


def seeds_figure(groups: Groups, *, metric: str) -> dict[str, Any] | None:
    """A strip of points for every group that has values, with many seeds a histogram.

    None where no group has any.
    """
    shown = {label: values for label, values in groups.items() if values}
    if not shown:
        return None
    many = max(map(len, shown.values())) >= MANY_SEEDS
    return _histograms(shown, metric) if many else _strips(shown, metric)


def seeds_of_study(record: StudyRecord) -> dict[str, Any] | None:
    """The study's metric over the random seeds, by explore fraction at the winner's seed LR.

    None with fewer than :data:`FEWEST_SEEDS` replicates.
    """
    winner = record.winner
    if winner is None or record.spec.replicates < FEWEST_SEEDS:
        return None
    trials = sorted(
        (trial for trial in record.ranked[::-1] if trial.seed_lr == winner.seed_lr),
        key=lambda trial: trial.explore_fraction,
    )
    groups = {
        f"explore {percent(trial.explore_fraction)}": {
            run.seed: run.value for run in trial.replicates if run.value is not None
        }
        for trial in trials
    }
    return seeds_figure(groups, metric=record.metric)


def _strips(groups: Groups, metric: str) -> dict[str, Any]:
    """A line of points per group, the first one on top, a bar at its mean."""
    traces: list[dict[str, Any]] = []
    for (label, values), colour in zip(groups.items(), ramp(len(groups)), strict=True):
        points = {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "x": list(values.values()),
            "y": [label] * len(values),
            "text": [f"random seed {seed}" for seed in values],
            "marker": {"color": colour, "size": 10, "opacity": 0.75},
            "hovertemplate": f"{label}, %{{text}}<br>%{{x:.4g}}<extra></extra>",
        }
        bar = {
            "type": "scatter",
            "mode": "markers",
            "name": f"{label}: mean",
            "x": [statistics.fmean(values.values())],
            "y": [label],
            "marker": {"symbol": "line-ns", "size": 26, "line": {"color": colour, "width": 3}},
            "hovertemplate": f"{label}, mean<br>%{{x:.4g}}<extra></extra>",
        }
        traces += [points, bar]
    order = {"categoryorder": "array", "categoryarray": list(groups)[::-1]}
    return figure(
        traces,
        x=axis(in_words(metric)),
        y=axis("", type="category", **order),
        height=110 + 46 * len(groups),
        showlegend=False,
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
    )


def _histograms(groups: Groups, metric: str) -> dict[str, Any]:
    """A panel per group, one above the other, with the same bins: they move and they tighten."""
    every = [value for values in groups.values() for value in values.values()]
    low, high = min(every), max(every)
    size = (high - low) / BINS or 1.0
    bins = {"start": low, "end": high + size, "size": size}  # a bin holds its start, not its end
    axes: dict[str, Any] = {}
    traces: list[dict[str, Any]] = []
    titles: list[dict[str, Any]] = []
    height = 1 / len(groups)
    for panel, (label, values) in enumerate(groups.items()):
        top = 1 - panel * height
        domain = [top - 0.94 * height, top - 0.24 * height]
        axes[f"yaxis{subplot(panel)}"] = axis("", domain=domain, anchor="x", nticks=4)
        traces.append(
            {
                "type": "histogram",
                "name": label,
                "x": list(values.values()),
                "xbins": bins,
                "autobinx": False,
                "yaxis": f"y{subplot(panel)}",
                "marker": {"color": ramp(len(groups))[panel]},
                "hovertemplate": f"{label}<br>%{{x}}: %{{y}} random seeds<extra></extra>",
            }
        )
        titles.append(
            {
                "text": f"{label}: {statistics.fmean(values.values()):.4g}",
                "xref": "paper",
                "yref": "paper",
                "xanchor": "right",
                "yanchor": "bottom",
                "x": 0.99,
                "y": top - 0.22 * height,
                "showarrow": False,
            }
        )
    return figure(
        traces,
        x=axis(in_words(metric), anchor=f"y{subplot(len(groups) - 1)}"),
        y=axes.pop("yaxis"),
        height=90 + 120 * len(groups),
        showlegend=False,
        annotations=titles,
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
        **axes,
    )
