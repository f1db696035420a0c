"""CIFAR-10 as people have it: an .npz file, the published Python batches, or torchvision."""

import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from knee_tune.errors import UserError, first_line
from knee_tune.tasks.archive import unpacked
from knee_tune.tasks.vision.images import Images

TRAIN, TEST = 50_000, 10_000
SIDE, CLASSES = 32, 10
BATCHES = "cifar-10-batches-py"
_TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))

_NPZ = (
    "expected x (60000, 32, 32, 3) uint8 and y (60000,), the training images first, or x_train, "
    "y_train, x_test and y_test"
)


def read_source(path: Path) -> Images:
    """The images in an .npz file, in a folder of Python batches, or in a tar of one.

    UserError, naming the file and what is expected, for everything else.
    """
    if path.is_dir():
        return _read_batches(path)
    if not path.is_file():
        raise UserError(f"--from {path}: no such file or folder")
    if zipfile.is_zipfile(path):
        return _read_npz(path)
    if tarfile.is_tarfile(path):
        with unpacked(path) as folder:
            return _read_batches(folder, called=path)
    raise UserError(f"--from {path}: neither an .npz file nor a tar archive of {BATCHES}")


def download(folder: Path) -> Images:
    """What torchvision downloads to ``folder`` and checks; UserError if it cannot."""
    try:
        from torchvision.datasets import CIFAR10

        CIFAR10(folder, download=True)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed, which downloads CIFAR-10: pip install "
            f"'knee-tune[vision]', or give the images with --from FILE.npz|DIR"
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not download CIFAR-10: {first_line(error)}; fetch it by hand and give it with "
            f"--from FILE.npz, or --from DIR with {BATCHES}"
        ) from None
    return _read_batches(folder)


def _read_npz(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--from {path}: not a readable .npz file ({first_line(error)}); {_NPZ}"
        ) from None
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        parts = [(arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")]
    elif {"x", "y"} <= arrays.keys() and len(arrays["x"]) == len(arrays["y"]) == TRAIN + TEST:
        x, y = arrays["x"], arrays["y"]
        parts = [(x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])]
    else:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UserError(f"--from {path}: it holds {found}; {_NPZ}")
    return _checked(path, *parts)


def _read_batches(path: Path, *, called: Path | None = None) -> Images:
    """The batches in ``path`` or in the folder of their usual name inside it."""
    inner = path / BATCHES
    folder = inner if inner.is_dir() else path
    called = called or path
    missing = [name for name in (*_TRAIN_FILES, "test_batch") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"--from {called}: no {missing[0]} in it; expected the files of {BATCHES}: "
            "data_batch_1 to data_batch_5 and test_batch"
        )
    batches = [_read_batch(folder / name) for name in _TRAIN_FILES]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return _checked(called, (images, labels), _read_batch(folder / "test_batch"))


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and labels of one file: rows of 3,072 values, channel by channel."""
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        rows, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
        return rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels
    except Exception as error:  # whatever bytes that are no such pickle lead to
        raise UserError(
            f"--from {path}: not a batch of CIFAR-10 ({first_line(error)}); expected a pickled "
            "dictionary with 'data' (n, 3072) uint8 and 'labels'"
        ) from None


class _ArraysOnly(pickle.Unpickler):
    """Loads containers, numbers and numpy arrays; nothing a file says is called besides."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]  # where it lives depends on numpy's version
    _ADMITTED = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        package = module.partition(".")[0]
        if package == "numpy" and name in self._ADMITTED:
            return self._RECONSTRUCT if name == "_reconstruct" else getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how newer pickles write bytes
            import codecs

            return codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")


def _checked(path: Path, *parts: tuple[np.ndarray, np.ndarray]) -> Images:
    """Training and test images, if they are images and labels; UserError if not."""
    parts = tuple((x, y[:, 0] if y.shape == (len(x), 1) else y) for x, y in parts)
    for x, y in parts:
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (SIDE, SIDE, 3) or not len(x):
            raise UserError(
                f"--from {path}: images are {x.shape} {x.dtype}; expected (n, 32, 32, 3) uint8"
            )
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise UserError(
                f"--from {path}: labels are {y.shape} {y.dtype} for {len(x):,} images; expected "
                "one integer each"
            )
        if y.min() < 0 or y.max() >= CLASSES:
            raise UserError(
                f"--from {path}: labels are {y.min()} to {y.max()}; expected 0 to {CLASSES - 1}"
            )
    (train, train_labels), (test, test_labels) = parts
    return Images(
        train=train,
        train_labels=train_labels.astype(np.uint8),
        test=test,
        test_labels=test_labels.astype(np.uint8),
    )
