"""A store that machines share without sharing a disk: a folder, a bucket, whatever fsspec opens.

``<root>/<place>/parts/<name>-<attempt>/<file>`` is what an entry consists of. Every attempt to put
one has a folder of its own, so nothing is ever overwritten. ``<root>/<place>/<name>.json``, its
manifest with the checksums, is put last and only if there is none: with it the entry is there.
Whatever ends a process in between leaves parts that nobody reads. An entry is dropped manifest
first. There is no rename and no lock: of any number of writers one wins, and the others take back
what they put.

This file alone knows fsspec, and imports it when a store is opened.
"""

import errno
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError, field_validator

from knee_tune.config.recipe import Spec
from knee_tune.errors import UserError, first_line, one_line
from knee_tune.files import checksum, draft_of
from knee_tune.urls import shown_url

ABANDONED = timedelta(days=1)
"""Age from which parts without a manifest are nobody's: an upload of hours is still one."""

_BUCKETS = ("s3", "s3a", "gs", "gcs")
"""Schemes whose URLs hold no credentials: what looks like some is a mistake, and stays unseen."""

_STAMP = "%Y%m%dT%H%M%S"

_ONE_AT_A_TIME = threading.Lock()
"""Of this process: what is not asked over a network does not look and write in one go."""


class StoreError(Exception):
    """The store did not do what was asked; the text says why, in a few words."""


class DamagedEntryError(StoreError):
    """An entry is there and no good; the text names the object."""


class StoredFile(Spec):
    """One file of an entry."""

    size: int
    sha256: str


class Manifest(Spec):
    """What an entry consists of."""

    attempt: str
    """The folder with its parts is named after it."""
    files: dict[str, StoredFile]
    made: datetime
    note: dict[str, Any] | None = None
    """What the entry is, for people."""

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, StoredFile]) -> dict[str, StoredFile]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"{name!r} is no name of a file of an entry")
        return files

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())


def open_store(url: str, *, make: bool = True, home: Path | None = None) -> "ObjectStore":
    """Open the store at ``url`` (a folder, ``file://``, ``s3://``, ``gs://`` ...) and try it out.

    A folder is made if its parent is there and ``make`` says so; it may not be ``home``. UserError,
    without secrets, where the package for such a URL is missing, the bucket is, or nothing may be
    written there.
    """
    shown = one_line(shown_url(url), longest=200)
    if not url:
        raise UserError("`shared`: it is empty; name a folder, or a URL as in s3://bucket/folder")
    scheme, _, rest = url.partition("://")
    if scheme in _BUCKETS and ("@" in rest or "?" in rest):
        raise UserError(
            f"`shared` {shown}: a URL of a bucket has nothing but bucket and folder; credentials "
            "and endpoint belong in the environment, as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
        )
    try:
        import fsspec  # slow, and seldom needed
        from fsspec.implementations.local import LocalFileSystem

        fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        extra = "pip install 'knee-tune[s3]'" if url.startswith("s3") else "install it"
        raise UserError(f"`shared` {shown}: {first_line(error)}; {extra}") from None
    except Exception as error:  # of whichever package opens such URLs
        raise UserError(
            f"`shared` {shown}: {_words(error)}; name a folder, or a URL as in s3://bucket/folder"
        ) from None
    store = ObjectStore(fs, root, shown=shown, is_local=isinstance(fs, LocalFileSystem))
    try:
        if store.folder is not None and home is not None and store.folder == home.absolute():
            raise UserError(f"`shared` {shown}: is the home itself; name a folder of its own")
        store.try_out(make=make)
    except StoreError as error:
        raise UserError(
            f"`shared` {shown}: {error}; name a folder or a bucket that is there and that you may "
            "read and write"
        ) from None
    return store


class ObjectStore:
    """Entries of files, in places below one URL. Methods raise StoreError, and may be slow."""

    def __init__(self, fs: Any, root: str, *, shown: str, is_local: bool) -> None:
        self._fs, self._root, self._is_local = fs, root.rstrip("/"), is_local
        self.url = shown
        """As it may be shown."""
        self.exclusive = True
        """Whether it creates a manifest only if there is none; known once it was tried out. Where
        not, of two writers at the same moment the later one counts."""

    @property
    def folder(self) -> Path | None:
        """Where it is, if it is a folder of this machine."""
        return Path(self._root) if self._is_local else None

    def try_out(self, *, make: bool) -> None:
        """Write, create, read and delete a small object. StoreError if one of these fails.

        ``make``: its folder, too, if it is one.
        """
        path = f"{self._root}/.tried-{uuid.uuid4().hex}"
        try:
            with _asking():
                if self._is_local and make:
                    Path(self._root).mkdir(exist_ok=True)
                try:
                    self._create(path, b"1")
                except (TypeError, ValueError, NotImplementedError, OSError) as error:
                    if isinstance(error, OSError) and error.errno != errno.ENOSYS:
                        raise
                    self.exclusive = False
                    self._create(path, b"1")
                with suppress(Exception):  # how it says so differs
                    self._create(path, b"2")
                self.exclusive = self.exclusive and self._fs.cat_file(path) == b"1"
                self._fs.rm_file(path)
        except (FileNotFoundError, FileExistsError) as error:
            raise StoreError(_words(error)) from error

    def names(self, place: str) -> list[str]:
        """The entries of a place."""
        with _asking():
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(f"{self._root}/{place}", detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def manifest(self, place: str, name: str) -> Manifest | None:
        """What the entry consists of; None if it is not there."""
        path = self._manifest(place, name)
        try:
            with _asking():
                content = self._fs.cat_file(path)
        except FileNotFoundError:
            return None
        try:
            return Manifest.model_validate_json(content)
        except ValidationError:
            raise DamagedEntryError(f"{self._shown(path)} is no manifest") from None

    def has(self, place: str, name: str) -> bool:
        """Whether an entry is there, sound or not."""
        with _asking():
            return bool(self._fs.exists(self._manifest(place, name)))

    def put(
        self,
        place: str,
        name: str,
        files: Mapping[str, Path],
        *,
        sums: Mapping[str, str] | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> bool:
        """Put an entry, unless it is there; whether it is ours.

        OSError for a file that is gone. ValueError for one that does not match its
        SHA-256 in ``sums``.
        """
        try:
            if self.manifest(place, name) is not None:
                return False
        except DamagedEntryError:
            self.drop(place, name)
        attempt = f"{datetime.now(UTC).strftime(_STAMP)}-{uuid.uuid4().hex[:8]}"
        kept = {
            file: StoredFile(size=path.stat().st_size, sha256=checksum(path))
            for file, path in files.items()
        }
        for file, expected in (sums or {}).items():
            if kept[file].sha256 != expected:
                raise ValueError(f"{files[file]} does not match its checksum")
        manifest = Manifest(
            attempt=attempt,
            files=kept,
            made=datetime.now(UTC),
            note=None if note is None else dict(note),
        )
        parts = self._parts(place, name, attempt)
        ours = False
        try:
            with _asking():
                for file, path in files.items():
                    self._mkdir(f"{parts}/{file}")
                    self._fs.put_file(str(path), f"{parts}/{file}")
            ours = self._commit(place, name, manifest)
        finally:
            if not ours:
                self._remove(parts)
        return ours

    def get(self, place: str, name: str, into: Path) -> bool:
        """Fetch the files of an entry into the folder ``into``; False if it is not there.

        DamagedEntryError for an entry that is no good, OSError for the disk of ``into``.
        """
        manifest = self.manifest(place, name)
        if manifest is None:
            return False
        parts = self._parts(place, name, manifest.attempt)
        for file, kept in manifest.files.items():
            target = into / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with _asking():
                    self._fs.get_file(f"{parts}/{file}", str(target))
                sound = target.stat().st_size == kept.size and checksum(target) == kept.sha256
            except FileNotFoundError:
                if not into.is_dir():
                    raise
                if self.manifest(place, name) != manifest:
                    return False  # dropped meanwhile
                raise DamagedEntryError(f"{self._shown(parts)}/{file} is missing") from None
            if not sound:
                raise DamagedEntryError(f"{self._shown(parts)}/{file} does not match its checksum")
        return True

    def drop(self, place: str, name: str) -> None:
        """Remove an entry, if it is there. Who is fetching it finds that it is gone."""
        try:
            manifest = self.manifest(place, name)
        except DamagedEntryError:
            manifest = None  # its parts are swept some day
        with _asking(), suppress(FileNotFoundError):
            self._fs.rm_file(self._manifest(place, name))
        if manifest is not None:
            self._remove(self._parts(place, name, manifest.attempt))

    def entries(self, below: str) -> Iterator[tuple[str, str, Manifest]]:
        """Place, name and manifest of every sound entry of the places in ``below``."""
        found = self._found(below)
        manifests = [path for path in found if path.endswith(".json") and "/parts/" not in path]
        with _asking():
            contents = self._fs.cat(manifests, on_error="omit") if manifests else {}
        for path, content in sorted(contents.items()):
            place, _, name = self._inside(path).rpartition("/")
            with suppress(ValidationError):
                yield place, name.removesuffix(".json"), Manifest.model_validate_json(content)

    def sweep(self, below: str) -> int:
        """Remove the parts of old attempts that did not become entries; how many attempts."""
        kept = {
            f"{place}/parts/{name}-{manifest.attempt}"
            for place, name, manifest in self.entries(below)
        }
        attempts = {
            self._inside(path).rpartition("/parts/")[0]
            + "/parts/"
            + path.rpartition("/parts/")[2].partition("/")[0]
            for path in self._found(below)
            if "/parts/" in path
        }
        abandoned = [each for each in attempts - kept if _age(each) > ABANDONED]
        for each in abandoned:
            self._remove(f"{self._root}/{each}")
        return len(abandoned)

    def _commit(self, place: str, name: str, manifest: Manifest) -> bool:
        """Put the manifest, unless there is one; whether it is ours.

        Whatever an answer said, or was lost: what lies there decides. A request that is repeated
        meets what it wrote itself.
        """
        path = self._manifest(place, name)
        try:
            with _asking():
                self._create(path, manifest.model_dump_json().encode())
        except (FileExistsError, StoreError) as error:
            there = self.manifest(place, name)
            if there is None:
                raise StoreError(str(error)) from error
            return there.attempt == manifest.attempt
        return True

    def _create(self, path: str, content: bytes) -> None:
        """Write a small object; FileExistsError if there is one already.

        A file gets its name by a link once it is whole, for a reader might see half of it. S3 gets
        ``If-None-Match: *``, Google ``ifGenerationMatch: 0``, Azure a lease of its own.
        """
        if self._is_local:
            draft = draft_of(Path(path))
            draft.write_bytes(content)
            try:
                os.link(draft, path)
            finally:
                draft.unlink()
            return
        with nullcontext() if self._fs.async_impl else _ONE_AT_A_TIME:
            if self.exclusive:
                self._fs.pipe_file(path, content, mode="create")
            elif self._fs.exists(path):
                raise FileExistsError(path)
            else:
                self._fs.pipe_file(path, content)

    def _found(self, below: str) -> list[str]:
        with _asking():
            self._fs.invalidate_cache()
            return [str(path) for path in self._fs.find(f"{self._root}/{below}")]

    def _mkdir(self, path: str) -> None:
        """Make the folder of a file, where folders are something."""
        if self._is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)

    def _remove(self, path: str) -> None:
        """Delete what is below ``path``, as far as that is possible: nobody reads it any more."""
        with suppress(Exception):
            self._fs.invalidate_cache()
            self._fs.rm(path, recursive=True)

    def _manifest(self, place: str, name: str) -> str:
        return f"{self._root}/{place}/{name}.json"

    def _parts(self, place: str, name: str, attempt: str) -> str:
        return f"{self._root}/{place}/parts/{name}-{attempt}"

    def _inside(self, path: str) -> str:
        return path.removeprefix(self._root).strip("/")

    def _shown(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{self._inside(path)}"


@contextmanager
def _asking() -> Iterator[None]:
    """Make a StoreError of what a store's package raises, which may be anything.

    What was found to be there already, or not to be, is an answer.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, StoreError):
        raise
    except Exception as error:
        raise StoreError(_words(error)) from error


def _words(error: Exception) -> str:
    """What a store's package said, in one line and without secrets."""
    match error:
        case PermissionError():
            return f"no permission ({first_line(error)})"
        case FileNotFoundError():
            return (
                f"no such bucket or folder ({one_line(error.strerror or str(error), longest=200)})"
            )
        case TimeoutError():
            return "no answer in time"
        case OSError() if error.strerror:
            return one_line(error.strerror, longest=200)
    return one_line(first_line(error), longest=200)


def _age(attempt: str) -> timedelta:
    """How long ago an attempt began, as its name has it; none at all if it does not."""
    stamp = attempt.rpartition("-")[0].rpartition("-")[2]
    try:
        began = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return timedelta()
    return datetime.now(UTC) - began
