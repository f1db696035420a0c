"""What figures share: colours that everybody can tell apart, axes, lines."""

from collections.abc import Sequence
from typing import Any

from knee_tune.specs.estimate import Estimate

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


def slice_line(
    fractions: Sequence[float],
    means: Sequence[float | None],
    errors: Sequence[float | None],
    *,
    label: str,
    colour: str,
) -> dict[str, Any]:
    """A metric against the explore fraction at the seed LR ``label``, with standard errors."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "x": [100 * fraction for fraction in fractions],
        "y": means,
        "error_y": {
            "type": "data",
            "array": errors,
            "thickness": 1,
            "width": 2,
            "visible": any(error is not None for error in errors),
        },
        "line": {"color": colour, "width": 2},
        "hovertemplate": f"seed LR {label}, explore %{{x:.4g}}%<br>%{{y:.4g}}<extra></extra>",
    }


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
