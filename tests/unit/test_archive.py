"""Packed data is unpacked whole or refused in one line, whatever its bytes are.

``KNEE_TUNE_FUZZ=10000`` damages each kind of file that many times instead of a few.
"""

import io
import os
import pickle
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from knee_tune.errors import UserError
from knee_tune.tasks import archive
from knee_tune.tasks.archive import unpacked
from knee_tune.tasks.vision.cifar10_prepare import BATCHES, read_source
from tests.generated_images import generated_images, put_batches

Found = TypeVar("Found")

TIMES = int(os.environ.get("KNEE_TUNE_FUZZ", "60"))

CORPUS = {
    f"de-en/{name}": f"ein Satz aus {name}\n".encode() * 40
    for name in ("train.de", "train.en", "test.de")
}
IMAGES = generated_images(train=5, test=2)
ARRAYS = {
    "x_train": IMAGES.train,
    "y_train": IMAGES.train_labels,
    "x_test": IMAGES.test,
    "y_test": IMAGES.test_labels,
}


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked goes again."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))


def contents(path: Path) -> dict[str, bytes]:
    """The files of an archive by name."""
    with unpacked(path, expected="a corpus") as folder:
        files = [file for file in folder.rglob("*") if file.is_file()]
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def tar(path: Path, mode: str, files: dict[str, bytes] = CORPUS) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(
    path: Path, files: dict[str, bytes] = CORPUS, method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(path: Path) -> Path:
    return zipped(path, {f"{name}.npy": npy(array) for name, array in ARRAYS.items()})


CORPORA: dict[str, Callable[[Path], Path]] = {
    "tar": lambda folder: tar(folder / "a.tar", "w"),
    "tar.gz": lambda folder: tar(folder / "a.tgz", "w:gz"),
    "tar.bz2": lambda folder: tar(folder / "a.tar.bz2", "w:bz2"),
    "tar.xz": lambda folder: tar(folder / "a.tar.xz", "w:xz"),
    "zip": lambda folder: zipped(folder / "a.zip"),
    "zip by xz": lambda folder: zipped(folder / "a.zip", method=zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_archive_is_unpacked(kind: str, tmp_path: Path) -> None:
    assert contents(CORPORA[kind](tmp_path)) == CORPUS


def proper(said: str, path: Path) -> bool:
    """Whether it is one short line with the name of the file."""
    return str(path) in said and "\n" not in said and len(said) < 600


def damages(content: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, mostly where the structure is; sometimes a piece cut out or doubled."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        edge = min(len(changed), 600)
        place = draw.choice([draw.randrange(edge), -1 - draw.randrange(edge)])
        if draw.random() < 0.4:
            place = draw.randrange(len(changed))
        changed[place] ^= 1 << draw.randrange(8) if draw.random() < 0.7 else draw.randrange(1, 256)
    if draw.random() < 0.1:
        start, length = draw.randrange(len(changed)), draw.randrange(1, 2000)
        changed[start : start + length] = changed[start : start + length] * draw.choice([0, 2])
    return bytes(changed)


def survive(
    sound: Path, read: Callable[[Path], Found], same: Callable[[Found], bool], tmp_path: Path
) -> None:
    """Damage ``sound`` many times: it is refused properly, or read as if it were sound."""
    draw = random.Random(sound.name)
    content = sound.read_bytes()
    damaged = tmp_path / f"damaged-{sound.name}"
    refused = 0
    for _ in range(TIMES):
        damaged.write_bytes(damages(content, draw))
        said = None
        try:
            assert same(read(damaged))
        except UserError as error:
            said = str(error)
        assert said is None or proper(said, damaged)
        refused += said is not None
        assert not any((tmp_path / "scratch").iterdir())
    assert refused > TIMES // 3


@pytest.mark.parametrize("kind", CORPORA)
def test_a_damaged_archive_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    def same(found: dict[str, bytes]) -> bool:
        # A plain tar archive has checksums of its headers only.
        return kind == "tar" or found == CORPUS

    survive(CORPORA[kind](tmp_path), contents, same, tmp_path)


IMAGE_FILES: dict[str, Callable[[Path], Path]] = {
    "npz": lambda folder: npz(folder / "a.npz"),
    "batches": lambda folder: tar(
        folder / "a.tgz",
        "w:gz",
        {
            f"{BATCHES}/{file.name}": file.read_bytes()
            for file in put_batches(folder / "made", IMAGES).iterdir()
        },
    ),
}


@pytest.mark.parametrize("kind", IMAGE_FILES)
def test_damaged_images_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    survive(IMAGE_FILES[kind](tmp_path), read_source, IMAGES.same_as, tmp_path)


@pytest.mark.parametrize("kind", ["an array", "a batch"])
def test_damage_that_no_checksum_tells_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    """Whoever damages a file may pack it again."""
    draw = random.Random(kind)
    batches = {
        f"{BATCHES}/{file.name}": file.read_bytes()
        for file in put_batches(tmp_path / "made", IMAGES).iterdir()
    }
    arrays = {f"{name}.npy": npy(array) for name, array in ARRAYS.items()}
    path = tmp_path / "packed"
    for _ in range(TIMES):
        if kind == "an array":
            files = arrays | {"y_train.npy": damages(arrays["y_train.npy"], draw)}
            zipped(path, files, method=zipfile.ZIP_STORED)
        else:
            name = f"{BATCHES}/data_batch_2"
            tar(path, "w", batches | {name: damages(batches[name], draw)})
        said = None
        try:
            assert read_source(path).train.shape == IMAGES.train.shape
        except UserError as error:
            said = str(error)
        assert said is None or proper(said, path)


# What people would make to get in, or to fill a machine


def member(name: str = "a", kind: bytes = tarfile.REGTYPE, **other: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in other.items():
        setattr(made, key, value)
    return made


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    """A plain tar archive of headers without content."""
    headers = [each.tobuf(tarfile.GNU_FORMAT) for each in members]
    path.write_bytes(b"".join(headers) + bytes(10240))
    return path


def zip_of(path: Path, info: zipfile.ZipInfo, content: bytes = b"content") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, content)
    return path


def linked() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return info


def encrypted(path: Path) -> Path:
    content = bytearray(zipped(path).read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + flags] |= 1
    path.write_bytes(content)
    return path


def pax(path: Path, records: dict[str, str]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member(pax_headers=records))
    return path


def long_names(path: Path, count: int) -> Path:
    """Names of names of names."""
    return tar_of(path, *[member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=0)] * count)


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def wrong_checksum(path: Path) -> Path:
    content = bytearray(tar(path, "w:gz").read_bytes())
    content[-5] ^= 1
    return written(path, bytes(content))


def headers_damaged(path: Path) -> Path:
    content = bytearray(tar(path, "w").read_bytes())
    content[content.index(b"de-en/train.en")] ^= 1
    return written(path, bytes(content))


def claims(shape: str, descr: str = "'|u1'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 5


def npz_that_claims(path: Path, claim: bytes) -> Path:
    arrays = {f"{name}.npy": npy(array) for name, array in ARRAYS.items()}
    return zipped(path, arrays | {"y_train.npy": claim})


def batch_of(path: Path, pickled: bytes) -> Path:
    files = {f"{BATCHES}/data_batch_{number}": pickled for number in range(1, 6)}
    return tar(path, "w", files | {f"{BATCHES}/test_batch": pickled})


def nested(depth: int) -> list[object]:
    """Small in memory, two to the power of ``depth`` numbers if it is written out."""
    value: list[object] = [1, 1]
    for _ in range(depth):
        value = [value, value]
    return value


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda path: written(path, b""), "empty file"),
    "no archive": (lambda path: written(path, b"Haus\n" * 1000), "no readable archive"),
    "a path from the root": (lambda path: tar(path, "w", {"/a": b""}), "'/a' in it"),
    "a path out": (lambda path: tar(path, "w:gz", {"b/../../a": b""}), r"'b/../../a' in it"),
    "a zip path out": (lambda path: zipped(path, {"../a": b""}), r"'../a' in it"),
    "a zip path from the root": (lambda path: zipped(path, {"/a": b""}), "'/a' in it"),
    "a name with a zero": (lambda path: pax(path, {"path": "a\0b"}), "no readable archive"),
    "a name too long": (lambda path: tar(path, "w", {"a" * 300: b""}), "no readable archive"),
    "a link": (lambda path: tar_of(path, member(kind=tarfile.SYMTYPE, linkname="/etc")), "in it"),
    "a hard link": (lambda path: tar_of(path, member(kind=tarfile.LNKTYPE, linkname="b")), "in it"),
    "a device": (lambda path: tar_of(path, member(kind=tarfile.CHRTYPE)), "in it is no file"),
    "a pipe": (lambda path: tar_of(path, member(kind=tarfile.FIFOTYPE)), "in it is no file"),
    "a file with holes": (
        lambda path: pax(path, {"GNU.sparse.size": "9" * 12, "GNU.sparse.map": "0,0"}),
        "in it is no file",
    ),
    "a zip link": (lambda path: zip_of(path, linked()), "'link' in it is no file"),
    "encrypted": (encrypted, "encrypted"),
    "a huge member": (lambda path: tar_of(path, member(size=10**14)), "more than 4 GB"),
    "a huge member by pax": (lambda path: pax(path, {"size": "1" + "0" * 14}), "more than 4 GB"),
    "a negative size": (lambda path: pax(path, {"size": "-512"}), "no readable archive|than 4 GB"),
    "a huge header": (
        lambda path: tar_of(path, member(kind=tarfile.GNUTYPE_LONGNAME, size=2**33)),
        "a header in it claims 8,589,934,592 bytes",
    ),
    "headers of headers": (lambda path: long_names(path, 3000), "recursion"),
    "a wrong checksum": (wrong_checksum, "CRC check failed"),
    "a damaged header": (headers_damaged, "damaged or cut short"),
    "cut": (lambda path: cut(tar(path, "w"), 2048), "damaged or cut short|unexpected end"),
    "cut gzip": (lambda path: cut(tar(path, "w:gz"), -8), "end-of-stream"),
    "cut xz": (lambda path: cut(tar(path, "w:xz"), -8), "end-of-stream"),
    "more behind gzip": (
        lambda path: written(path, tar(path, "w:gz").read_bytes() + b"more"),
        "Not a gzipped file",
    ),
    "too many files": (
        lambda path: tar(path, "w:xz", {f"{n}/": b"" for n in range(51)}),
        "more than 50 files",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_MOST_MEMBERS", 50)
    make, said = HOSTILE[case]
    path = make(tmp_path / "hostile")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=said) as caught:
            contents(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert proper(str(caught.value), path)
    assert most < 1 << 25
    assert {each.name for each in tmp_path.iterdir()} == {"hostile", "scratch"}
    assert not any((tmp_path / "scratch").iterdir())


HOSTILE_IMAGES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "1e14 bytes": (
        lambda path: npz_that_claims(path, claims("(100000000000000,)")),
        "readable .npz",
    ),
    "many dimensions": (lambda path: npz_that_claims(path, claims("(1,)*9")), "readable .npz"),
    "a dimension below zero": (lambda path: npz_that_claims(path, claims("(-5,)")), "y_train|npz"),
    "no dimension": (lambda path: npz_that_claims(path, claims("()")), "labels are"),
    "objects": (lambda path: npz_that_claims(path, claims("(5,)", "'|O'")), "readable .npz"),
    "an endless item": (
        lambda path: npz_that_claims(path, claims("(1,)", "'|V2147483647'")),
        "readable .npz|labels are",
    ),
    "nested brackets": (lambda path: npz_that_claims(path, claims("(" * 60)), "readable .npz"),
    "a pickle where an array belongs": (
        lambda path: npz_that_claims(path, pickle.dumps([1])),
        "readable .npz",
    ),
    "a place in the memo": (
        lambda path: batch_of(path, b"\x80\x02}r\xff\xff\xff\x7f."),
        "puts an object at",
    ),
    "a long string": (
        lambda path: batch_of(path, b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a."),
        "data_batch_1: not a batch",
    ),
    "lists of lists": (
        lambda path: batch_of(path, pickle.dumps({b"data": nested(60), b"labels": [1]})),
        "a list where an array belongs",
    ),
    "a large array": (
        lambda path: batch_of(
            path,
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}, 2).replace(
                b"M\x00\x0c", b"J\xff\xff\xff\x7f", 1
            ),
        ),
        "data_batch_1: not a batch",
    ),
    "an array that is called": (
        lambda path: batch_of(path, b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR."),
        "data_batch_1: not a batch",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_IMAGES)
def test_hostile_images_are_refused(case: str, tmp_path: Path) -> None:
    make, said = HOSTILE_IMAGES[case]
    path = make(tmp_path / "hostile")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=said) as caught:
            read_source(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert proper(str(caught.value), path)
    assert most < 1 << 25


@pytest.mark.parametrize("kind", ["gzip", "xz", "zip", "one large member", "zip that lies"])
def test_what_unpacks_to_too_much_is_refused(kind: str, tmp_path: Path) -> None:
    """A few kilobytes that would be 6 MB, where 5 MB are allowed."""
    files = {f"{number}": bytes(600_000) for number in range(10)}
    if kind == "one large member":
        files = {"0": bytes(6_000_000)}
    path = tmp_path / "bomb"
    match kind:
        case "gzip" | "one large member":
            tar(path, "w:gz", files)
        case "xz":
            tar(path, "w:xz", files)
        case _:
            zipped(path, files)
    if kind == "zip that lies":
        path.write_bytes(path.read_bytes().replace(struct.pack("<I", 600_000), b"\1\0\0\0"))

    with (
        pytest.raises(UserError) as caught,
        unpacked(path, expected="little", largest=5_000_000),
    ):
        raise AssertionError
    said = str(caught.value)
    assert proper(said, path)
    if kind == "zip that lies":
        assert "CRC" in said
    else:
        assert "more than 0.005 GB; if that is right, unpack it by hand" in said


def test_a_file_in_an_archive_is_named_as_one(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tgz", "w:gz")
    with (
        pytest.raises(UserError, match=rf"^{path}/de-en/train.de: line 3 is not UTF-8$"),
        unpacked(path, expected="a corpus") as folder,
    ):
        raise UserError(f"{folder}/de-en/train.de: line 3 is not UTF-8")


def test_a_full_disk_is_not_the_archives_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: io.BufferedWriter, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = tar(tmp_path / "a.tgz", "w:gz")
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        contents(path)
