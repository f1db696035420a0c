"""One run's LR and validation curve, above one another over the same steps."""

from typing import Any

from knee_tune.schedules import Schedule
from knee_tune.specs.records import RunRecord

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
    turns = {step for end in ends for step in (end, end + 1) if 1 <= step <= total}
    return sorted({*range(1, total, max(1, total // POINTS)), *turns, total})


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
