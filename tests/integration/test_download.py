"""Downloads against a real HTTP server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from knee_tune.errors import MachineError, UserError
from knee_tune.tasks.translation.download import Archive, download

CONTENT = bytes(range(256)) * 4096
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Site:
    """A server of one file that can break off, and remembers which ranges were asked for."""

    url: str = ""
    content: bytes = CONTENT
    breaks_after: int | None = None
    knows_ranges: bool = True
    ranges: list[str | None] = field(default_factory=list)

    def archive(self, *others: str, md5: str | None = MD5) -> Archive:
        return Archive(name="data.tgz", urls=(*others, self.url + "/data.tgz"), md5=md5)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.ranges.append(asked)
            if self.path != "/data.tgz":
                self.send_error(404, "Not Found")
                return
            start = int(asked[6:-1]) if asked and site.knows_ranges else 0
            if start >= len(site.content):
                self.send_error(416)
                return
            body = site.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: site.breaks_after])
            site.breaks_after = None

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()


def test_a_download_is_checked_and_kept(site: Site, tmp_path: Path) -> None:
    seen: list[float] = []
    path = download(site.archive(), tmp_path, progress=lambda text, fraction: seen.append(fraction))
    assert path.read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    download(site.archive(), tmp_path)
    assert len(site.ranges) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["data.tgz"]


def test_a_broken_connection_is_resumed_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.breaks_after = 300_000
    assert download(site.archive(), tmp_path, pause=0).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=300000-"]


def test_what_an_earlier_command_left_is_continued(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:1000])
    assert download(site.archive(), tmp_path).read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-"]


def test_a_whole_part_needs_no_more_bytes(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.tgz.part").write_bytes(CONTENT)
    assert download(site.archive(), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(site: Site, tmp_path: Path) -> None:
    site.knows_ranges = False
    (tmp_path / "data.tgz.part").write_bytes(b"x" * 1000)
    assert download(site.archive(), tmp_path).read_bytes() == CONTENT


def test_a_part_of_something_else_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.tgz.part").write_bytes(b"x" * 1000)
    assert download(site.archive(), tmp_path, pause=0).read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-", None]


def test_a_wrong_checksum_leaves_nothing_behind(site: Site, tmp_path: Path) -> None:
    site.content = b"an error page"
    with pytest.raises(UserError, match=rf"MD5 checksum is \w+, not {MD5}.*`from_path`"):
        download(site.archive(), tmp_path, pause=0)
    assert not list(tmp_path.iterdir())


def test_a_download_that_was_damaged_later_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    download(site.archive(), tmp_path).write_bytes(CONTENT[:-1])
    assert download(site.archive(), tmp_path).read_bytes() == CONTENT


def test_a_download_without_an_end_is_given_up(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knee_tune.tasks.translation.download.LARGEST", 500_000)
    with pytest.raises(UserError, match="it sends more than"):
        download(site.archive(), tmp_path, pause=0)
    assert not list(tmp_path.iterdir())


def test_the_next_mirror_is_asked(site: Site, tmp_path: Path) -> None:
    archive = site.archive("http://127.0.0.1:9/data.tgz", site.url + "/gone.tgz")
    assert download(archive, tmp_path, pause=0).read_bytes() == CONTENT


def test_what_every_server_refuses_is_no_fault_of_the_network(site: Site, tmp_path: Path) -> None:
    archive = Archive(name="data.tgz", urls=(site.url + "/gone.tgz",), md5=MD5)
    with pytest.raises(UserError, match="HTTP 404 Not Found; fetch it by hand"):
        download(archive, tmp_path, pause=0)


def test_without_a_network_one_line_names_the_ways_out(tmp_path: Path) -> None:
    archive = Archive(name="data.tgz", urls=("http://127.0.0.1:9/data.tgz",), md5=MD5)
    with pytest.raises(MachineError) as error:
        download(archive, tmp_path, pause=0)
    text = str(error.value)
    assert "\n" not in text
    assert "refused" in text
    assert "`from_path`" in text
    assert "`preset` demo" in text
