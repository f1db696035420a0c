"""What figures share: colours that everybody can tell apart, axes, error bars, far-out values.

A figure is a dict as plotly.js takes it. Nothing here imports plotly.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from knee_tune.config.recipe import Direction
from knee_tune.records.shown import number
from knee_tune.records.values import Estimate
from knee_tune.stats.surface import fence_of

BLUE, ORANGE, GREEN, GREY = "#2f81c7", "#d98600", "#12977a", "#8a8f98"
"""After Okabe and Ito: told apart with any colour vision, legible on white and on black."""

ACCENT = "#d1495b"
"""Marks the recommended setting, and nothing else."""

SCALE = "Cividis"
"""Of heat maps: its lightness rises evenly, with any colour vision and in grey."""


def figure(
    traces: list[dict[str, Any]],
    *,
    x: dict[str, Any],
    y: dict[str, Any],
    height: int = 420,
    **layout: Any,
) -> dict[str, Any]:
    """A figure with a legend above it and room for its labels."""
    return {
        "data": traces,
        "layout": {
            "template": "plotly_white",
            "xaxis": {"automargin": True, **x},
            "yaxis": {"automargin": True, **y},
            "height": height,
            "margin": {"l": 60, "r": 24, "t": 48, "b": 56},
            "legend": {
                "orientation": "h",
                "yanchor": "bottom",
                "y": 1.02,
                "x": 0,
                "traceorder": "normal",
            },
            "hoverlabel": {"align": "left"},
            **layout,
        },
    }


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """One axis with its title."""
    return {"title": {"text": title, "standoff": 14}, **settings}


def subplot(index: int) -> str:
    """What plotly appends to the names of a panel's axes: it counts from 1 and omits the first."""
    return str(index + 1) if index else ""


def bars(
    estimates: Sequence[Estimate | None], *, scale: float = 1.0, colour: str = ""
) -> dict[str, Any]:
    """Intervals as error bars, unlike in both directions; none where there is no interval."""
    above: list[float | None] = []
    below: list[float | None] = []
    for each in estimates:
        if each is None or each.low is None or each.high is None:
            above.append(None)
            below.append(None)
        else:  # the interval of a resampled argmax may lie beside the argmax itself
            above.append(max(0.0, scale * (each.high - each.value)))
            below.append(max(0.0, scale * (each.value - each.low)))
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.4,
        "width": 3,
        **({"color": colour} if colour else {}),
        "visible": any(each is not None for each in above),
    }


def ramp(count: int) -> list[str]:
    """``count`` colours from blue to yellow, dark enough for thin lines on white."""
    ends = [(38, 84, 150), (60, 140, 150), (110, 165, 90), (215, 150, 30)]
    colours = []
    for index in range(count):
        at = index / max(1, count - 1) * (len(ends) - 1)
        lower = min(int(at), len(ends) - 2)
        mixed = (
            round(low + (high - low) * (at - lower))
            for low, high in zip(ends[lower], ends[lower + 1], strict=True)
        )
        colours.append(f"rgb({','.join(map(str, mixed))})")
    return colours


Limits = tuple[float, float]
"""The lowest and the highest value that are drawn where they are."""

DOT, FAR = "circle", 12
"""A mark of a value, and the size of one that is far out."""

ROOM = 0.06
"""Of an axis, beyond its limits."""


def limits_of(values: Iterable[float | None], direction: Direction | None = None) -> Limits:
    """From the lowest to the highest value, but at most to the fence of far-out ones.

    A metric with a ``direction`` has a fence on its worse side; one without, on both sides.
    ValueError without a value.
    """
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    if direction != "minimize" and (fence := fence_of(known, "maximize")) is not None:
        low = fence
    if direction != "maximize" and (fence := fence_of(known, "minimize")) is not None:
        high = fence
    return low, high


def axis_range(limits: Limits) -> list[float]:
    """The limits with some room."""
    low, high = limits
    room = ROOM * (high - low) or 1.0
    return [low - room, high + room]


def marks(
    values: Sequence[float | None], limits: Limits, *, along: str = "y", size: int = 6
) -> dict[str, Any]:
    """Values as they are drawn: dots, and one beyond the limits is a triangle at the edge.

    Their own numbers are the trace's ``customdata``, for labels.
    """
    low, high = limits
    above, below = {"y": ("up", "down"), "x": ("right", "left")}[along]
    drawn, symbols = list[float | None](), list[str]()
    for value in values:
        drawn.append(None if value is None else min(max(value, low), high))
        far_out = value is not None and not low <= value <= high
        side = above if value is not None and value > high else below
        symbols.append(f"triangle-{side}" if far_out else DOT)
    return {
        along: drawn,
        "customdata": list(values),
        "marker": {"symbol": symbols, "size": [size if each == DOT else FAR for each in symbols]}
        if set(symbols) != {DOT}
        else {"symbol": DOT, "size": size},
    }


def within(values: Sequence[float | None], limits: Limits) -> list[float | None]:
    """None for every value that is beyond the limits: it has no place for error bars."""
    low, high = limits
    return [value if value is not None and low <= value <= high else None for value in values]


def far_out_words(values: Iterable[float | None], limits: Limits) -> str:
    """What a figure moved to its edge, as a sentence; empty if nothing."""
    low, high = limits
    beyond = sorted(
        value
        for value in values
        if value is not None and math.isfinite(value) and not low <= value <= high
    )
    if not beyond:
        return ""
    ends = number(beyond[0]) if len(beyond) == 1 else f"{number(beyond[0])} to {number(beyond[-1])}"
    one = len(beyond) == 1
    return (
        f"{len(beyond)} far-out value{'' if one else 's'} ({ends}) {'is' if one else 'are'} drawn "
        "as a triangle at the edge of the figure; tables have the number"
        f"{'' if one else 's'} as measured."
    )
