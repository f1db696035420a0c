"""A report as one HTML file that needs nothing else: no network, no server, no other file."""

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from knee_tune.errors import printable
from knee_tune.reporting.document import Report

if TYPE_CHECKING:
    from jinja2 import Template

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def as_html(report: Report) -> str:
    """The page, with the figures and the library that draws them inside; some 5 MB."""
    from plotly.offline import get_plotlyjs  # slow

    return _template().render(
        report=report,
        figures=script_json({name: _undressed(each) for name, each in report.figures.items()}),
        plotly_js=get_plotlyjs() if report.figures else "",
    )


def script_json(value: Any) -> str:
    """JSON that may stand in a ``<script>``: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def _undressed(figure: dict[str, Any]) -> dict[str, Any]:
    """Without plotly's template: the page dresses its figures itself, for light and for dark."""
    layout = {name: value for name, value in figure["layout"].items() if name != "template"}
    return {"data": figure["data"], "layout": layout}


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow

    environment = Environment(
        loader=PackageLoader("knee_tune.reporting", "page"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
