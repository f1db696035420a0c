"""Data that comes packed in one file."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from knee_tune.errors import UserError, first_line


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """``path``; of a file the folder, while the block runs, with what is in this tar archive.

    UserError if it cannot be unpacked, or would write outside of its folder.
    """
    if not path.is_file():
        yield path
        return
    with TemporaryDirectory() as folder:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            reason = first_line(error).rstrip(":")  # tarfile lists every compression it tried
            raise UserError(f"{path}: no readable tar archive ({reason})") from None
        yield Path(folder)
