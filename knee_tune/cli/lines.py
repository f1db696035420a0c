"""Plain lines, for commands that need no table while they work."""

from pathlib import Path

import typer
from rich.console import Console


class ConsoleLines:
    """One line per event, as it is, without wrapping."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str) -> None:
        """Print it."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def open_in_browser(path: Path) -> None:
    """Open a file in the browser there is; a line on standard error if there is none."""
    import webbrowser

    if not webbrowser.open(path.absolute().as_uri()):
        typer.echo("--open: no browser was found; open the file yourself", err=True)
