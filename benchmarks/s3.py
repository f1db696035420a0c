"""An S3 server of one's own: moto on 127.0.0.1, in a process of its own, with one empty bucket."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BUCKET = "trunks"


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where it answers."""

    endpoint: str

    @property
    def url(self) -> str:
        """Of its bucket."""
        return f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def private_server() -> Iterator[S3Server]:
    """A server, and its settings in this process's environment; both end with the block.

    FileNotFoundError where moto or s3fs is missing.
    """
    for package in ("moto", "s3fs"):
        if importlib.util.find_spec(package) is None:
            raise FileNotFoundError(f"no S3 server: {package} is not installed")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    server = S3Server(endpoint=f"http://127.0.0.1:{port}")
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not meant for it
    )
    before = {name: os.environ.get(name) for name in server.environment}
    try:
        _make_bucket(server.endpoint)
        os.environ.update(server.environment)
        yield server
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        process.kill()
        process.wait()


def _make_bucket(endpoint: str) -> None:
    request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
