"""The consoles of all commands: what they print steers no terminal."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from knee_tune.cli.flags import as_typed
from knee_tune.errors import printable


class PlainConsole(Console):
    """Takes no order from what it prints: no markup unless asked for, and nothing that steers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string passes here, in cells of tables too."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """And here every text that has styles already."""
        if isinstance(renderable, Text) and not renderable.plain.isprintable():
            renderable = _printable(renderable)
        return super().render(renderable, options)


def _printable(text: Text) -> Text:
    edges = {edge for span in text.spans for edge in (span.start, span.end)}
    pieces = text.divide(sorted(edge for edge in edges if 0 < edge < len(text)))
    for piece in pieces:  # of one style each
        piece.plain = printable(piece.plain)
    return text.blank_copy().join(pieces)


class ConsoleLines:
    """Lines of the library, one per event, without wrapping."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str) -> None:
        """Print it."""
        self._console.print(as_typed(text), highlight=False, markup=False, soft_wrap=True)


def open_in_browser(path: Path) -> None:
    """Open a file in the browser there is; a line on standard error if there is none."""
    import webbrowser

    if not webbrowser.open(path.absolute().as_uri()):
        typer.echo("--open: no browser was found; open the file yourself", err=True)
