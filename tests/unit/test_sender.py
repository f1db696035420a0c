"""The sender delivers everything once the server takes it, and nobody waits for that."""

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from knee_tune.records.events import (
    Event,
    Recorded,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from knee_tune.records.values import RunEnd
from knee_tune.tracking import sender as sending_module
from knee_tune.tracking.outbox import Outbox, study_folders
from knee_tune.tracking.sender import DeletedError, ForbiddenError, RejectedError, Sender

STUDY = StudyStarted(uid="u", name="s", task="digits", experiment="e")


class Server:
    """Takes events unless told otherwise."""

    def __init__(self) -> None:
        self.taken: list[Event] = []
        self.times: list[int] = []
        self.not_running: set[str | None] = set()
        self.asked: dict[str | None, int] = {}
        self.fail_next = 0
        self.refuse_step: int | None = None
        self.deleted: str | None = None
        self.forbidden: set[str] = set()
        self.broken: set[str] = set()
        self.seconds = 0.0
        self.hang = threading.Event()
        self.hang.set()

    def apply(self, study: StudyStarted, events: Sequence[Recorded]) -> None:
        self.hang.wait()
        if self.fail_next:
            self.fail_next -= 1
            raise ConnectionError("nobody there")
        if study.name in self.forbidden:
            raise ForbiddenError("error code 403")
        if study.name in self.broken:
            raise ConnectionError("error code 500")
        time.sleep(self.seconds)
        for recorded in events:
            if getattr(recorded.event, "step", None) == self.refuse_step is not None:
                raise RejectedError("not this one")
            if getattr(recorded.event, "key", None) == self.deleted is not None:
                raise DeletedError("run trial-0 was deleted; to bring it back: mlflow ...")
        self.taken += [recorded.event for recorded in events]
        self.times += [recorded.at for recorded in events]

    def still_running(
        self, study: StudyStarted, began: Mapping[str | None, int]
    ) -> set[str | None]:
        self.asked |= began
        return set(began) - self.not_running - {self.deleted or "none"}


def report(step: int) -> TrialReported:
    return TrialReported(key="trial-0", step=step, lr=0.1)


def started(key: str) -> TrialStarted:
    return TrialStarted(key=key, name=key)


def killed(key: str) -> TrialFinished:
    return TrialFinished(key=key, state=RunEnd.FAILED, reason="the driver was killed")


def dead_driver(folder: Path, *events: Event) -> Outbox:
    """What is left of a driver that was killed before it could deliver anything."""
    dead = Outbox.create(folder, STUDY)
    for event in events:
        time.sleep(0.002)  # every event has a time of its own
        dead.append(event)
    dead.close()
    return dead


def sender(server: Server, outbox: Outbox | None, *folders: Path, local: bool = False) -> Sender:
    return Sender(
        lambda: server, outbox=outbox, folders=folders, where="there", local=local, interval=0.01
    )


def test_an_outage_delays_but_loses_nothing(tmp_path: Path) -> None:
    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    server.fail_next = 3
    server.hang.clear()
    sending = sender(server, outbox)
    for step in range(50):
        outbox.append(report(step))

    assert sending.flush(timeout=0) > 0
    server.hang.set()
    while sending.flush(timeout=5):
        pass
    assert server.taken == [STUDY, *map(report, range(50))]
    assert sending.close() == 0
    assert not outbox.path.exists()


def test_nothing_is_sent_of_a_home_that_is_gone(tmp_path: Path) -> None:
    server, outbox = Server(), Outbox.create(tmp_path / "box", STUDY)
    gone = threading.Event()
    sending = Sender(
        lambda: server, outbox=outbox, folders=[], where="there", interval=600, gone=gone.is_set
    )
    assert sending.flush(timeout=5) == 0
    shutil.rmtree(tmp_path / "box")
    gone.set()
    outbox.append(report(1))
    sending.wake()
    assert sending.close() == 0  # nor does anybody wait, or is told
    assert server.taken == [STUDY]
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_down_does_not_hold_up_the_end(tmp_path: Path) -> None:
    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    server.fail_next = 10**6
    sending = sender(server, outbox)

    started = time.monotonic()
    assert sending.close(timeout=60) == 1
    assert time.monotonic() - started < 5
    assert outbox.path.exists()


def test_a_hung_server_holds_up_the_end_for_a_bounded_time(tmp_path: Path) -> None:
    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    server.hang.clear()
    sending = sender(server, outbox)
    outbox.append(report(1))

    started = time.monotonic()
    assert sending.close(timeout=0.3) == 2
    assert time.monotonic() - started < 2

    # The call that comes back at last must not touch the files, which may have a new owner.
    server.hang.set()
    revived = Server()
    assert sender(revived, None, outbox.path.parent).close() == 0
    assert revived.taken[:2] == [STUDY, report(1)]


@pytest.mark.parametrize("local", [False, True], ids=["server", "local"])
def test_a_slow_store_has_a_deadline_unless_it_is_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, local: bool
) -> None:
    monkeypatch.setattr(sending_module, "EXIT_PATIENCE", 0.05)
    monkeypatch.setattr(sending_module, "BATCH", 1)
    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    server.seconds = 0.03
    for step in range(9):
        outbox.append(report(step))
    assert (sender(server, outbox, local=local).close() == 0) == local
    assert ("tracking events still go to there" in caplog.text) == local


def test_a_local_store_that_stands_still_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_module, "STANDSTILL", 0.05)
    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    server.hang.clear()
    assert sender(server, outbox, local=True).close() == 1
    server.hang.set()


def test_what_is_about_a_deleted_run_waits_for_its_return_and_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    server.deleted = "trial-0"
    waiting = [report(step) for step in range(3)]
    others: list[Event] = [started("trial-1"), StudyFinished()]
    for event in (*waiting, *others):
        outbox.append(event)
    folder = outbox.path.parent
    assert sender(server, outbox).close() == 0
    assert server.taken == [STUDY, *others]
    assert caplog.text.count("to bring it back") == 1

    dead_driver(tmp_path, started("trial-0"))
    assert sender(server, None, folder).close() == 0  # still deleted: it goes on waiting
    assert server.taken[-1] == StudyFinished(state="INTERRUPTED")  # the killed driver's
    began, *_ = server.times
    back = Server()
    back.not_running = {None}
    assert sender(back, None, folder).close() == 0
    assert back.taken == [STUDY, *waiting, started("trial-0"), killed("trial-0")]
    assert back.times[0] == began  # the study does not begin anew
    assert not list(folder.iterdir())


def test_one_refused_event_does_not_block_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    server.refuse_step = 3
    for step in (*range(6), 3):
        outbox.append(report(step))
    assert sender(server, outbox).close() == 0

    assert server.taken == [STUDY, *(report(step) for step in range(6) if step != 3)]
    assert '"step":3' in (outbox.path.parent / "rejected.log").read_text()
    assert caplog.text.count("refused an event") == 1


def test_leftovers_of_other_studies_go_too_but_hold_up_nothing(tmp_path: Path) -> None:
    other, earlier = STUDY.model_copy(update={"uid": "o", "name": "a"}), Server()
    for study in (other, STUDY):
        left = Outbox.create(tmp_path, study)
        left.append(StudyFinished())
        left.close()

    outbox = Outbox.create(tmp_path, STUDY)
    assert sender(earlier, outbox, *study_folders(tmp_path)).close() == 0
    assert earlier.taken == [STUDY, StudyFinished(), STUDY, other, StudyFinished()]
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("trouble", ["forbidden", "broken"])
def test_what_a_study_is_refused_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    server, names = Server(), ("a", "b", "c")
    setattr(server, trouble, {"a"})
    for name in names:
        Outbox.create(tmp_path, STUDY.model_copy(update={"uid": name, "name": name})).close()
    outbox = Outbox.create(tmp_path, STUDY)
    remaining = sender(server, outbox, *study_folders(tmp_path)).close()
    taken = {event.name for event in server.taken if isinstance(event, StudyStarted)}
    assert taken == {"b", "c", STUDY.name}
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == ["a"]

    if trouble == "forbidden":  # what is lasting is said once
        assert remaining == 0
        assert caplog.text.count("refuses study a (error code 403)") == 1
    allowed = Server()
    assert sender(allowed, None, *study_folders(tmp_path)).close() == 0
    assert isinstance(first := allowed.taken[0], StudyStarted)
    assert first.name == "a"
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_study_that_is_refused_lets_the_leftovers_of_others_go(tmp_path: Path) -> None:
    server = Server()
    server.forbidden = {STUDY.name}
    Outbox.create(tmp_path, STUDY.model_copy(update={"uid": "o", "name": "other"})).close()
    outbox = Outbox.create(tmp_path, STUDY)
    assert sender(server, outbox, *study_folders(tmp_path)).close() == 1
    assert {event.name for event in server.taken if isinstance(event, StudyStarted)} == {"other"}
    assert outbox.path.exists()


def test_what_a_dead_driver_left_open_is_closed(tmp_path: Path) -> None:
    dead = Outbox.create(tmp_path, STUDY)
    for key in ("done", "open"):
        dead.append(TrialStarted(key=key, name=key))
    dead.append(TrialFinished(key="done", state=RunEnd.COMPLETE))
    dead.acknowledge(dead.pending(100))
    dead.append(report(1))
    dead.close()

    server, outbox = Server(), Outbox.create(tmp_path, STUDY)
    assert sender(server, outbox, dead.path.parent).close() == 0
    assert server.taken == [
        report(1),
        TrialFinished(key="open", state=RunEnd.FAILED, reason="the driver was killed"),
        StudyFinished(state="INTERRUPTED"),
        STUDY,
    ]
    assert list(dead.path.parent.iterdir()) == []


def test_what_another_driver_finished_is_not_closed_again(tmp_path: Path) -> None:
    left = (started("taken over"), started("open"))
    dead, server = dead_driver(tmp_path, *left), Server()
    server.not_running = {"taken over", None}
    assert sender(server, None, dead.path.parent).close() == 0
    assert server.taken == [STUDY, *left, killed("open")]


def test_a_run_is_closed_with_the_time_of_the_last_word_on_it(tmp_path: Path) -> None:
    """Whoever takes it up again does so later, even if that is delivered first."""
    dead = dead_driver(tmp_path, started("trial-0"), report(1), started("trial-1"))
    server = Server()
    assert sender(server, None, dead.path.parent).close() == 0

    study, first, last_report, second = server.times[:4]
    assert server.asked == {"trial-0": first, "trial-1": second, None: study}
    assert server.taken[4:] == [
        killed("trial-0"),
        killed("trial-1"),
        StudyFinished(state="INTERRUPTED"),
    ]
    assert server.times[4:] == [last_report, second, second]


def test_a_trial_that_was_begun_twice_counts_from_its_second_beginning(tmp_path: Path) -> None:
    ended = TrialFinished(key="trial-0", state=RunEnd.FAILED)
    dead = dead_driver(tmp_path, started("trial-0"), ended, started("trial-0"))
    server = Server()
    assert sender(server, None, dead.path.parent).close() == 0
    assert server.asked["trial-0"] == server.times[3] > server.times[1]


def test_the_last_of_several_dead_drivers_says_how_the_study_ended(tmp_path: Path) -> None:
    first, server = dead_driver(tmp_path, started("trial-0")), Server()
    dead_driver(tmp_path, StudyFinished())
    assert sender(server, None, first.path.parent).close() == 0
    assert server.taken == [STUDY, started("trial-0"), killed("trial-0"), STUDY, StudyFinished()]


def test_a_study_that_a_living_driver_has_is_not_closed(tmp_path: Path) -> None:
    dead, server = dead_driver(tmp_path, started("trial-0")), Server()
    living = Outbox.create(tmp_path, STUDY)
    assert sender(server, None, dead.path.parent).close() == 0
    assert server.taken == [STUDY, started("trial-0"), killed("trial-0")]
    assert server.asked.keys() == {"trial-0"}
    living.close()
