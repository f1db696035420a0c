"""What an error says in one line."""

import pytest

from knee_tune.errors import LONGEST, first_line, one_line


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


def test_a_refusal_is_one_line_whatever_people_typed() -> None:
    assert one_line("--set a=1: no such field") == "--set a=1: no such field"
    said = one_line(f"--set {'x' * 100_000}=1\r\n: no such field; did you mean 'y'?")
    assert len(said) <= LONGEST
    assert said.startswith("--set xxx")
    assert said.endswith("=1 : no such field; did you mean 'y'?")
