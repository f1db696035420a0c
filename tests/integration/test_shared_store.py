"""Homes that share a store: one takes what another has trained; a broken store costs steps."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

import pytest

from knee_tune.plans.plan import checkpoint_step
from knee_tune.records.values import StepCount
from knee_tune.runs import sharing
from knee_tune.runs.object_store import ObjectStore, StoreError, open_store
from knee_tune.runs.sharing import Sharing, clear, shrink, stored_trunks
from knee_tune.runs.trainer import Trainer
from knee_tune.runs.trunks import TrunkStore
from knee_tune.training.checkpoint import MANIFEST
from tests import waiting
from tests.fake_runner import at
from tests.integration.test_trainer import Asker, done
from tests.pretend_ranks import TOTAL, PretendRanks, knee_plan

TRUNK, RUN = "trunks/digits-0.1", "runs/digits-0.1-50"


class Ranks(PretendRanks):
    """Their checkpoints have checksums, as those of real ranks do."""

    def _save(self, folder: Path, step: int) -> None:
        super()._save(folder, step)
        assert sharing.CHECKPOINT_MANIFEST == MANIFEST
        path = folder / f"step-{step:08d}"
        sums = {"state.pt": sha256((path / "state.pt").read_bytes()).hexdigest()}
        (path / MANIFEST).write_text(dumps({"run": folder.name, "sha256": sums}))


class Home:
    """A home whose runs share a store."""

    def __init__(self, root: Path, store: ObjectStore, *ranks: Any, **options: Any) -> None:
        root.mkdir()
        self.root = root
        self.ranks = Ranks(*ranks)
        self.sharing = Sharing(store, **options)
        trunks = TrunkStore(root / "trunks", limit=1_000_000)
        self.asker = Asker(Trainer(self.ranks, trunks=trunks, sharing=self.sharing))

    def run(self, knee: int) -> StepCount:
        """Train, wait until all is put, and tell what it cost."""
        result = self.asker.ask(knee_plan(self.root, knee=knee))
        self.sharing.close()
        assert done(result).state == "complete"
        return result.steps


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def home(tmp_path: Path, store: ObjectStore) -> Callable[..., Home]:
    """Makes a home of that name."""
    return lambda name, *ranks, **options: Home(tmp_path / name, store, *ranks, **options)


def test_a_run_of_another_home_is_not_trained_again(home: Callable[..., Home]) -> None:
    home("one").run(50)
    other = home("other", at(1, AssertionError("trained again")))
    assert other.run(50) == StepCount(reused=TOTAL, reached=TOTAL)
    weights = other.root / "checkpoints" / "digits-0.1-50" / "weights.safetensors"
    assert weights.read_bytes() == b"weights"
    assert other.asker.lines == []


def test_a_run_starts_from_the_highest_state_of_another_home(
    home: Callable[..., Home], store: ObjectStore
) -> None:
    home("one").run(50)
    other = home("other")
    assert other.run(35) == StepCount(trained=70, reused=30, reached=TOTAL)
    fetched = (other.root / "trunks" / "digits-0.1").glob("step-*")
    assert [checkpoint_step(path) for path in fetched] == [30]  # no more than it needs
    assert other.run(80) == StepCount(trained=50, reused=50, reached=TOTAL)
    assert max(store.names(TRUNK)) == "00000080"


def test_a_damaged_object_is_named_and_trained_again(
    home: Callable[..., Home], store: ObjectStore, tmp_path: Path
) -> None:
    home("one").run(50)
    (part,) = (tmp_path / "store" / TRUNK / "parts").glob("00000050-*/state.pt")
    part.write_bytes(b"t" * 100)
    other = home("other")
    assert other.run(55) == StepCount(trained=60, reused=40, reached=TOTAL)
    (line,) = other.asker.lines
    assert line == f"{part} does not match its checksum: no good, it is trained again"
    assert home("third").run(51) == StepCount(trained=50, reused=50, reached=TOTAL)


def test_a_damaged_checkpoint_of_the_home_is_not_put(
    home: Callable[..., Home], store: ObjectStore
) -> None:
    one = home("one")
    one.run(20)
    store.drop(TRUNK, "00000010")
    (one.root / "trunks" / "digits-0.1" / "step-00000010" / "state.pt").write_bytes(b"?")
    again = Sharing(store)
    again.put_trunk(knee_plan(one.root, knee=20), on_line=pytest.fail)
    again.close()
    assert store.names(TRUNK) == ["00000020"]


def test_a_broken_store_costs_one_line(
    home: Callable[..., Home],
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_: object, **__: object) -> Any:
        raise StoreError("connection refused")

    one = home("one")
    with monkeypatch.context() as patch:
        for call in ("has", "names", "put"):
            patch.setattr(store, call, away)
        assert one.run(50) == StepCount(trained=TOTAL, reached=TOTAL)
    said = f"{store.url}: connection refused; training goes on without it"
    assert one.asker.lines == [said]
    assert "6 checkpoints and records could not be put there" in caplog.text

    one.sharing = Sharing(store)  # the next command
    one.asker.trainer = Trainer(
        one.ranks, trunks=TrunkStore(one.root / "trunks", limit=10_000), sharing=one.sharing
    )
    one.run(50)
    one.run(40)
    assert (store.names(RUN), len(store.names(TRUNK))) == (["finished"], 5)


def test_what_could_not_be_put_is_put_once_the_store_answers(
    home: Callable[..., Home], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, refusals = store.put, iter(range(3))

    def sometimes(*arguments: Any, **options: Any) -> bool:
        if next(refusals, None) is not None:
            raise StoreError("slow down")
        return put(*arguments, **options)

    monkeypatch.setattr(store, "put", sometimes)
    monkeypatch.setattr(sharing, "PAUSE_SECONDS", 0.0)
    one = home("one")
    one.run(50)
    assert one.asker.lines == [f"{store.url}: slow down; training goes on without it"]
    assert (store.names(RUN), len(store.names(TRUNK))) == (["finished"], 5)


def test_a_store_that_hangs_is_given_up(
    home: Callable[..., Home], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(store, "has", lambda *_: over.wait(waiting.SOON))
    monkeypatch.setattr(sharing, "STALLED_SECONDS", 0.0)
    one = home("one")
    assert one.run(50) == StepCount(trained=TOTAL, reached=TOTAL)
    over.set()
    assert one.asker.lines == [f"{store.url}: nothing came for 0 s; training goes on without it"]


def test_drivers_of_one_study_train_a_trunk_once(home: Callable[..., Home]) -> None:
    """The second one waits until the first has left it, and put it."""
    taken, both = threading.Lock(), threading.Barrier(2)

    def claim(name: str) -> AbstractContextManager[object] | None:
        assert name == "trunk-digits-0.1"
        if not taken.acquire(blocking=False):
            return None
        release = ExitStack()
        release.callback(taken.release)
        return release

    def run(name: str, knee: int) -> StepCount:
        driver = home(name, claim=claim)
        both.wait(waiting.SOON)
        return driver.run(knee)

    with ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(run, ("one", "other"), (50, 60)))
    assert sum(each.trained for each in steps) == TOTAL + TOTAL // 2
    assert not taken.locked()


def test_room_is_made_and_trunks_are_cleared(home: Callable[..., Home], store: ObjectStore) -> None:
    home("one").run(50)
    (trunk,) = stored_trunks(store)
    assert (trunk.key, list(trunk.sizes)) == ("digits-0.1", [10, 20, 30, 40, 50])
    assert trunk.note is not None
    assert (trunk.note.task, trunk.note.seed_lr) == ("digits", 0.1)
    assert shrink(store, limit=trunk.size // 2) == 3
    assert len(store.names(TRUNK)) == 2
    assert clear(store, task="iwslt").removed == ()
    assert len(clear(store).removed) == 1
    assert stored_trunks(store) == []
