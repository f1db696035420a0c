"""A fingerprint of a script's data: other data, other runs."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from knee_tune.errors import UserError
from knee_tune.tasks.seeding import seeded

LOOKED_AT = 16
"""Items of a data set that count with their content: the first, the last, and some in between."""

READ = 1 << 20
"""Bytes of a file that count: so many from its start and its end. Its size counts too."""


def fingerprint_of(data: Any) -> str:
    """The same for the same data: data sets (map-style), arrays, files and folders, or a text.

    Of a data set its length counts and a few items, of a file its size, start and end; a text
    stands for itself, as a version does. What items draw is drawn from a fixed seed.
    """
    digest = hashlib.sha256()
    with seeded(0):
        _add(data, digest)
    return digest.hexdigest()[:16]


def _add(data: Any, digest: "hashlib._Hash") -> None:
    match data:
        case None | bool() | int() | float() | complex() | str():
            digest.update(f"{type(data).__name__} {data!r}\0".encode())
        case bytes():
            digest.update(data)
        case Path():
            _add_files(data, digest)
        case Tensor():
            _add(data.detach().cpu().numpy(force=True), digest)
        case Mapping():
            for name in sorted(data, key=str):
                _add(str(name), digest)
                _add(data[name], digest)
        case _ if hasattr(data, "__array__"):  # of numpy, a picture, a column
            array = np.ascontiguousarray(data)
            digest.update(f"{array.dtype} {array.shape}\0".encode())
            digest.update(array.tobytes() if array.dtype != object else repr(array).encode())
        case Sequence():
            _add_items(data, len(data), digest)
        case _ if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            _add_items(data, len(data), digest)
        case _:
            # Of anything else the kind is all that is the same in every process.
            digest.update(f"{type(data).__module__}.{type(data).__qualname__}\0".encode())


def _add_items(items: Any, count: int, digest: "hashlib._Hash") -> None:
    digest.update(f"{count} items\0".encode())
    last = min(count, LOOKED_AT) - 1
    for place in range(last + 1):
        _add(items[round(place * (count - 1) / max(1, last))], digest)


def _add_files(path: Path, digest: "hashlib._Hash") -> None:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path)} {size}\0".encode())
            with file.open("rb") as content:
                digest.update(content.read(READ))
                content.seek(max(READ, size - READ))
                digest.update(content.read(READ))
    except OSError as error:
        raise UserError(f"join: `data` {error.filename or path}: {error.strerror}") from error


class FirstBatch:
    """A fingerprint of what a model is given first, where nobody says what the data is."""

    def __init__(self, model: nn.Module, stop: BaseException) -> None:
        self.fingerprint = ""
        self._stop = stop
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if model.training:
            self.fingerprint = fingerprint_of([list(args), dict(kwargs)])
            raise self._stop
