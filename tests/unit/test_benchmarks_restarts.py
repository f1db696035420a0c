"""The benchmarks go on where something that one of them needs is not installed."""

import pytest

from benchmarks import restarts


def test_without_postgresql_the_drill_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.postgresql.shutil.which", lambda _: None)
    monkeypatch.setattr("benchmarks.postgresql.Path.glob", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["restarts"])
    restarts.main()
    assert "PostgreSQL is not installed" in capsys.readouterr().out
