"""Figures of training runs: learning curves with their knees, steps, what matters, fresh seeds."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log10
from typing import Any

from knee_tune.analysis.range_curve import RangeReading, smoothed
from knee_tune.config.recipe import Direction, Phase
from knee_tune.records.findings import Confirmation, Importances
from knee_tune.records.shown import (
    explored,
    fresh_seeds,
    in_words,
    learning_rate,
    percent,
)
from knee_tune.records.study import Steps, StudyRecord, TrialRecord
from knee_tune.records.values import RunRecord
from knee_tune.report.plotting import (
    ACCENT,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Limits,
    axis,
    axis_range,
    bars,
    figure,
    limits_of,
    marks,
    ramp,
    subplot,
)
from knee_tune.schedules import Knee, Phased, Schedule
from knee_tune.schedules.schedule import fitted_schedule, phases_of

MOST_CURVES = 10
"""Lines that can still be told apart."""


def curves_of_study(record: StudyRecord) -> dict[str, Any] | None:
    """Learning curves with their knees, and above them the LRs; None without evaluations."""
    trials = curves_shown(record)
    if not trials:
        return None
    several = len({trial.seed_lr for trial in trials}) > 1
    names = sorted({name for trial in trials for each in trial.curve for name in each.metrics})
    limits = curve_limits(record)
    traces = []
    for trial, colour in zip(trials, ramp(len(trials)), strict=True):
        label = percent(trial.explore_fraction)
        if several:
            label = f"{learning_rate(trial.seed_lr)}, {label}"
        traces += _curve(record, trial, names[0], label=label, colour=colour)
    return figure(
        traces,
        x=axis("step", anchor="y", rangemode="tozero"),
        y=axis(in_words(names[0]), domain=[0, 0.74], range=axis_range(limits)),
        yaxis2=axis("LR", domain=[0.82, 1], rangemode="tozero", automargin=True),
        height=520,
        legend={
            "title": {"text": "seed LR, explore" if several else "explore"},
            "orientation": "v",
            "x": 1.02,
            "y": 1,
            "tracegroupgap": 0,
        },
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
    )


def curves_shown(record: StudyRecord) -> list[TrialRecord]:
    """The trials of the winner's seed LR, ascending in the explore fraction.

    Where it has too few, the best trials of all seed LRs.
    """
    drawn = [
        trial
        for trial in record.trials
        if trial.state in ("complete", "pruned") and len(trial.curve) > 1 and trial.budget
    ]
    winner = record.winner
    if winner is None:
        return []
    row = {
        trial.explore_fraction: trial
        for trial in drawn
        if (trial.seed_lr, trial.decay) == (winner.seed_lr, winner.decay)
    }
    if len(row) > 2:
        trials = [trial for _, trial in sorted(row.items())]
        return _thinned(trials, keep=winner.explore_fraction)
    known = {trial.number for trial in drawn}
    ranked = [trial for trial in record.ranked if trial.number in known][:MOST_CURVES]
    return sorted(ranked, key=lambda trial: trial.point)


def curve_limits(record: StudyRecord) -> Limits:
    """What of the learning curves is in view: not their start, where that is far out."""
    trials = curves_shown(record)
    name = min(name for trial in trials for each in trial.curve for name in each.metrics)
    direction = record.direction if name == record.metric else None
    return limits_of(
        (each.metrics.get(name) for trial in trials for each in trial.curve), direction
    )


def steps_figure(steps: Steps) -> dict[str, Any] | None:
    """Where the steps of independent trials went; None before a trial has finished."""
    if not steps.independent:
        return None
    parts = [
        ("trained", steps.trained, BLUE),
        ("from trunks", steps.reused - steps.recorded, GREEN),
        ("from cached runs", steps.recorded, GREY),
        ("saved by pruning", steps.pruned, ORANGE),
    ]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [count],
            "y": ["steps"],
            "marker": {"color": colour},
            "hovertemplate": f"{name}: {count:,} steps<extra></extra>",
        }
        for name, count, colour in parts
        if count > 0
    ]
    return figure(
        traces,
        x=axis("training steps", tickformat=","),
        y=axis("", showticklabels=False),
        height=190,
        barmode="stack",
        margin={"l": 20, "r": 24, "t": 48, "b": 56},
    )


def importance_figure(importances: Importances) -> dict[str, Any]:
    """A bar for each hyperparameter, the most important one on top."""
    items = list(importances.values.items())[::-1]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [100 * share for _, share in items],
        "y": [name.replace("_", " ").replace("lr", "LR") for name, _ in items],
        "marker": {"color": BLUE},
        "hovertemplate": "%{y}: %{x:.3g}%<extra></extra>",
    }
    return figure(
        [trace],
        x=axis(f"importance ({importances.evaluator})", ticksuffix="%", range=[0, 100]),
        y=axis("", type="category"),
        height=140 + 36 * len(items),
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
    )


def confirmation_figure(confirmation: Confirmation) -> dict[str, Any] | None:
    """Means over fresh seeds with their intervals; None if no candidate has one."""
    candidates = [
        (index, candidate, candidate.mean)
        for index, candidate in enumerate(confirmation.candidates)
        if candidate.mean is not None
    ][::-1]
    if not candidates:
        return None
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [mean.value for _, _, mean in candidates],
        "y": [
            f"seed LR {learning_rate(each.seed_lr)}, {explored(*each.point[1:])}"
            + ("<br>(the default)" if each.default else "")
            for _, each, _ in candidates
        ],
        "error_x": bars([mean for _, _, mean in candidates], colour=GREY),
        "marker": {
            "size": 11,
            "color": [
                ACCENT if index == confirmation.winner else BLUE for index, _, _ in candidates
            ],
        },
        "hovertemplate": "%{y}: %{x:.4g}<extra></extra>",
    }
    return figure(
        [trace],
        x=axis(f"{in_words(confirmation.metric)}, {fresh_seeds(len(confirmation.seeds))}"),
        y=axis("", type="category", range=[-0.6, len(candidates) - 0.4]),
        height=130 + 48 * len(candidates),
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
    )


def _curve(
    record: StudyRecord, trial: TrialRecord, metric: str, *, label: str, colour: str
) -> list[dict[str, Any]]:
    """A run's curve, its knee on it, and its LR; the legend switches all three at once."""
    knee = knee_of(record, trial)
    points = [(each.step, each.metrics[metric]) for each in trial.curve if metric in each.metrics]
    lr_steps = sorted({1, *_turns(knee)})
    pruned = trial.state == "pruned"
    shared = {"legendgroup": str(trial.number), "type": "scatter"}
    hover = trial.setting
    return [
        {
            **shared,
            "mode": "lines",
            "name": f"{label} (pruned)" if pruned else label,
            "x": [step for step, _ in points],
            "y": [value for _, value in points],
            "line": {"color": colour, "width": 2, "dash": "dot" if pruned else "solid"},
            "hovertemplate": f"{hover}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
        },
        {
            **shared,
            "mode": "markers",
            "name": "its knee",
            "showlegend": False,
            "x": [knee.knee_step],
            "y": [_at(points, knee.knee_step)],
            "marker": {"color": colour, "size": 11, "symbol": "diamond"},
            "hovertemplate": f"{hover}<br>knee at step {knee.knee_step}<extra></extra>",
        },
        {
            **shared,
            "mode": "lines",
            "name": "its LR",
            "showlegend": False,
            "yaxis": "y2",
            "x": lr_steps,
            "y": [knee.lr(step) for step in lr_steps],
            "line": {"color": colour, "width": 1.5},
            "hovertemplate": f"{hover}<br>LR %{{y:.3g}} at step %{{x}}<extra></extra>",
        },
    ]


def knee_of(record: StudyRecord, trial: TrialRecord) -> Knee | Phased:
    """The trial's schedule, from its point and its budget."""
    total, recipe = trial.budget // record.spec.replicates, record.spec.recipe
    return fitted_schedule(
        seed_lr=trial.seed_lr,
        total_steps=total,
        explore_fraction=trial.explore_fraction,
        warmup_steps=int(recipe.get("warmup_steps", 0)),
        phases=[
            Phase(**{name: each[name] for name in Phase.model_fields if name in each})
            for each in recipe.get("phases", ())
        ],
        **{name: recipe[name] for name in ("decay", "final", "decay_power") if name in recipe}
        | ({"decay": trial.decay} if trial.decay else {}),
    )


def _at(points: Sequence[tuple[int, float]], step: int) -> float | None:
    """The curve's value at a step, between two evaluations by a straight line."""
    if step <= points[0][0]:
        return points[0][1] if step == points[0][0] else None
    for (before, low), (after, high) in pairwise(points):
        if before <= step <= after:
            return low + (high - low) * (step - before) / (after - before)
    return None


def _thinned(trials: list[TrialRecord], *, keep: float) -> list[TrialRecord]:
    """At most :data:`MOST_CURVES` of them, evenly, always with the winner's fraction."""
    stride = -(-len(trials) // MOST_CURVES)
    kept = next((index for index, trial in enumerate(trials) if trial.explore_fraction == keep), 0)
    return trials[kept % stride :: stride]


# One run's LR and validation curve, above one another over the same steps.

POINTS = 400
"""Steps at which the LR is drawn, evenly spaced; those where it turns come on top."""


def curves_figure(record: RunRecord, *, title: str, schedule: Schedule) -> dict[str, Any]:
    """A plotly figure (as a dict) with the LR by step and every metric of the run's curve."""
    steps = _lr_steps(schedule)
    lines = [_trace("LR", steps, [schedule.lr(step) for step in steps], axis="y2", dash="dot")]
    names = sorted({name for evaluation in record.curve for name in evaluation.metrics})
    lines += [
        _trace(
            name,
            [evaluation.step for evaluation in record.curve],
            [evaluation.metrics.get(name) for evaluation in record.curve],
            axis="y",
        )
        for name in names
    ]
    layout = {
        "title": {"text": title},
        "template": "plotly_white",
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": ", ".join(names)}},
        "yaxis2": {
            "title": {"text": "LR"},
            "overlaying": "y",
            "side": "right",
            "rangemode": "tozero",
        },
        "legend": {"orientation": "h", "y": -0.2},
    }
    return {"data": lines, "layout": layout}


def _lr_steps(schedule: Schedule) -> list[int]:
    """Evenly spaced steps, with the last one of the warmup and of every phase after it.

    Otherwise a knee between two of them is cut off, and a step schedule's drop is a slope.
    """
    total = schedule.total_steps
    ends = {getattr(schedule, name, total) for name in ("warmup_steps", "knee_step")}
    ends.update(getattr(schedule, "boundaries", ()))
    if isinstance(schedule, Phased):
        ends = _turns(schedule)
    turns = {step for end in ends for step in (end, end + 1) if 1 <= step <= total}
    return sorted({*range(1, total, max(1, total // POINTS)), *turns, total})


def _turns(schedule: Knee | Phased) -> set[int]:
    """The steps at which its LR turns: of each phase the last of warmup, explore and decay."""
    turns, start = set[int](), 0
    for knee in phases_of(schedule):
        turns |= {start + (knee.warmup_steps or 1), start + max(1, knee.knee_step)}
        start += knee.total_steps
        turns.add(start)
    return turns


def _trace(
    name: str, x: list[int], y: list[float] | list[float | None], *, axis: str, dash: str = "solid"
) -> dict[str, Any]:
    mode = "lines" if axis == "y2" else "lines+markers"
    return {
        "type": "scatter",
        "name": name,
        "x": x,
        "y": y,
        "yaxis": axis,
        "mode": mode,
        "line": {"dash": dash},
    }


# How random seeds scatter around their means, as in Figures 2 and 3 of the paper.

MANY_SEEDS = 15
"""From so many on a histogram says more than points."""

FEWEST_SEEDS = 5
"""Fewer are no distribution."""

BINS = 24

Groups = Mapping[str, Mapping[int, float]]
"""By what people read: a metric by random seed."""


def seeds_figure(
    groups: Groups, *, metric: str, direction: Direction | None = None
) -> dict[str, Any] | None:
    """A strip of points for every group that has values, with many seeds a histogram.

    None where no group has any. Far-out values are at the edge.
    """
    shown = {label: values for label, values in groups.items() if values}
    if not shown:
        return None
    limits = limits_of((each for values in shown.values() for each in values.values()), direction)
    many = max(map(len, shown.values())) >= MANY_SEEDS
    return (_histograms if many else _strips)(shown, metric, limits)


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
    return seeds_figure(groups, metric=record.metric, direction=record.direction)


def _strips(groups: Groups, metric: str, limits: Limits) -> dict[str, Any]:
    """A line of points per group, the first one on top, a bar at its mean."""
    traces: list[dict[str, Any]] = []
    for (label, values), colour in zip(groups.items(), ramp(len(groups)), strict=True):
        drawn = marks(list(values.values()), limits, along="x", size=10)
        points = {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "y": [label] * len(values),
            "text": [f"random seed {seed}" for seed in values],
            "hovertemplate": f"{label}, %{{text}}<br>%{{customdata:.4g}}<extra></extra>",
            **drawn,
            "marker": drawn["marker"] | {"color": colour, "opacity": 0.75},
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
        x=axis(in_words(metric), range=axis_range(limits)),
        y=axis("", type="category", **order),
        height=110 + 46 * len(groups),
        showlegend=False,
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
    )


def _histograms(groups: Groups, metric: str, limits: Limits) -> dict[str, Any]:
    """A panel per group, one above the other, with the same bins: they move and they tighten."""
    low, high = limits
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
                "x": marks(list(values.values()), limits, along="x")["x"],
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


# The curve of a LR range test (the paper's Figure 4).


def lr_range_figure(
    lrs: Sequence[float], losses: Sequence[float], *, reading: RangeReading, title: str
) -> dict[str, Any]:
    """Training loss against LR, step by step and smoothed, with what was read off."""
    curve = smoothed(losses)
    traces = [
        _line(lrs, losses, "loss of one step", GREY, width=1),
        _line(lrs, curve, "smoothed", BLUE, width=2),
    ]
    marks = {
        "suggested maximum": (reading.suggested_lr, ACCENT),
        "minimum": (reading.minimum_lr, BLUE),
    }
    drawn = [(name, lr, colour) for name, (lr, colour) in marks.items() if lr >= lrs[0]]
    return figure(
        traces,
        x=axis("learning rate", type="log", exponentformat="power"),
        y=axis("training loss", range=_visible(curve)),
        title={"text": title, "x": 0.02},
        margin={"l": 60, "r": 24, "t": 110, "b": 56},
        shapes=[
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                **dict.fromkeys(("x0", "x1"), lr),
                "y0": 0,
                "y1": 1,
                "line": {"color": colour, "width": 1.5, "dash": "dot"},
            }
            for _, lr, colour in drawn
        ],
        annotations=[
            {
                "x": _exponent(lr),
                "y": 1,
                "yref": "paper",
                "yanchor": "top",
                "xanchor": "right",
                "textangle": -90,
                "showarrow": False,
                "text": f"{name} {lr:.2g}",
                "font": {"color": colour},
            }
            for name, lr, colour in drawn
        ],
    )


def _line(
    lrs: Sequence[float], values: Sequence[float], name: str, colour: str, *, width: int
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(lrs),
        "y": list(values),
        "line": {"color": colour, "width": width},
        "hovertemplate": "LR %{x:.3g}<br>loss %{y:.4g}<extra></extra>",
    }


def _visible(curve: Sequence[float]) -> list[float]:
    """The part that is worth looking at: an explosion would flatten all the rest."""
    low, start = min(curve), curve[0]
    room = max(start - low, 0.1 * abs(start))
    return [low - 0.1 * room, start + 0.5 * room]


def _exponent(lr: float) -> float:
    """Plotly places annotations on a logarithmic axis by their exponent."""
    return log10(lr)
