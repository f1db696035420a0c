"""CIFAR-10 from files: what is read, and how a file that is something else is refused."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.vision import cifar10_prepare
from knee_tune.tasks.vision.cifar10_prepare import prepare, read_source
from knee_tune.tasks.vision.images import map_images, read_manifest
from tests.generated_images import generated_images, put_archive, put_batches

IMAGES = generated_images(train=50, test=10)


def arrays(**other: Any) -> dict[str, Any]:
    return {
        "x_train": IMAGES.train,
        "y_train": IMAGES.train_labels,
        "x_test": IMAGES.test,
        "y_test": IMAGES.test_labels,
    } | other


def npz(path: Path, **content: Any) -> Path:
    np.savez(path, **content)
    return path


def batches(folder: Path) -> Path:
    return put_batches(folder, IMAGES)


def archive(folder: Path) -> Path:
    return put_archive(folder, IMAGES)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(lambda folder: npz(folder / "a.npz", **arrays()), id="npz"),
        pytest.param(batches, id="batches"),
        pytest.param(lambda folder: batches(folder).parent, id="folder around the batches"),
        pytest.param(archive, id="tar"),
        pytest.param(
            lambda folder: npz(
                folder / "keras.npz", **arrays(y_train=IMAGES.train_labels[:, None].astype(int))
            ),
            id="labels in a column",
        ),
    ],
)
def test_every_form_gives_the_same_images(source: Callable[[Path], Path], tmp_path: Path) -> None:
    assert read_source(source(tmp_path)).same_as(IMAGES)


def test_one_array_is_cut_where_the_training_images_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10_prepare, "TRAIN", 50)
    monkeypatch.setattr(cifar10_prepare, "TEST", 10)
    x = np.concatenate([IMAGES.train, IMAGES.test])
    y = np.concatenate([IMAGES.train_labels, IMAGES.test_labels])

    assert read_source(npz(tmp_path / "all.npz", x=x, y=y)).same_as(IMAGES)


class Call:
    """A pickle that calls something when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(folder: Path) -> Path:
    inner = batches(folder)
    mark = str(folder / "called")
    (inner / "data_batch_3").write_bytes(pickle.dumps(Call(os.mkdir, mark), protocol=2))
    return inner


def without_a_batch(folder: Path) -> Path:
    inner = batches(folder)
    (inner / "data_batch_4").unlink()
    return inner


def damaged(folder: Path) -> Path:
    path = npz(folder / "cut.npz", **arrays())
    path.write_bytes(path.read_bytes()[:-2000] + b"x" * 10)
    return path


def text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no images")
    return folder / "notes.txt"


def pickled_array(folder: Path) -> Path:
    return npz(folder / "objects.npz", **arrays(y_train=np.array([{}] * 50)))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda folder: folder / "no.npz", r"no\.npz: no such file or folder"),
    "text": (text, r"notes\.txt: no readable archive.*expected an \.npz file"),
    "damaged npz": (damaged, r"cut\.npz: "),
    "pickled objects": (pickled_array, r"objects\.npz: not a readable \.npz file"),
    "other arrays": (
        lambda folder: npz(folder / "o.npz", images=IMAGES.train),
        r"o\.npz: it holds images \(50, 32, 32, 3\); expected x \(60000",
    ),
    "too few in one array": (
        lambda folder: npz(folder / "f.npz", x=IMAGES.train, y=IMAGES.train_labels),
        r"f\.npz: it holds x \(50,.*x_train, y_train, x_test and y_test",
    ),
    "floats": (
        lambda folder: npz(folder / "f.npz", **arrays(x_test=IMAGES.test / 255)),
        r"images are \(10, 32, 32, 3\) float64; expected \(n, 32, 32, 3\) uint8",
    ),
    "channels first": (
        lambda folder: npz(folder / "c.npz", **arrays(x_test=IMAGES.test.transpose(0, 3, 1, 2))),
        r"images are \(10, 3, 32, 32\) uint8; expected",
    ),
    "labels missing": (
        lambda folder: npz(folder / "l.npz", **arrays(y_train=IMAGES.train_labels[:-1])),
        r"labels are \(49,\) uint8 for 50 images",
    ),
    "another class": (
        lambda folder: npz(folder / "c.npz", **arrays(y_train=IMAGES.train_labels + 1)),
        r"labels are 1 to 10; expected 0 to 9",
    ),
    "a batch is missing": (without_a_batch, r"no data_batch_4 in it; expected the files of"),
    "a pickle that calls": (hostile, r"data_batch_3: not a batch.*mkdir, which is not admitted"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_cifar10_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    source, said = REFUSED[case]
    path = source(tmp_path)

    with pytest.raises(UserError, match=said) as error:
        prepare(data_root=tmp_path / "data", from_path=path)

    assert "\n" not in str(error.value)
    assert not (tmp_path / "called").exists()
    assert not (tmp_path / "data").exists()


def test_a_prepared_set_is_known_again_and_replaced_only_by_force(tmp_path: Path) -> None:
    source, root = npz(tmp_path / "a.npz", **arrays()), tmp_path / "data"
    first = prepare(data_root=root, from_path=source)
    again = prepare(data_root=root, from_path=batches(tmp_path))  # the same images
    other = npz(tmp_path / "b.npz", **arrays(x_test=IMAGES.test[::-1]))

    with pytest.raises(UserError, match=r"prepared from other images.*`name`.*`force`"):
        prepare(data_root=root, from_path=other)
    forced = prepare(data_root=root, from_path=other, force=True)

    assert (first.reused, again.reused, forced.reused) == (False, True, False)
    assert prepare(data_root=root).reused  # nothing is downloaded
    assert first.fingerprint == again.fingerprint != forced.fingerprint
    assert first.images == {"train": 50, "test": 10}
    assert [path.name for path in root.iterdir()] == ["cifar10"]


def test_a_set_is_mapped_not_read(tmp_path: Path) -> None:
    folder = prepare(
        data_root=tmp_path, from_path=npz(tmp_path / "a.npz", **arrays()), name="mine"
    ).folder
    found = map_images(folder, read_manifest(folder, task="cifar10", verify=True))

    assert isinstance(found.train, np.memmap)
    assert found.same_as(IMAGES)


def test_a_changed_set_is_noticed(tmp_path: Path) -> None:
    folder = prepare(data_root=tmp_path, from_path=npz(tmp_path / "a.npz", **arrays())).folder
    with (folder / "images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")

    with pytest.raises(UserError, match=r"images\.npy: missing or changed.*--force"):
        read_manifest(folder, task="cifar10", verify=True)
