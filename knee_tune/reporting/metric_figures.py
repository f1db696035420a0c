"""The metrics that the study did not optimise, against the explore fraction."""

import math
import statistics
from typing import Any

from knee_tune.reporting.figure_parts import axis, figure, ramp, slice_line, subplot
from knee_tune.specs.records import StudyRecord, TrialRecord
from knee_tune.specs.shown import learning_rate

MOST_PANELS = 3

PANEL = 260
"""Height of a panel."""


def other_metrics(record: StudyRecord) -> tuple[str, ...]:
    """Names of the metrics beside the study's own that its complete trials have, at most three."""
    names = {name for trial in record.ranked for name in trial.metrics} - {record.metric}
    return tuple(sorted(names)[:MOST_PANELS])


def metrics_figure(record: StudyRecord) -> dict[str, Any] | None:
    """A panel for each of the other metrics, a line per seed LR; None if there is none."""
    names = other_metrics(record)
    trials = {trial.point: trial for trial in reversed(record.ranked)}
    if not names or len({fraction for _, fraction in trials}) < 2:
        return None
    lrs = sorted({lr for lr, _ in trials})
    axes, traces = {}, []
    height = 1 / len(names)
    for panel, name in enumerate(names):
        suffix = subplot(panel)
        top = 1 - panel * height
        axes[f"yaxis{suffix}"] = axis(
            name, domain=[top - 0.86 * height, top], anchor="x", automargin=True
        )
        for lr, colour in zip(lrs, ramp(len(lrs)), strict=True):
            row = [trial for point, trial in sorted(trials.items()) if point[0] == lr]
            line = _line(row, name, label=learning_rate(lr), colour=colour)
            traces.append(line | {"yaxis": f"y{suffix}", "showlegend": panel == 0 and len(lrs) > 1})
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


def _line(trials: list[TrialRecord], metric: str, *, label: str, colour: str) -> dict[str, Any]:
    """Means over random seeds with their standard errors."""
    known = [trial for trial in trials if metric in trial.metrics]
    return slice_line(
        [trial.explore_fraction for trial in known],
        [trial.metrics[metric] for trial in known],
        [_standard_error(trial, metric) for trial in known],
        label=label,
        colour=colour,
    ) | {"legendgroup": label}


def _standard_error(trial: TrialRecord, metric: str) -> float | None:
    values = [each.metrics[metric] for each in trial.replicates if metric in each.metrics]
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
