"""What an error says in one line, and what of a text from elsewhere may be shown."""

import pytest

from knee_tune.errors import LONGEST, first_line, one_line, printable


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "no"),
        (ValueError("\n  what is wrong\n  and much more"), "what is wrong"),
        (OSError("no answer\r\nfrom there"), "no answer"),
        (ValueError("\x1b[0m\nwhat is wrong"), "what is wrong"),
        (AssertionError(), "AssertionError"),
        (KeyboardInterrupt(" \n"), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_says_something(error: BaseException, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c\x1b(Bd", "abcd"),
        ("\x1b]52;c;never ended", ""),
        ("\x9b31mred\x07\x08\x7f\x00", "31mred"),
        ("file\u202egpj.exe\u2066\u200f\ufeff", "filegpj.exe"),
        ("a\tb\rc\x0bd\u2028e", "a b c d e"),
        ("two\nlines", "two\nlines"),
        ("\udcff", "?"),
        *(
            (same, same)
            for same in ("grüße, 漢字", "👩\u200d💻", "می\u200cخواهم", "[bold] :smile:")
        ),
    ],
)
def test_a_text_from_elsewhere_steers_no_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_line_is_one_line_and_cut_in_the_middle() -> None:
    assert one_line("  a\n\n b ") == "a b"
    long = one_line("what is wrong " + "x" * 10_000 + " what to do")
    assert len(long) == LONGEST
    assert long.startswith("what is wrong xx")
    assert " ... " in long
    assert long.endswith("xx what to do")
