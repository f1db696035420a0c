"""Downloads that resume, try mirrors, and are checked."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from knee_tune.errors import MachineError, UserError, disk_trouble, first_line, refused_outright
from knee_tune.files import checksum
from knee_tune.tasks.translation.text import Progress, silent

BLOCK = 1 << 18
TIMEOUT = 30.0
"""Seconds without an answer after which a connection counts as dead."""
LARGEST = 1_000_000_000
"""Bytes of a download at most; the largest archive, of WMT'14, has 918 million."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file to download: where it is, and what it must be."""

    name: str
    urls: tuple[str, ...]
    md5: str | None = None
    sha256: str | None = None

    def difference(self, path: Path) -> str:
        """What is wrong with a file; empty if nothing is, or no checksum is known."""
        for algorithm, known in (("md5", self.md5), ("sha256", self.sha256)):
            if known is not None and (found := checksum(path, algorithm)) != known:
                return f"its {algorithm.upper()} checksum is {found}, not {known}"
        return ""


# The archive of fairseq's prepare-iwslt14.sh. Neither host publishes a checksum; this one was
# published by others who downloaded it from the first.
IWSLT14 = Archive(
    name="iwslt14.de-en.tgz",
    urls=(
        "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz",
        "https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz",
    ),
    md5="10936dfdf616504ddbd844e91b94ef4a",
)


class _Broken(Exception):
    """The connection failed, with the reason."""


class _Refused(_Broken):
    """The server answers, and will say the same again."""


def download(
    archive: Archive,
    folder: Path,
    *,
    progress: Progress = silent,
    attempts: int = 3,
    pause: float = 1.0,
) -> Path:
    """Download the archive to ``folder``, unless it is there already, and sound.

    What an interrupted download left (``NAME.part``) is continued. Every address gets
    ``attempts`` tries, ``pause`` seconds apart. UserError if every server refuses or the checksum
    differs, MachineError if one could not be reached, OSError if the disk fails.
    """
    path = folder / archive.name
    if path.is_file() and not archive.difference(path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reasons: list[str] = []
    kind: type[UserError | MachineError] = UserError
    for url in archive.urls:
        for attempt in range(attempts):
            resumed = part.exists()
            try:
                _receive(url, part, progress)
            except _Broken as broken:
                reasons.append(f"{url}: {broken}")
                if not isinstance(broken, _Refused):
                    kind = MachineError
                if not part.exists():
                    break  # refused outright: ask the next address
                time.sleep(pause * (attempt + 1 < attempts))
                continue
            difference = archive.difference(part)
            if not difference:
                return part.replace(path)
            part.unlink()
            reasons.append(f"{url}: {difference}")
            if not resumed:
                break  # from its first byte on another file: ask the next address
    raise kind(
        f"could not download {archive.name}: {'; '.join(dict.fromkeys(reasons))}; fetch it by hand "
        "and give its folder with `from_path`, or use `preset` demo, which needs no data"
    )


def _receive(url: str, part: Path, progress: Progress) -> None:
    """Append what ``part`` lacks."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "knee-tune"} | ({"Range": f"bytes={start}-"} if start else {})
    with _reasons():
        try:
            answer = urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=TIMEOUT
            )
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return  # nothing is lacking; the checksum judges
            raise
        with answer:
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0
            total = start + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if start else "wb") as stream:
                while block := answer.read(BLOCK):
                    stream.write(block)
                    if stream.tell() > LARGEST:
                        part.unlink()
                        raise _Refused(f"it sends more than {LARGEST / 1e9:g} GB")
                    progress("download", min(stream.tell() / total, 1.0) if total else 0.0)
                if total and stream.tell() < total:
                    raise _Broken(f"the connection ended at byte {stream.tell()} of {total}")


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        kind = _Refused if refused_outright(error) else _Broken
        raise kind(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Broken(str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        if disk_trouble(error):
            raise
        raise _Broken(first_line(error)) from None
