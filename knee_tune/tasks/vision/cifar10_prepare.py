"""``knee-tune data prepare cifar10``: of an .npz file, the published batches, or a download."""

import io
import pickle
import pickletools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from knee_tune.errors import MachineError, UserError, disk_trouble, first_line, refused_outright
from knee_tune.tasks.archive import unpacked
from knee_tune.tasks.prepared_folder import set_folder
from knee_tune.tasks.vision.images import (
    ImageManifest,
    Images,
    PreparedImages,
    map_images,
    read_manifest,
    write_images,
)

PUBLISHED = "https://www.cs.toronto.edu/~kriz/cifar.html"

TRAIN, TEST = 50_000, 10_000
SIDE, CLASSES = 32, 10
BATCHES = "cifar-10-batches-py"
_TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))

_LARGEST = 2_000_000_000
"""Bytes of the images in float64, about."""

_NPZ = (
    "expected x (60000, 32, 32, 3) uint8 and y (60000,), the training images first, or x_train, "
    "y_train, x_test and y_test"
)


def prepare(
    *,
    data_root: Path,
    from_path: Path | None = None,
    name: str = "cifar10",
    force: bool = False,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> PreparedImages:
    """Prepare the set ``<data_root>/<name>`` of what is at ``from_path``, or else of a download.

    A set that is there already stays, unless ``force``; other images at ``from_path`` need it, or
    another name. UserError for everything wrong with the input; nothing is half-written.
    """
    began = time.monotonic()
    folder = set_folder(data_root, name)
    origin = PUBLISHED if from_path is None else str(from_path.resolve())

    def prepared(manifest: ImageManifest, *, reused: bool) -> PreparedImages:
        return PreparedImages(
            folder=folder,
            name=name,
            images=manifest.images,
            fingerprint=manifest.fingerprint,
            seconds=time.monotonic() - began,
            reused=reused,
        )

    known = None
    if folder.exists() and not force:
        known = read_manifest(folder, task="cifar10", verify=True)
        if from_path is None:
            return prepared(known, reused=True)
    progress("read images" if from_path else "download", 0.0)
    images = read_source(from_path) if from_path else download(data_root / "downloads")
    if known is not None:
        if map_images(folder, known).same_as(images):
            return prepared(known, reused=True)
        raise UserError(
            f"{folder} was prepared from other images ({known.origin}): choose another `name`, "
            "or replace it with `force`"
        )
    progress("write images", 0.5)
    manifest = write_images(folder, images, origin=origin)
    progress("write images", 1.0)
    return prepared(manifest, reused=False)


def read_source(path: Path) -> Images:
    """Read the images in an .npz file, in a folder of Python batches, or in an archive of one.

    UserError, naming the file and what is expected, for everything else.
    """
    if path.is_dir():
        return _read_batches(path)
    if not path.is_file():
        raise UserError(f"`from_path` {path}: no such file or folder")
    expected = f"an .npz file or an archive of {BATCHES}"
    with unpacked(path, expected=expected, largest=_LARGEST) as folder:
        if arrays := sorted(folder.glob("*.npy")):
            return _read_arrays(folder, arrays)
        return _read_batches(folder)


def download(folder: Path) -> Images:
    """Download with torchvision, which checks it, to ``folder``.

    UserError if it is not there or not what was published, MachineError if the network fails,
    OSError if the disk does.
    """
    try:
        from torchvision.datasets import CIFAR10

        CIFAR10(folder, download=True)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed, which downloads CIFAR-10: pip install "
            f"'knee-tune[vision]', or give the images with `from_path` FILE.npz|DIR"
        ) from None
    except (OSError, RuntimeError) as error:
        if disk_trouble(error):
            raise
        ours = isinstance(error, RuntimeError) or refused_outright(error)
        raise (UserError if ours else MachineError)(
            f"could not download CIFAR-10: {first_line(error)}; fetch it by hand and give it with "
            f"`from_path` FILE.npz, or `from_path` DIR with {BATCHES}"
        ) from None
    return _read_batches(folder)


def _read_arrays(path: Path, files: list[Path]) -> Images:
    """Read the arrays of an unpacked .npz file; mapped, since a header may claim any size."""
    try:
        arrays = {
            file.stem: np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            for file in files
        }
    except Exception as error:  # whatever bytes that are no arrays lead to
        if disk_trouble(error):
            raise
        raise UserError(
            f"`from_path` {path}: not a readable .npz file ({first_line(error)[:200]}); {_NPZ}"
        ) from None
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        parts = [(arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")]
    elif {"x", "y"} <= arrays.keys() and all(
        arrays[name].shape[:1] == (TRAIN + TEST,) for name in ("x", "y")
    ):
        x, y = arrays["x"], arrays["y"]
        parts = [(x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])]
    else:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UserError(f"`from_path` {path}: it holds {found[:200]}; {_NPZ}")
    return _checked(path, *parts)


def _read_batches(path: Path) -> Images:
    """The batches in ``path`` or in the folder of their usual name inside it."""
    inner = path / BATCHES
    folder = inner if inner.is_dir() else path
    missing = [name for name in (*_TRAIN_FILES, "test_batch") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"`from_path` {path}: no {missing[0]} in it; expected the files of {BATCHES}: "
            "data_batch_1 to data_batch_5 and test_batch"
        )
    batches = [_read_batch(folder / name) for name in _TRAIN_FILES]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return _checked(path, (images, labels), _read_batch(folder / "test_batch"))


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and labels of one file: rows of 3,072 values, channel by channel."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"more than {_LARGEST / 1e9:g} GB")
        batch = _unpickled(path.read_bytes())
        rows, labels = _array(batch[b"data"]), _array(batch[b"labels"]).reshape(-1)
        return rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels
    except Exception as error:  # whatever bytes that are no such pickle lead to
        if disk_trouble(error):
            raise
        raise UserError(
            f"`from_path` {path}: not a batch of CIFAR-10 ({first_line(error)[:200]}); expected a "
            "pickled dictionary with 'data' (n, 3072) uint8 and 'labels'"
        ) from None


def _unpickled(content: bytes) -> Any:
    """Containers, numbers, bytes and arrays; nothing that the file names is called."""
    for opcode, argument, _ in pickletools.genops(content):
        # The memo has room for every index up to the highest one.
        if "PUT" in opcode.name and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it puts an object at {argument}")
    return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()


class _DType:
    """Stands for numpy's while a batch is loaded."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


class _Array:
    """Stands for numpy's while a batch is loaded; holds what its bytes are said to be."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin1(text: str, encoding: Any) -> bytes:
    """Bytes as newer pickles write them."""
    if _text(encoding) not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin-1")


class _ArraysOnly(pickle.Unpickler):
    """Loads containers, numbers and what stands for numpy's arrays."""

    _ADMITTED = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _DType}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self._ADMITTED:
            return self._ADMITTED[name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")


def _text(value: Any) -> str:
    """A name in a pickle, where Python 2 wrote bytes."""
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _array(value: Any) -> np.ndarray:
    """The array that was pickled, or that of a list of integers."""
    if isinstance(value, _Array):
        _, shape, dtype, by_column, content = value.state
        if not re.fullmatch("[iuf][1248]", dtype.code):
            raise ValueError(f"an array of {dtype.code}")
        items = np.frombuffer(content, np.dtype(dtype.code).newbyteorder(dtype.order))
        return items.reshape(shape, order="F" if by_column else "C")
    if isinstance(value, list) and all(type(item) is int for item in value):
        return np.array(value, dtype=np.int64)
    raise ValueError(f"a {type(value).__name__} where an array belongs")


def _checked(path: Path, *parts: tuple[np.ndarray, np.ndarray]) -> Images:
    """Training and test images, if they are images and labels; UserError if not."""
    parts = tuple((x, y[:, 0] if y.shape[1:] == (1,) else y) for x, y in parts)
    for x, y in parts:
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (SIDE, SIDE, 3) or not len(x):
            raise UserError(
                f"`from_path` {path}: images are {x.shape} {x.dtype}; expected (n, 32, 32, 3) uint8"
            )
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise UserError(
                f"`from_path` {path}: labels are {y.shape} {y.dtype} for {len(x):,} images; "
                "expected one integer each"
            )
        if y.min() < 0 or y.max() >= CLASSES:
            raise UserError(
                f"`from_path` {path}: labels are {y.min()} to {y.max()}; expected 0 to "
                f"{CLASSES - 1}"
            )
    (train, train_labels), (test, test_labels) = parts
    return Images(
        train=train,
        train_labels=train_labels.astype(np.uint8),
        test=test,
        test_labels=test_labels.astype(np.uint8),
    )
