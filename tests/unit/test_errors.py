"""What an error says in one line."""

import pytest

from knee_tune.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "no"),
        (ValueError("\n  what is wrong\n  and much more"), "what is wrong"),
        (OSError("no answer\r\nfrom there"), "no answer"),
        (AssertionError(), "AssertionError"),
        (KeyboardInterrupt(" \n"), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_says_something(error: BaseException, line: str) -> None:
    assert first_line(error) == line
