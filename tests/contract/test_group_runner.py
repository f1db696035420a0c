"""What every group runner promises: the outcome, the root cause, and nobody left behind."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from knee_tune.errors import UserError
from knee_tune.plans.plan import DescribePlan, Placement, Plan
from knee_tune.workers import supervisor
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.protocol import (
    Callbacks,
    Decision,
    Done,
    Failure,
    GroupRunner,
    Outcome,
    Report,
)
from knee_tune.workers.torchrun import TorchrunRunner
from tests.waiting import awaited, main_thread_is_in
from tests.warm import cold

ENTRY = "tests.contract.jobs:job"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _cold() -> Iterator[None]:
    """Runners start what their ranks are forked from as they do outside tests."""
    with cold():
        yield


@pytest.fixture(scope="module")
def forkserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkserverRunner]:
    """Warm: what it has to import is in no test's time."""
    with contextlib.closing(ForkserverRunner(ENTRY, preload=["tests.contract.jobs"])) as runner:
        done(run(runner, plan_in(tmp_path_factory.mktemp("warm"), world_size=1)))
        yield runner


@pytest.fixture
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> GroupRunner:
    """The runner that the test's parameter names.

    The forkserver is the same one all along, whatever its ranks did.
    """
    match request.param:
        case "torchrun":
            return TorchrunRunner(ENTRY)
        case "torchrun on two nodes":
            srun = tmp_path / "srun.py"
            srun.write_text(
                "import subprocess, sys\n"
                "nodes = [subprocess.Popen(sys.argv[1:]) for _ in range(2)]\n"
                "sys.exit(max(abs(node.wait()) for node in nodes))\n"
            )
            launcher = (sys.executable, str(srun), "torchrun")
            return TorchrunRunner(ENTRY, launcher, nnodes=2, address="localhost")
        case _:
            warm: ForkserverRunner = request.getfixturevalue("forkserver")
            return warm


PlanFor = Callable[..., DescribePlan]


def plan_in(
    folder: Path, *, world_size: int = 2, stall_timeout: float = 60.0, **recipe: Any
) -> DescribePlan:
    return DescribePlan(
        task="none",
        recipe=recipe,
        seed=0,
        data_dir=folder,
        placement=Placement(world_size=world_size, stall_timeout=stall_timeout),
        log_dir=folder / "logs",
    )


@pytest.fixture
def plan(tmp_path: Path) -> PlanFor:
    return partial(plan_in, tmp_path)


@pytest.fixture(autouse=True)
def no_survivors() -> Iterator[None]:
    """Every process that a test starts is gone after it, but for the warm process itself."""
    before = _family()
    yield
    awaited(lambda: _family() - before <= _warm_processes())  # a moment after their ends are told


def _family() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _warm_processes() -> set[psutil.Process]:
    """Those that have their name already: a new process is for a moment a copy of this one."""
    found = set()
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just died
            if "warm_process" in " ".join(process.cmdline()):
                found.add(process)
    return found


def go_on(_: Report) -> Decision:
    return Decision(stop=False)


def run(
    runner: GroupRunner,
    plan: Plan,
    on_report: Callable[[Report], Decision] = go_on,
    on_line: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    return runner.run(
        plan, Callbacks(on_report=on_report, on_line=on_line, on_progress=on_progress)
    )


def done(outcome: Outcome) -> Done:
    assert isinstance(outcome, Done), outcome
    return outcome


def failure(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


# Both runners


@pytest.mark.parametrize("runner", ["forkserver", "torchrun on two nodes"], indirect=True)
def test_both_ranks_report_and_stop_at_the_step_of_the_decision(
    runner: GroupRunner, plan: PlanFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    reports: list[Report] = []
    steps: list[int] = []

    def stop_at_4(report: Report) -> Decision:
        reports.append(report)
        return Decision(stop=report.step == 4)

    order = plan()
    outcome = done(run(runner, order, stop_at_4, on_progress=steps.append))

    assert (outcome.state, outcome.step, outcome.result["ranks"]) == ("stopped", 4, [4, 4])
    assert [report.step for report in reports] == [2, 4]
    assert [report.metrics["total"] for report in reports] == [2 * (1 + 2), 4 * (1 + 2)]
    assert steps[0] == 1
    assert list(scratch.iterdir()) == []
    logs = {path.name for path in order.log_dir.iterdir()} - {"torchrun.log"}
    assert logs == {"rank-0.log", "rank-1.log"}


@pytest.mark.parametrize("runner", ["forkserver", "torchrun"], indirect=True)
def test_sigkill_of_one_rank_is_named_as_the_cause(runner: GroupRunner, plan: PlanFor) -> None:
    outcome = failure(run(runner, plan(what="kill", rank=1)))
    assert (outcome.kind, outcome.rank) == ("signal", 1)
    assert outcome.message.startswith("rank 1 was killed by SIGKILL")


@pytest.mark.parametrize("runner", ["forkserver", "torchrun"], indirect=True)
def test_on_one_machine_nothing_listens_beyond_the_loopback(
    runner: GroupRunner, plan: PlanFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A cluster's profile, say, which is right for trials on several machines only.
    beyond = next((name for _, name in socket.if_nameindex() if name != "lo"), "eth0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", beyond)
    listening: set[str] = set()

    def look(report: Report) -> Decision:
        for process in [psutil.Process(), *_family()]:
            connections = process.net_connections(kind="inet")
            listening.update(each.laddr.ip for each in connections if each.status == "LISTEN")
        return Decision(stop=False)

    assert done(run(runner, plan(), look)).state == "complete"
    assert listening == {"127.0.0.1"}  # of Gloo


# What does not depend on how ranks are started: with the quick runner


def test_a_finished_group_has_used_one_thread_per_rank(
    forkserver: ForkserverRunner, plan: PlanFor
) -> None:
    outcome = done(run(forkserver, plan()))
    assert (outcome.state, outcome.result["total"]) == ("complete", 6 * (1 + 2))
    assert len(set(outcome.result["pids"])) == 2
    assert outcome.result["threads"] == 1


def test_a_group_of_one_needs_no_peers(forkserver: ForkserverRunner, plan: PlanFor) -> None:
    outcome = done(run(forkserver, plan(world_size=1)))
    assert (outcome.state, outcome.result["total"]) == ("complete", 6)


def test_a_group_sees_only_its_own_devices(forkserver: ForkserverRunner, plan: PlanFor) -> None:
    order = plan(world_size=1)
    placement = order.placement.model_copy(update={"visible_devices": "3,5"})
    outcome = done(run(forkserver, order.model_copy(update={"placement": placement})))
    assert outcome.result["visible_devices"] == "3,5"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("exception", "exception", "rank {}: ValueError: no such luck"),
        ("user error", "user_error", "recipe.data=x: no such data; prepare it"),
        ("sys.exit", "exception", "rank {}: SystemExit: enough"),
        ("exit", "exit", "rank {} exited with code 3 before its job was done"),
        ("exit 0", "exit", "rank {} exited with code 0 before its job was done"),
        ("kill", "signal", "rank {} was killed by SIGKILL (signal 9)"),
        ("cuda out of memory", "out_of_memory", "rank {}: OutOfMemoryError: CUDA out of memory"),
        ("memory error", "out_of_memory", "rank {}: MemoryError"),
        ("too large a tensor", "out_of_memory", "rank {}: RuntimeError: "),
        ("child", "exit", "rank {} exited with code 3 before its job was done"),
    ],
)
def test_the_root_cause_comes_back_without_the_watchdog(
    forkserver: ForkserverRunner, plan: PlanFor, what: str, kind: str, message: str, rank: int
) -> None:
    outcome = failure(run(forkserver, plan(what=what, rank=rank)))
    assert (outcome.kind, outcome.rank) == (kind, rank)  # not "stalled"
    assert outcome.message.startswith(message.format(rank))
    assert ("jobs.py" in outcome.traceback) == (
        kind in {"user_error", "exception", "out_of_memory"}
    )


@pytest.mark.parametrize(("what", "rank"), [("hang", 0), ("hang", 1), ("freeze", 1)])
def test_a_hang_is_blamed_on_the_rank_that_hangs(
    forkserver: ForkserverRunner, plan: PlanFor, what: str, rank: int
) -> None:
    outcome = failure(run(forkserver, plan(what=what, rank=rank, stall_timeout=2.0)))
    assert (outcome.kind, outcome.rank) == ("stalled", rank)
    assert f"rank {rank} gave no sign of life for" in outcome.message
    if what == "hang":
        assert "after step 2" in outcome.message
        assert "time.sleep(600)" in outcome.traceback


def test_a_process_that_is_stopped_is_told_from_one_that_takes_its_time(
    forkserver: ForkserverRunner, plan: PlanFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the stall time-out, though every peer waits for it in a collective."""
    monkeypatch.setattr(supervisor, "_BEATS", 7.0)
    outcome = failure(run(forkserver, plan(what="freeze", rank=1, stall_timeout=600.0)))
    assert (outcome.kind, outcome.rank) == ("lost", 1)
    assert ": it is stopped" in outcome.message  # of one far away it is not certain


def test_a_slow_driver_is_no_stall(forkserver: ForkserverRunner, plan: PlanFor) -> None:
    def slow(_: Report) -> Decision:
        time.sleep(3)
        return Decision(stop=False)

    assert done(run(forkserver, plan(stall_timeout=2.0, steps=3), slow)).state == "complete"


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_an_error_of_the_driver_ends_the_group_and_propagates(
    forkserver: ForkserverRunner, plan: PlanFor, error: type[BaseException]
) -> None:
    def broken(_: Report) -> Decision:
        raise error("in the driver")

    with pytest.raises(error, match="in the driver"):
        run(forkserver, plan(), broken)
    assert done(run(forkserver, plan())).state == "complete"


def test_a_module_that_cannot_be_preloaded_stops_nothing(plan: PlanFor) -> None:
    runner = ForkserverRunner("tests.contract.jobs:job", preload=["no_such_library.task"])
    try:
        assert done(run(runner, plan())).state == "complete"
    finally:
        runner.close()


def test_ctrl_c_does_not_reach_the_ranks(forkserver: ForkserverRunner, plan: PlanFor) -> None:
    assert done(run(forkserver, plan(what="interrupt"))).state == "complete"


def test_what_ranks_say_reaches_people_and_what_they_print_the_log(
    forkserver: ForkserverRunner, plan: PlanFor
) -> None:
    lines: list[str] = []
    order = plan(what="talk")
    run(forkserver, order, on_line=lines.append)
    assert lines[0] == "for the people"
    assert "careful" in lines[1]
    assert lines[2:] == ["warning: watch out"]
    log = (order.log_dir / "rank-0.log").read_text()
    assert "for the log" in log
    assert "watch out" in log
    run(forkserver, order)
    assert (order.log_dir / "rank-0.log").read_text().count("for the log") == 2
    assert (order.log_dir / "rank-1.log").exists()


def test_what_ranks_gather_is_never_run(forkserver: ForkserverRunner, plan: PlanFor) -> None:
    order = plan(gather=1)
    outcome = failure(run(forkserver, order))
    assert "builtins.print: ranks gather numbers, texts, paths and containers" in outcome.message
    assert "I ran" not in (order.log_dir / "rank-0.log").read_text()


def test_two_threads_of_one_driver_run_two_groups_at_once(
    forkserver: ForkserverRunner, plan: PlanFor
) -> None:
    both_inside = threading.Barrier(2, timeout=100)  # one may be started cold

    def wait_for_the_other(report: Report) -> Decision:
        if report.step == 2:
            both_inside.wait()
        return Decision(stop=False)

    with ThreadPoolExecutor(2) as threads:
        good = threads.submit(run, forkserver, plan(), wait_for_the_other)
        bad = threads.submit(run, forkserver, plan(what="kill", rank=0), wait_for_the_other)
        assert done(good.result()).state == "complete"
        assert failure(bad.result()).kind == "signal"


def test_a_warm_process_that_dies_is_replaced_and_leaves_nothing_behind(
    plan: PlanFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = _warm_processes()
    with contextlib.closing(
        ForkserverRunner("no_such_module:job", preload=["no_such_module"])
    ) as runner:
        (warm,) = awaited(lambda: _warm_processes() - before)
        warm.suspend()  # it will read no order

        def kill_once_it_is_asked() -> None:
            awaited(lambda: main_thread_is_in("supervisor.py", "_listen"))
            warm.kill()

        with ThreadPoolExecutor(1) as killer:
            killed = killer.submit(kill_once_it_is_asked)
            assert failure(run(runner, plan())).kind == "launch"
            killed.result()

        outcome = failure(run(runner, plan()))
        assert outcome.kind == "exception"
        assert "No module named 'no_such_module'" in outcome.message
        assert len(list(tmp_path.glob("knee-tune-*"))) == 1
    assert list(tmp_path.glob("knee-tune-*")) == []
    awaited(lambda: _warm_processes() == before)


# A driver as a program of its own: with a __main__ that must not be imported again

DRIVER = """
import sys
from pathlib import Path
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.torchrun import TorchrunRunner
from knee_tune.workers.protocol import Callbacks, Decision
from knee_tune.plans.plan import DescribePlan, Placement

def on_report(report):
    print("report", report.step, flush=True)
    return Decision(stop=False)

runner = {runner}("tests.contract.jobs:job")
plan = DescribePlan(task="none", recipe={recipe}, seed=0, data_dir=Path("{folder}"),
                    placement=Placement(world_size=2), log_dir=Path("{folder}"))
outcome = runner.run(plan, Callbacks(on_report=on_report, on_line=print))
print(outcome.model_dump_json(), flush=True)
runner.close()
"""


def _driver(folder: Path, runner: str, **recipe: Any) -> "subprocess.Popen[str]":
    script = folder / "driver.py"  # no `if __name__ == "__main__"` on purpose
    script.write_text(DRIVER.format(folder=folder, runner=runner, recipe=recipe))
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("runner", ["ForkserverRunner", "TorchrunRunner"])
def test_a_plain_script_can_be_driver_and_leaves_no_orphan_when_killed(
    tmp_path: Path, runner: str
) -> None:
    driver = _driver(tmp_path, runner, what="hang", rank=1)
    with driver:
        assert driver.stdout
        assert driver.stdout.readline() == "report 2\n"
        orphans = psutil.Process(driver.pid).children(recursive=True)
        assert len(orphans) >= 3
        driver.kill()
    _, alive = psutil.wait_procs(orphans, timeout=15)
    assert alive == []


def test_a_warm_process_ends_with_its_driver_also_amid_its_imports(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)\n"
    )
    script = (
        "import sys\n"
        "from knee_tune.workers.forkserver import ForkserverRunner\n"
        f"runner = ForkserverRunner('{ENTRY}', preload=['endless'])\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
    ) as driver:
        awaited((tmp_path / "begun").exists)
        (warm,) = psutil.Process(driver.pid).children()
        driver.kill()
    assert not psutil.wait_procs([warm], timeout=20)[1]
    assert not list(tmp_path.glob("knee-tune-*"))


# What is torchrun's own


def test_the_ranks_must_fit_the_nodes(plan: PlanFor) -> None:
    with pytest.raises(UserError, match=r"world_size 3 .* 2 nodes"):
        run(TorchrunRunner(ENTRY, nnodes=2, address="localhost"), plan(world_size=3))


def test_a_launcher_that_fails_tells_why(tmp_path: Path, plan: PlanFor) -> None:
    srun = tmp_path / "srun.py"
    srun.write_text("import sys\nsys.exit('srun: no such partition')\n")
    runner = TorchrunRunner(ENTRY, (sys.executable, str(srun), "torchrun"))
    outcome = failure(run(runner, plan()))
    assert (outcome.kind, outcome.message) == ("launch", "torchrun ended with code 1")
    assert "no such partition" in outcome.traceback


@pytest.mark.parametrize(("nnodes", "kind"), [(1, "stalled"), (2, "user_error")])
def test_a_launcher_that_lives_without_its_ranks_is_not_waited_for_again(
    nnodes: int, kind: str, plan: PlanFor
) -> None:
    runner = TorchrunRunner(
        ENTRY,
        ("sh", "-c", "sleep 60", "torchrun"),
        nnodes=nnodes,
        address="127.0.0.1",
        launch_timeout=0.1,
    )
    outcome = failure(run(runner, plan(world_size=2)))
    assert outcome.kind == kind
    assert not outcome.by_machine
    assert outcome.message.startswith("torchrun did not start its ranks in 0.1 s")
    assert ("`address` 127.0.0.1" in outcome.message) == (nnodes == 2)


def test_an_address_must_be_one_that_the_other_machines_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for address in ("192.0.2.1", "0.0.0.0", "no such host", "", "\udcff", "a" * 300):
        with pytest.raises(UserError, match=r"`address` .*; give the one") as caught:
            TorchrunRunner(ENTRY, ("env", "torchrun"), nnodes=2, address=address)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    with pytest.raises(UserError, match="other machines cannot reach 127"):
        TorchrunRunner(ENTRY, ("env", "torchrun"), nnodes=2)


def test_the_launcher_must_be_torchrun() -> None:
    with pytest.raises(UserError, match="'srun torchrun'"):
        TorchrunRunner(ENTRY, ("srun",))
