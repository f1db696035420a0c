"""Figures of training runs: learning curves with their knees, steps, what matters, fresh seeds."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from knee_tune.planning.planner import fitted_knee
from knee_tune.reporting.figure_parts import (
    ACCENT,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    axis,
    bars,
    figure,
    ramp,
)
from knee_tune.reporting.shown import in_words
from knee_tune.schedules import Knee
from knee_tune.specs.confirmation import Confirmation
from knee_tune.specs.importances import Importances
from knee_tune.specs.records import Steps, StudyRecord, TrialRecord
from knee_tune.specs.shown import learning_rate, percent, setting

MOST_CURVES = 10
"""Lines that can still be told apart."""


def curves_of_study(record: StudyRecord) -> dict[str, Any] | None:
    """Learning curves with their knees, and above them the LRs; None without evaluations."""
    trials = curves_shown(record)
    if not trials:
        return None
    several = len({trial.seed_lr for trial in trials}) > 1
    names = sorted({name for trial in trials for each in trial.curve for name in each.metrics})
    traces = []
    for trial, colour in zip(trials, ramp(len(trials)), strict=True):
        label = percent(trial.explore_fraction)
        if several:
            label = f"{learning_rate(trial.seed_lr)}, {label}"
        traces += _curve(record, trial, names[0], label=label, colour=colour)
    return figure(
        traces,
        x=axis("step", anchor="y", rangemode="tozero"),
        y=axis(in_words(names[0]), domain=[0, 0.74]),
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
        if trial.state in ("complete", "pruned") and len(trial.curve) > 1 and trial.steps_budget
    ]
    winner = record.winner
    if winner is None:
        return []
    row = {trial.explore_fraction: trial for trial in drawn if trial.seed_lr == winner.seed_lr}
    if len(row) > 2:
        trials = [trial for _, trial in sorted(row.items())]
        return _thinned(trials, keep=winner.explore_fraction)
    known = {trial.number for trial in drawn}
    ranked = [trial for trial in record.ranked if trial.number in known][:MOST_CURVES]
    return sorted(ranked, key=lambda trial: trial.point)


def steps_figure(steps: Steps) -> dict[str, Any] | None:
    """Where the steps of independent trials went; None before a trial has finished."""
    if not steps.independent:
        return None
    parts = [
        ("trained", steps.trained, BLUE),
        ("taken over from trunks", steps.reused - steps.recorded, GREEN),
        ("answered from records", steps.recorded, GREY),
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
            f"seed LR {learning_rate(each.seed_lr)}, {percent(each.explore_fraction)}"
            + ("<br>(the paper's default)" if each.default else "")
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
        x=axis(f"{in_words(confirmation.metric)}, {len(confirmation.seeds)} fresh seeds"),
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
    lr_steps = sorted({1, knee.warmup_steps or 1, max(1, knee.knee_step), knee.total_steps})
    pruned = trial.state == "pruned"
    shared = {"legendgroup": str(trial.number), "type": "scatter"}
    hover = setting(trial.seed_lr, trial.explore_fraction)
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


def knee_of(record: StudyRecord, trial: TrialRecord) -> Knee:
    """The trial's schedule, from its point and its budget."""
    total = trial.steps_budget // record.spec.replicates
    return fitted_knee(
        seed_lr=trial.seed_lr,
        total_steps=total,
        explore_steps=round(trial.explore_fraction * total),
        warmup_steps=int(record.spec.recipe.get("warmup_steps", 0)),
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
