"""Ray keeps every promise of a group runner, and its own: placement, waiting, who was lost.

One cluster for all of it: four CPUs on the driver's node. Nodes beside it come and go.
"""

import contextlib
import importlib.util
import inspect
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from knee_tune.errors import UserError
from knee_tune.plans.plan import DescribePlan, Placement, TaskFacts, TaskOrder
from knee_tune.plans.planner import knee_schedule, train_plan
from knee_tune.tasks.registry import task_entry
from knee_tune.training.checkpoint import WEIGHTS
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.protocol import Decision, GroupRunner, Outcome, Report
from knee_tune.workers.ray_runner import RayRunner
from tests.contract import test_group_runner as contract
from tests.contract.test_group_runner import ENTRY, PlanFor, done, failure, plan_in, run
from tests.waiting import awaited
from tests.warm import cold

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="no Ray: pip install 'knee-tune[ray]'"
)


TOKEN = secrets.token_hex(32)

# What the contract asks of a warm runner is asked of the one that this file's fixture makes.
plan = contract.plan
globals().update(
    (name, test)
    for name, test in vars(contract).items()
    if name.startswith("test_") and "forkserver" in inspect.signature(test).parameters
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node, which this process has joined. It listens: not beside others."""
    with pytest.MonkeyPatch.context() as patch:
        # It listens on the network. Ray reads these when it is imported, for the first time here.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        made = Cluster()
        add_node(
            made, num_cpus=4, include_dashboard=False, include_log_monitor=False, no_monitor=True
        )
        yield made
        made.shutdown()


def add_node(cluster: Any, **how: Any) -> Any:
    """A new node; tried again, for on a busy machine Ray's own 15 seconds may be too few."""
    for attempt in range(3):
        try:
            return cluster.add_node(**how)
        except Exception:
            if attempt == 2:
                raise
    return None


@pytest.fixture(scope="module")
def forkserver(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRunner]:
    """The warm runner of the contract: here Ray's."""
    with contextlib.closing(
        RayRunner(ENTRY, preload=["tests.contract.jobs"], cluster=cluster.address)
    ) as runner:
        done(run(runner, plan_in(tmp_path_factory.mktemp("warm"))))
        yield runner


@pytest.fixture
def second_node(cluster: Any) -> Iterator[Any]:
    """A node that joins the cluster for one test, and may be lost in it."""
    node = add_node(cluster, num_cpus=2)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


@pytest.fixture(scope="module", autouse=True)
def _cold() -> Iterator[None]:
    """Runners start what their ranks are forked from as they do outside tests."""
    with cold():
        yield


@pytest.fixture(autouse=True)
def no_rank_survives() -> Iterator[None]:
    """No rank is left of a test; hosts and their warm processes are, for the next one."""
    yield
    awaited(lambda: not ranks())


def ranks() -> list[psutil.Process]:
    """Processes that warm processes have forked."""
    warm = [each for each in psutil.Process().children(recursive=True) if _is_warm(each)]
    return [each for each in warm if _is_warm(each.parent())]


def _is_warm(process: psutil.Process | None) -> bool:
    with contextlib.suppress(psutil.Error):
        return process is not None and "warm_process import main" in " ".join(process.cmdline())
    return False


def hosts() -> list[psutil.Process]:
    """The processes that hold ranks, as the system knows them."""
    return [each for each in psutil.Process().children(recursive=True) if _is_host(each)]


def _is_host(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("ray::Host")
    return False


def test_hosts_stay_warm_and_ranks_are_new(forkserver: RayRunner, plan: PlanFor) -> None:
    before = {each.pid for each in hosts()}
    first, second = (done(run(forkserver, plan())).result["pids"] for _ in range(2))
    assert {each.pid for each in hosts()} == before
    assert not {*first} & {*second}


def test_a_killed_host_is_named_and_the_next_trial_runs(
    forkserver: RayRunner, plan: PlanFor
) -> None:
    def kill_one(_: Report) -> Decision:
        warm = ranks()[0].parent()  # other groups' hosts may be idle beside them
        assert warm is not None
        host = warm.parent()
        assert host is not None
        assert _is_host(host)
        host.kill()
        return Decision(stop=False)

    outcome = failure(run(forkserver, plan(what="hang", steps=4), kill_one))
    assert (outcome.kind, outcome.by_machine) == ("lost", True)
    assert "was lost: its host process on the Ray node" in outcome.message
    assert done(run(forkserver, plan())).state == "complete"


@pytest.mark.timeout(400)  # four groups start cold, and Ray takes a while to miss a node
def test_two_nodes_give_the_bits_of_one_and_the_next_trial_runs_when_one_is_lost(
    cluster: Any, forkserver: RayRunner, second_node: Any, plan: PlanFor, tmp_path: Path
) -> None:
    forkserver.give_back()  # the last trial needs the room of its idle groups

    def lose_it(_: Report) -> Decision:
        cluster.remove_node(second_node, allow_graceful=False)
        return Decision(stop=False)

    with contextlib.closing(RayRunner(ENTRY, strategy="spread", cluster=cluster.address)) as spread:
        with contextlib.closing(ForkserverRunner(ENTRY)) as here:
            assert trained(spread, tmp_path / "spread") == trained(here, tmp_path / "here")
        outcome = failure(run(spread, plan(what="hang"), lose_it))
        assert (outcome.kind, outcome.by_machine) == ("lost", True)
        assert "was lost with its node: the Ray node" in outcome.message
        assert done(run(spread, plan())).state == "complete"


def trained(runner: GroupRunner, folder: Path) -> tuple[Any, bytes]:
    """What a short run of two ranks reports, and the file of its weights."""
    folder.mkdir()
    recipe = task_entry("digits").recipe_type()(epochs=2, model={"hidden": [8]})
    order = TaskOrder(
        task="digits",
        recipe=recipe.model_dump(),
        seed=3,
        data_dir=folder,
        placement=Placement(world_size=2),
        log_dir=folder / "logs",
    )
    facts = TaskFacts.model_validate(done(run(runner, DescribePlan(**dict(order)))).result)
    schedule = knee_schedule(recipe, facts, seed_lr=0.2, explore_fraction=0.5)
    checkpoints = folder / "checkpoints"
    order_of_run = train_plan(order, recipe, facts, schedule=schedule, checkpoint_dir=checkpoints)
    metrics: list[dict[str, float]] = []

    def note(report: Report) -> Decision:
        metrics.append(report.metrics)
        return Decision(stop=False)

    done(run(runner, order_of_run, note))
    return metrics, (checkpoints / WEIGHTS).read_bytes()


def test_a_group_waits_for_room_which_idle_ones_of_another_size_make(
    cluster: Any, forkserver: RayRunner, plan: PlanFor
) -> None:
    """Two ranks of two CPUs each take all there are, while they train and while they are idle."""
    forkserver.give_back()  # another runner's room is not this one's to give up
    lines: list[str] = []
    waits = threading.Event()
    later: Future[Outcome]

    def said(line: str) -> None:
        lines.append(line)
        waits.set()

    def start_another(report: Report) -> Decision:
        nonlocal later
        if report.step == 2:
            later = threads.submit(run, runner, plan(world_size=1), on_line=said)
            waits.wait(60)
        return Decision(stop=False)

    with (
        contextlib.closing(RayRunner(ENTRY, cpus=2, cluster=cluster.address)) as runner,
        ThreadPoolExecutor(1) as threads,
    ):
        assert done(run(runner, plan(), start_another)).state == "complete"
        assert done(later.result()).state == "complete"
    assert lines == ["waiting for room in Ray: 1 x (2 CPU); free: 0 of 4 CPU"]


def test_what_people_get_wrong_is_one_line(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"`address` 192\.0\.2\.77: no address of this machine"):
        RayRunner(ENTRY, cluster=cluster.address, address="192.0.2.77")
