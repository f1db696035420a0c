"""Plain lines, for commands that need no table while they work."""

from rich.console import Console


class ConsoleLines:
    """One line per event, as it is, without wrapping."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str) -> None:
        """Print it."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
