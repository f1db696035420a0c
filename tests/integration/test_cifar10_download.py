"""CIFAR-10 by way of torchvision, from a server on this machine."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from knee_tune.errors import MachineError, UserError
from knee_tune.files import checksum
from knee_tune.tasks.vision.cifar10_prepare import BATCHES, prepare
from knee_tune.tasks.vision.images import map_images, read_manifest
from tests.generated_images import generated_images, put_archive

datasets = pytest.importorskip("torchvision.datasets", reason="needs the vision extra")

IMAGES = generated_images(train=50, test=10)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # a client may leave before the end
            super().copyfile(source, outputfile)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The archive that torchvision finds where it looks for it: a small one."""
    path = put_archive(tmp_path, IMAGES)

    def listed(*names: str) -> list[list[str]]:
        return [[name, checksum(tmp_path / "unpacked" / BATCHES / name, "md5")] for name in names]

    ((meta, meta_md5),) = listed("batches.meta")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        for name, value in {
            "url": f"http://127.0.0.1:{server.server_port}/{path.name}",
            "tgz_md5": checksum(path, "md5"),
            "train_list": listed(*(f"data_batch_{part}" for part in range(1, 6))),
            "test_list": listed("test_batch"),
            "meta": {"filename": meta, "key": "label_names", "md5": meta_md5},
        }.items():
            monkeypatch.setattr(datasets.CIFAR10, name, value)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_it_is_downloaded_once(published: Path, tmp_path: Path) -> None:
    folder = prepare(data_root=tmp_path / "data").folder
    published.unlink()

    assert map_images(folder, read_manifest(folder, task="cifar10")).same_as(IMAGES)
    assert prepare(data_root=tmp_path / "data").reused


def test_another_file_than_was_published_is_refused(published: Path, tmp_path: Path) -> None:
    published.write_bytes(published.read_bytes()[:-100])

    with pytest.raises(UserError, match=r"^could not download CIFAR-10: .*`from_path` FILE\.npz"):
        prepare(data_root=tmp_path / "data")
    assert not (tmp_path / "data" / "cifar10").exists()


def test_a_server_without_the_file(published: Path, tmp_path: Path) -> None:
    published.unlink()

    with pytest.raises(UserError, match=r"^could not download CIFAR-10: HTTP Error 404") as error:
        prepare(data_root=tmp_path / "data")
    assert "\n" not in str(error.value)


def test_without_a_network(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/x.tar.gz")

    with pytest.raises(
        MachineError, match=r"^could not download CIFAR-10: .*refused.*`from_path` FILE"
    ):
        prepare(data_root=tmp_path / "data")
