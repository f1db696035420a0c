"""The outbox loses nothing when its driver is killed, and sends nothing twice without need."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from knee_tune.records.events import Attached, Event, Recorded, StudyStarted, TrialReported
from knee_tune.tracking.outbox import Outbox, another_driver_lives, outbox_root, study_folder

STUDY = StudyStarted(uid="u", name="a/study", task="digits", experiment="e")


def report(step: int) -> TrialReported:
    return TrialReported(key="trial-0", step=step, lr=0.1, metrics={"loss": 1 / (step + 1)})


def events(lines: list[bytes]) -> list[Event]:
    return [Recorded.model_validate_json(line).event for line in lines]


def all_events(outbox: Outbox) -> list[Event]:
    return [recorded.event for recorded in outbox.events()]


def test_a_killed_driver_leaves_everything_to_the_next_one(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from knee_tune.records.events import StudyStarted, TrialReported
from knee_tune.tracking.outbox import Outbox
study = StudyStarted(uid="u", name="a/study", task="digits", experiment="e")
outbox = Outbox.create(Path(sys.argv[1]), study)
for step in range(100):
    outbox.append(TrialReported(key="trial-0", step=step, lr=0.1, metrics={"loss": 1 / (step + 1)}))
outbox.acknowledge(outbox.pending(41))
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert dead.returncode == -signal.SIGKILL

    (orphan,) = Outbox.adopt(study_folder(tmp_path, STUDY.name))
    assert orphan.study == STUDY
    assert orphan.remaining == 60
    assert events(orphan.pending(1000).lines) == [report(step) for step in range(40, 100)]
    assert all_events(orphan) == [STUDY, *map(report, range(100))]


def test_a_living_driver_keeps_its_outbox(tmp_path: Path) -> None:
    folder = study_folder(tmp_path, STUDY.name)
    first, second = Outbox.create(tmp_path, STUDY), Outbox.create(tmp_path, STUDY)

    assert first.path != second.path
    assert Outbox.adopt(folder) == []
    assert another_driver_lives(folder, ours=[first.path])

    second.close()
    assert not another_driver_lives(folder, ours=[first.path])
    assert [orphan.path for orphan in Outbox.adopt(folder)] == [second.path]


def test_every_store_has_outboxes_of_its_own(tmp_path: Path) -> None:
    uris = ("http://mlflow", "http://mlflow:5000", "sqlite:////home/mlflow.db")
    assert len({outbox_root(tmp_path, uri) for uri in uris}) == 3
    same = {
        outbox_root(tmp_path, f"postgresql://ann{password}@db/mlflow{slash}")
        for password in ("", ":old", ":n@w")
        for slash in ("", "/")
    }
    assert len(same) == 1


def test_half_a_line_is_not_an_event(tmp_path: Path) -> None:
    outbox = Outbox.create(tmp_path, STUDY)
    outbox.append(report(1))
    with outbox.path.open("ab") as file:
        file.write(b'{"at":1,"event":{"ki')
    outbox.close()

    (orphan,) = Outbox.adopt(outbox.path.parent)
    assert events(orphan.pending(10).lines) == [STUDY, report(1)]
    assert orphan.remaining == 2


def test_acknowledged_events_do_not_come_again_and_a_drained_outbox_goes(tmp_path: Path) -> None:
    outbox = Outbox.create(tmp_path, STUDY)
    for step in range(5):
        outbox.append(report(step))
    outbox.acknowledge(outbox.pending(3))
    assert events(outbox.pending(2).lines) == [report(2), report(3)]

    outbox.acknowledge(outbox.pending(100))
    assert outbox.remaining == 0
    outbox.close()
    assert list(outbox.path.parent.iterdir()) == []


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    outbox = Outbox.create(tmp_path, STUDY)

    def trial(number: int) -> None:
        for step in range(200):
            outbox.append(TrialReported(key=f"trial-{number}", step=step, lr=0.1))

    threads = [threading.Thread(target=trial, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    steps: dict[str, list[int]] = {}
    for event in all_events(outbox):
        if isinstance(event, TrialReported):
            steps.setdefault(event.key, []).append(event.step)
    assert steps == {f"trial-{number}": list(range(200)) for number in range(4)}
    assert outbox.remaining == 801


def test_a_line_longer_than_a_block_is_read_whole(tmp_path: Path) -> None:
    from knee_tune.records.events import Attached

    outbox = Outbox.create(tmp_path, STUDY)
    long = Attached(name="log.txt", text="x" * 3_000_000)
    outbox.append(long)
    outbox.append(report(1))
    assert events(outbox.pending(10).lines) == [STUDY, long, report(1)]


def test_a_full_disk_does_not_stop_the_training(tmp_path: Path) -> None:
    outbox = Outbox.create(tmp_path, STUDY)
    full = os.open("/dev/full", os.O_WRONLY)
    good = os.dup(outbox._descriptor)
    os.dup2(full, outbox._descriptor)
    outbox.append(report(1))
    os.dup2(good, outbox._descriptor)
    outbox.append(report(2))
    assert all_events(outbox) == [STUDY, report(2)]


def test_an_artifact_of_an_earlier_version_is_still_sent() -> None:
    event = Attached(name="note.md", text="note")
    line = Recorded(at=1, event=event).model_dump_json()
    earlier = line.replace('"text":"note"', '"text":"note","offline":false')
    assert earlier != line
    assert events([earlier.encode()]) == [event]
