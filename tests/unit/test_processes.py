"""Whether a process that somebody noted still lives, also where pids and clocks mislead."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from knee_tune.runs import locks
from knee_tune.runs.locks import _described, lives, process_id


@pytest.fixture
def another() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A system without /proc, as macOS is."""
    monkeypatch.setattr(locks, "PROC", tmp_path_factory.mktemp("proc"))
    monkeypatch.setattr(locks, "_described", locks._described.__wrapped__)
    monkeypatch.setattr(locks, "_boot", locks._boot.__wrapped__)


def sysctl(monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    def run(command: tuple[str, ...], **_: Any) -> "subprocess.CompletedProcess[str]":
        assert command == ("sysctl", "-n", "kern.bootsessionuuid")
        if said is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_process_lives_until_it_is_killed(another: "subprocess.Popen[bytes]") -> None:
    noted = _described(another.pid)
    assert lives(process_id())
    assert lives(noted)
    another.kill()
    while psutil.Process(another.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert lives(noted) is False  # before its parent has looked
    another.wait()
    assert lives(noted) is False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_change_of_the_clock_moves_the_start_of_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted = process_id()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: noted["started"] + 3600)
    assert lives(noted)
    assert process_id() == noted


def test_a_pid_that_another_process_got_is_dead() -> None:
    assert lives({**process_id(), "ticks": 0, "started": 0.0}) is False


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"namespace": 1}])
def test_of_another_machine_container_or_boot_nothing_is_known(changes: dict[str, Any]) -> None:
    """Containers of one image often have one host name, and their first process has pid 1."""
    gone = {**process_id(), "ticks": 0}
    assert lives(gone) is False
    assert lives({**gone, **changes}) is None


def test_what_old_versions_noted_says_too_little() -> None:
    noted = process_id()
    old = {name: noted[name] for name in ("host", "pid", "started")}
    assert lives(old) is None


@pytest.mark.usefixtures("nowhere")
def test_without_proc_the_start_time_tells_processes_of_one_boot_apart(
    monkeypatch: pytest.MonkeyPatch, another: "subprocess.Popen[bytes]"
) -> None:
    sysctl(monkeypatch, "6E21-B7\n")
    noted = _described(another.pid)
    assert (noted["boot"], noted["namespace"], noted["ticks"]) == ("6E21-B7", None, None)
    assert lives(noted)
    assert lives({**noted, "started": noted["started"] - 60}) is False
    assert lives({**noted, "boot": "another"}) is None
    another.kill()
    another.wait()
    assert lives(noted) is False


@pytest.mark.usefixtures("nowhere")
def test_where_boots_have_no_name_the_heartbeat_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    sysctl(monkeypatch, None)
    assert lives(process_id()) is None
