"""Drivers that share a study in a PostgreSQL that keeps going away.

    python -m benchmarks.restarts [--trials 100 --drivers 4 --restarts 20 --away 2 --lose 100]

Real ``knee-tune run`` commands on one server. It is restarted again and again while they train,
shut down and crashed in turn; and of every so many commits they never get the answer: the line is
cut once the server has committed. No driver may end before the study has all its trials, and every
trial is to be trained and told once.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy

from benchmarks.postgresql import DATABASE, PostgresServer, binaries, private_server
from knee_tune.records.study import StudyRecord
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, study_record

STUDY = "restarts"

OPTIONS = (
    *("--task", "digits", "--preset", "quick", "--nproc", "1", "--study-name", STUDY),
    *("--set", "recipe.epochs=3"),
    *("--set", "space.seed_lr.per_decade=12", "--set", "space.explore_fraction.step=0.1"),
    *("--sampler", "random", "--pruner", "none", "--trunk-cache", "0", "--tracking-uri", "none"),
)
"""A moment of training in 150 points or so; nothing but the study itself is shared."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """What a drill came to."""

    seconds: float
    restarts: int
    lost_answers: int
    exit_codes: tuple[int, ...]
    """Of the drivers."""
    states: dict[str, int]
    """Trials of the study by their state, also those that came to nothing."""
    told: int
    """Ends of trials that drivers told people of."""
    points: int
    """Different points of the search space among the complete trials."""
    steps: int
    """Trained, of all attempts of all trials."""
    waits: int
    """Times that a driver said it waits."""
    last_words: tuple[str, ...]
    """Of every driver."""


class LossyLine:
    """Leads a port of this machine to the server; every ``lose``-th commit is never answered."""

    def __init__(self, server: PostgresServer, *, lose: int) -> None:
        self._socket, self._lose = server.socket, lose
        self._commits = 0
        self.lost = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._open = threading.Event()

    @contextmanager
    def opened(self) -> Iterator[str]:
        """The URL of the database by this line, which is there meanwhile."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        self._open.wait()
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{DATABASE}"
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()

    def _run(self) -> None:
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._loop.run_until_complete(listening).sockets[0].getsockname()[1]
        self._open.set()
        self._loop.run_forever()

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        try:
            server, order = await asyncio.open_unix_connection(self._socket)
        except OSError:
            answer.close()
            return
        cut = asyncio.Event()

        async def forth() -> None:
            while data := await client.read(1 << 16):
                if b"COMMIT" in data:
                    self._commits += 1
                    if self._commits % self._lose == 0:
                        cut.set()
                order.write(data)

        async def back() -> None:
            while data := await server.read(1 << 16):
                if cut.is_set():  # it is done, and nobody hears of it
                    self.lost += 1
                    return
                answer.write(data)

        ways = [asyncio.create_task(way()) for way in (forth, back)]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for writer in (order, answer):
            writer.close()


def drill(*, trials: int, drivers: int, restarts: int, away: float, lose: int) -> Drill:
    """Drive a study to its end while the server restarts ``restarts`` times, evenly spread.

    Each time it is ``away`` seconds.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        server = stack.enter_context(private_server())
        line = LossyLine(server, lose=lose)
        url = stack.enter_context(line.opened())
        began = time.monotonic()
        commands = [
            stack.enter_context(_driver(url, home, trials=trials, log=home / f"driver-{index}.log"))
            for index in range(drivers)
        ]
        done = 0
        for restart in range(restarts):
            while _complete(server) <= trials * (restart + 0.5) / restarts - 1 and any(
                command.poll() is None for command in commands
            ):
                time.sleep(0.2)
            if all(command.poll() is not None for command in commands):
                break
            server.restart(immediately=restart % 2 == 1, away=away)
            done += 1
        exit_codes = tuple(command.wait() for command in commands)
        seconds = time.monotonic() - began
        logs = [(home / f"driver-{index}.log").read_text() for index in range(drivers)]
        study = load_study(open_storage(server.url), STUDY)
        record = study_record(study)
        return Drill(
            seconds=round(seconds, 1),
            restarts=done,
            lost_answers=line.lost,
            exit_codes=exit_codes,
            states=dict(Counter(trial.state.name for trial in study.trials)),
            told=sum(log.count(": complete, ") for log in logs),
            points=_points(record),
            steps=record.steps.trained,
            waits=sum(log.count("cannot be used now") for log in logs),
            last_words=tuple(log.strip().rpartition("\n")[2] for log in logs),
        )


@contextmanager
def _driver(url: str, home: Path, *, trials: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = (*OPTIONS, "--trials", str(trials), "--home", str(home), "--storage", url)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "knee_tune", "run", *command],
            env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _complete(server: PostgresServer) -> int:
    """Trials that are complete so far."""
    engine = sqlalchemy.create_engine(server.url, poolclass=sqlalchemy.pool.NullPool)
    if "trials" not in sqlalchemy.inspect(engine).get_table_names():
        return 0
    with engine.connect() as connection:
        counted = sqlalchemy.text("SELECT count(*) FROM trials WHERE state = 'COMPLETE'")
        return int(connection.scalar(counted))


def _points(record: StudyRecord) -> int:
    complete = [trial for trial in record.trials if trial.state == "complete"]
    return len({(trial.seed_lr, trial.explore_fraction) for trial in complete})


def main() -> None:
    """Drill and print, where PostgreSQL is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--drivers", type=int, default=4)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--away", type=float, default=2.0, help="seconds of each restart")
    parser.add_argument("--lose", type=int, default=100, help="every so many commits")
    options = vars(parser.parse_args())
    if binaries() is None:
        print("restarts: left out, PostgreSQL is not installed (Debian, Ubuntu: postgresql)")
        return
    found = drill(**options)
    print(json.dumps(asdict(found), indent=1))


if __name__ == "__main__":
    main()
