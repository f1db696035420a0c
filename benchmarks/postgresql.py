"""A PostgreSQL server of one's own: started from what is installed, thrown away afterwards."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import OperationalError

DATABASE = "optuna"


def binaries() -> Path | None:
    """The folder with ``initdb`` and ``postgres``: on the PATH, or where Debian hides them."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    hidden = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    return hidden[-1].parent if hidden else None


class PostgresServer:
    """A server in ``folder``, which it alone uses: on a socket in there, and on no port.

    What an earlier one left there is served again.

    It forgets nothing when it is killed, but may when the machine is: nothing waits for a disk.
    """

    def __init__(self, folder: Path, *, programs: Path) -> None:
        self._folder, self._programs = folder, programs
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to serve root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        if (folder / "data").is_dir():
            self.start()
            return
        self._run("initdb", "--pgdata=data", "--username=postgres", "--auth=trust", "--no-sync")
        self.start()
        with self._engine("postgres").connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {DATABASE}")

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._folder / ".s.PGSQL.5432"

    @property
    def url(self) -> str:
        """Of its database, for SQLAlchemy."""
        return f"postgresql+psycopg://postgres@/{DATABASE}?host={self._folder}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *(self._programs / "postgres", "-D", "data", "-k", self._folder),
                *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off"),
                *("-c", "max_connections=400"),  # a driver has a few, and there are dozens
            ],
            cwd=self._folder,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        engine = self._engine("postgres")
        while True:
            try:
                engine.connect().close()
                return
            except OperationalError:
                if self._process.poll() is not None:
                    raise
                time.sleep(0.05)

    def stop(self, *, immediately: bool = False) -> None:
        """Stop it: every connection is closed, ``immediately`` as in a crash."""
        assert self._process is not None, "it is running"
        self._process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
        self._process.wait()

    def restart(self, *, immediately: bool = False, away: float = 0.0) -> None:
        """Stop it, and start it ``away`` seconds later."""
        self.stop(immediately=immediately)
        time.sleep(away)
        self.start()

    def _engine(self, database: str) -> sqlalchemy.Engine:
        url = sqlalchemy.make_url(self.url).set(database=database)
        return sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT"
        )

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._folder,
            user=self._user,
            check=True,
            stdout=subprocess.DEVNULL,
        )


@contextmanager
def private_server() -> Iterator[PostgresServer]:
    """A new one, in a folder that goes with it. FileNotFoundError where nothing is installed."""
    programs = binaries()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed (Debian, Ubuntu: postgresql)")
    # Not below pytest's or anybody's private folder, and short: a socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="knee-pg-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), programs=programs)
        try:
            yield server
        finally:
            server.stop(immediately=True)
