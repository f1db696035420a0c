"""Archives of data: unpacked whole and verified to their last byte, or refused."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import IO, Any, cast

from knee_tune.errors import UserError, disk_trouble, first_line
from knee_tune.leftovers import scratch_folder

LARGEST = 4_000_000_000
"""Bytes that an archive may unpack to. A larger corpus is unpacked by hand."""

_MOST_MEMBERS = 100_000
_BLOCK = 1 << 20
_AT_ONCE = 1 << 24  # bytes: more than any header of a tar archive has
_ZIP_END, _ZIP_END_MAGIC = struct.Struct("<10sH10x"), b"PK\x05\x06"
_COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,
}


@contextmanager
def unpacked(path: Path, *, expected: str, largest: int = LARGEST) -> Iterator[Path]:
    """``path``; of a file the folder, while the block runs, with what is in this archive.

    Tar, plain or compressed by gzip, bzip2 or xz, and zip (an .npz file is one). UserError, which
    says what is ``expected``, unless all of it can be read, every checksum is right, it holds
    nothing but files and folders that stay inside, and not more than ``largest`` bytes. OSError if
    there is no room for them, or a disk fails. A UserError about a file in the folder names the
    archive instead.
    """
    if not path.is_file():
        yield path
        return
    with scratch_folder() as folder:
        try:
            _unpack(path, folder, largest)
        except UserError:
            raise
        except Exception as error:  # there is no end to what damaged bytes lead to
            if disk_trouble(error):
                raise
            reason = first_line(error)[:200]
            raise UserError(
                f"{path}: no readable archive ({reason}); expected {expected}"
            ) from None
        try:
            yield folder
        except UserError as error:
            raise UserError(str(error).replace(str(folder), str(path))) from None


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    size: int
    is_folder: bool
    is_file: bool
    open: Callable[[], IO[bytes] | None]


def _unpack(path: Path, folder: Path, largest: int) -> None:
    written = 0
    is_zip = zipfile.is_zipfile(path)
    members = _zip_members(path) if is_zip else _tar_members(path, largest)
    for number, member in enumerate(members):
        name = PurePosixPath(member.name)
        if number == _MOST_MEMBERS:
            raise ValueError(f"it holds more than {_MOST_MEMBERS:,} files")
        if name.is_absolute() or ".." in name.parts or not (member.is_file or member.is_folder):
            raise ValueError(f"{member.name[:100]!r} in it is no file that stays inside")
        if member.size < 0 or written + member.size > largest:
            raise _too_large(path, largest)
        target = folder / name
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file, member.open() or io.BytesIO() as content:
            while block := content.read(_BLOCK):
                written += file.write(block)
                if written > largest:
                    raise _too_large(path, largest)


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        if _entries(path) != min(len(archive.infolist()), 0xFFFF):
            raise ValueError("its directory is damaged")
        for info in archive.infolist():
            yield _Member(
                name=info.filename,
                size=info.file_size,
                is_folder=info.is_dir(),
                is_file=not info.is_dir() and not S_ISLNK(info.external_attr >> 16),
                open=partial(archive.open, info),
            )


def _entries(path: Path) -> int:
    """Number of members in a zip archive's end record, which zipfile does not check."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_END.size - 0xFFFF))
        end = file.read()
    entries: int = _ZIP_END.unpack_from(end, end.rindex(_ZIP_END_MAGIC))[1]
    return entries


def _tar_members(path: Path, largest: int) -> Iterator[_Member]:
    with _decompressed(path) as content:
        stream = _Forwards(content, too_large=_too_large(path, largest), largest=largest)
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as archive:
            for info in archive:
                yield _Member(
                    name=info.name,
                    size=info.size,
                    is_folder=info.isdir(),
                    is_file=info.isreg() and not info.issparse(),
                    open=partial(archive.extractfile, info),
                )
        # A header that is damaged ends an archive for tarfile; its true end is a block of zeros.
        if not stream.last or stream.last.strip(b"\0"):
            raise ValueError("it is damaged or cut short")
        while stream.read(_BLOCK):  # the checksum is at the very end
            pass


def _decompressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    for magic, opened in _COMPRESSED.items():
        if start.startswith(magic):
            stream: IO[bytes] = opened(path)
            return stream
    return path.open("rb")


class _Forwards:
    """A tar archive's bytes for tarfile, which would read as much as any header claims."""

    def __init__(self, stream: IO[bytes], *, too_large: UserError, largest: int) -> None:
        self._stream, self._too_large, self._largest = stream, too_large, largest
        self.last = b""
        """What was read last."""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _AT_ONCE:
            raise ValueError(f"a header in it claims {size:,} bytes")
        self.last = self._stream.read(size)
        if self._stream.tell() > self._largest:
            raise self._too_large
        return self.last

    def seek(self, position: int) -> int:
        if position > self._largest:
            raise self._too_large
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


def _too_large(path: Path, largest: int) -> UserError:
    return UserError(
        f"{path}: it unpacks to more than {largest / 1e9:g} GB; if that is right, unpack it by "
        "hand and give the folder with `from_path`"
    )
