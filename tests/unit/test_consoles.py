"""What comes from data, ranks and files is text: no terminal or page takes an order from it."""

import io
import json
import sys

import pytest
from rich.table import Table
from rich.text import Text

from knee_tune.cli import main
from knee_tune.cli.console import ConsoleLines, PlainConsole
from knee_tune.cli.summary import fate
from knee_tune.commands.report import text_of
from knee_tune.report.document import Report, Section, as_html, as_markdown
from knee_tune.workers.protocol import Done, Failure, Line

NASTY = "\x1b[2J[bold]x[/] [/] :smile: \u202eevil\x07 <b>|"
SEEN = "[bold]x[/] [/] :smile: evil <b>|"


def test_a_console_shows_text_as_it_is_and_steers_nothing() -> None:
    screen = io.StringIO()
    console = PlainConsole(file=screen, width=200)
    console.print(NASTY)
    ConsoleLines(console).line(NASTY)
    table = Table(NASTY)
    table.add_row(NASTY)
    table.add_row(fate("failed", NASTY))
    table.add_row(Text.assemble((NASTY, "bold"), "."))
    console.print(table)
    console.print(Text.assemble((NASTY, "bold"), NASTY, ("\u202e", "red")))
    assert screen.getvalue().count(SEEN) == 8
    assert not set(screen.getvalue()) & set("\x1b\x07\u202e")


def test_lines_of_ours_name_flags_and_texts_of_others_stay() -> None:
    screen = io.StringIO()
    console = PlainConsole(file=screen, width=200)
    ConsoleLines(console).line("`slots` 9, `amp=False` and `nothing of ours`")
    console.print("my study of `slots`")
    assert screen.getvalue().splitlines() == [
        "--concurrency 9, --no-amp and `nothing of ours`",
        "my study of `slots`",
    ]


def test_a_text_keeps_its_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = io.StringIO()
    console = PlainConsole(file=screen, force_terminal=True, color_system="standard")
    console.print(Text.assemble(("a\x1b[2J", "bold"), "\u202eb\n", ("c", "red"), style="italic"))
    assert screen.getvalue() == "\x1b[1;3ma\x1b[0m\x1b[3mb\x1b[0m\n\x1b[3;31mc\x1b[0m\n"


def test_what_ranks_say_is_one_safe_line_from_there_on() -> None:
    said = f"rank 1: {NASTY}\n" + "x" * 10_000
    for shown in (
        Line(text=said).text,
        Failure(kind="exception", rank=1, message=said).message,
        Done(state="diverged", reason=said).reason,
    ):
        assert shown.startswith(f"rank 1: {SEEN}")
        assert shown.isprintable()
        assert len(shown) <= 500


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_a_character_shows_its_number(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setattr(sys, "argv", ["knee-tune", "run", "--study", "漢\u202e字\x1b[31m.yaml"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    PlainConsole(file=streams[0]).print("漢字 ±")
    out, err = (stream.detach() for stream in streams)
    assert isinstance(out, io.BytesIO)
    assert isinstance(err, io.BytesIO)
    assert b"\\u6f22" in out.getvalue()
    assert b".yaml: no such file" in err.getvalue()
    assert b"\x1b" not in err.getvalue()


def test_pages_escape_what_they_show() -> None:
    section = Section(key="x", title=NASTY, words=(NASTY,))
    report = Report(
        study="s",
        task="t",
        preset="p",
        description=NASTY,
        written="2026",
        metric=NASTY,
        direction="maximize",
        environment={},
        replay=(),
        left_out=(NASTY,),
        tiles=(),
        sections=(section,),
        figures={},
    )
    page, text = as_html(report), as_markdown(report)
    printed = text_of(report, "json")
    assert json.loads(printed)["description"] == NASTY
    for shown in (page, text, printed):
        assert not set(shown) & set("\x1b\x07\u202e")
    for shown in (page, text):
        assert "<b>" not in shown.replace("<b>Knee", "")
    assert r"\[bold\]x\[/\]" in text
    assert r"\|" in text
