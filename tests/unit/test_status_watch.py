"""What ``knee-tune status --watch`` shows of trials that run."""

from io import StringIO

import pytest
from rich.console import Console

from knee_tune.cli.console import PlainConsole
from knee_tune.cli.status_watch import Pace, view, watch_status
from knee_tune.errors import UserError
from knee_tune.records.study import TrialRecord
from knee_tune.records.values import Evaluation
from tests.unit.test_records import study, trial


def running(progress: float, number: int = 3, driver: str = "node1 41") -> TrialRecord:
    curve = (Evaluation(step=50, metrics={"valid_ppl": 7.25}),) if progress else ()
    return trial(number, "running", progress=progress, driver=driver, curve=curve, started=1000.0)


def test_a_pace_needs_two_reports() -> None:
    pace = Pace()
    for now, progress in ((0.0, 0.0), (1.0, 0.5), (2.0, 0.5)):
        pace.note(running(progress), now=now)
        assert pace.of(running(progress)) is None
    pace.note(running(0.6), now=3.0)
    pace.note(running(0.9), now=5.0)
    assert pace.of(running(0.9)) == pytest.approx(10)  # 40 of 100 steps in 4 s


def test_it_shows_who_trains_what_how_far_and_what_waits() -> None:
    pace = Pace()
    pace.note(running(0.2), now=0)
    pace.note(running(0.6), now=4)
    record = study(
        trial(0, "complete", 5.0),
        trial(2, "waiting"),
        running(0.6),
        running(0.0, number=4, driver="node2 7"),
    )
    page = StringIO()
    PlainConsole(file=page, width=120).print(view(record, pace, now=1125))
    lines = [line.rstrip() for line in page.getvalue().splitlines()]
    shown = [" ".join(line.split()) for line in lines]
    assert shown[1] == "3 0.4 50% node1 41 2 min 5 s 60% 10.0 7.25"
    assert shown[2] == "4 0.5 50% node2 7 2 min 5 s 0%"
    assert lines[-2] == (
        "knee-toy-1ep: 1 complete, 0 pruned, 0 failed, 1 waiting, 2 running by 2 drivers, "
        "10.0 steps/s"
    )
    assert lines[-1] == "best: seed LR 0.1, explore 50%, valid_ppl 5"


def test_it_goes_on_with_every_new_record_and_needs_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = StringIO()
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(file=page, force_terminal=True, width=100)
    watch_status(terminal, iter([study(running(0.2)), study(running(0.7))]), sleep=lambda _: None)
    assert "20%" in page.getvalue()
    assert "70%" in page.getvalue()
    with pytest.raises(UserError, match="`watch`: needs a terminal"):
        watch_status(Console(file=StringIO()), iter([study(running(0.2))]))
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(UserError, match="`watch`: needs a terminal"):
        watch_status(Console(force_terminal=True), iter([study(running(0.2))]))
