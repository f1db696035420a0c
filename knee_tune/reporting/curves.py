"""One run's LR and validation curve, above one another over the same steps."""

from collections.abc import Callable
from typing import Any

from knee_tune.specs.records import RunRecord

POINTS = 400
"""LR values drawn; the knee itself is always drawn exactly by its neighbours."""


def curves_figure(
    record: RunRecord, *, title: str, total_steps: int, lr: Callable[[int], float]
) -> dict[str, Any]:
    """A plotly figure (as a dict) with the LR by step and every metric of the run's curve."""
    steps = sorted({*range(1, total_steps, max(1, total_steps // POINTS)), total_steps})
    lines = [_line("LR", steps, [lr(step) for step in steps], axis="y2", dash="dot")]
    names = sorted({name for evaluation in record.curve for name in evaluation.metrics})
    lines += [
        _line(
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


def _line(
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
