"""The curve of a LR range test (the paper's figure 4), and the page it stands on."""

from collections.abc import Sequence
from math import log10
from typing import Any

from knee_tune.analysis.range_curve import RangeReading, smoothed
from knee_tune.reporting.figure_parts import ACCENT, BLUE, GREY, axis, figure


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


def as_page(drawn: dict[str, Any]) -> str:
    """One HTML file that needs nothing else; some 5 MB."""
    import plotly.io  # slow

    return str(plotly.io.to_html(drawn, include_plotlyjs=True, full_html=True))


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
