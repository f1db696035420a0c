"""Trunk checkpoints and finished runs of other homes: fetched before a run, put after it.

The home's own folders stay as they are, and runs read nothing else: the store fills them, and gets
what is new in them from a thread of the driver, which finds there what rank 0 wrote. A store that
is slow, broken or away costs steps, never a run: people are told in one line, and it is left alone
for a while.
"""

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from knee_tune.errors import MachineError, first_line
from knee_tune.files import draft_of, remove
from knee_tune.plans.identity import shared_steps
from knee_tune.plans.plan import (
    TrainPlan,
    checkpoint_path,
    checkpoint_paths,
    checkpoint_step,
)
from knee_tune.runs.locks import POLL_SECONDS
from knee_tune.runs.object_store import DamagedEntryError, ObjectStore, StoreError
from knee_tune.runs.run_cache import RECORD, Sealed
from knee_tune.runs.trunks import (
    Cleared,
    TrunkCheckpoint,
    TrunkEntry,
    TrunkNote,
    read_note,
    to_drop,
)
from knee_tune.schedules import Exploring

TRUNKS, RUNS = "trunks", "runs"
"""Where entries are in the store: below the keys of trunks, and of runs."""

CHECKPOINT_MANIFEST = "manifest.json"
"""In a checkpoint's folder, with checksums. Its own module, which calls it so, imports torch."""

_RUN = RECORD.removesuffix(".json")
"""What the one entry of a run is called."""

STALLED_SECONDS = 60.0
"""How long a store may give nothing before it is not waited for any more."""

PAUSE_SECONDS = 60.0
"""How long a store that failed is left alone."""

LOOK_SECONDS = 2.0
"""Between two looks for what another driver, who trains the same trunk, has put."""

QUIET_SECONDS = 2.0
"""How long the end of a command waits before it says so."""

log = logging.getLogger(__name__)

T = TypeVar("T")

OnLine = Callable[[str], None]

OnLife = Callable[[], None]
"""Called often while there is nothing to do but wait; what it raises ends the wait."""

Claim = Callable[[str], AbstractContextManager[object] | None]
"""Claims what is named against all drivers of a study; None if another one has it."""


def _no_claim(name: str) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """An entry to be put, from files of the home that may be gone by then."""

    place: str
    name: str
    folder: Path
    on_line: OnLine = field(repr=False)


class Sharing:
    """What the runs of one command share with other homes, through ``store``.

    ``claim``: how drivers with different homes keep from training one trunk at the same time; where
    they cannot, they train it twice, and the first checkpoint of a step stays. ``limit``: bytes
    that trunk checkpoints may take in the store; None: any. Usable by several threads.
    """

    def __init__(
        self, store: ObjectStore, *, claim: Claim = _no_claim, limit: int | None = None
    ) -> None:
        self._store, self._claim, self._limit = store, claim, limit
        self._jobs: queue.SimpleQueue[_Upload | Callable[[], None] | None] = queue.SimpleQueue()
        self._known: set[tuple[str, str]] = set()
        """Entries that are in the store, or on their way."""
        self._left: list[_Upload] = []
        """What could not be put: it is tried again once the store answers, and at the end."""
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._silent_until = 0.0
        self._said = ""

    def fetch_run(self, folder: Path, *, on_line: OnLine, on_life: OnLife) -> None:
        """Fetch the record of the finished run whose checkpoint folder is ``folder``.

        With its weights, if the home has none. The folder is named after the run's key.
        """
        place = f"{RUNS}/{folder.name}"
        if self._silent or (folder / RECORD).is_file():
            return
        with self._spared(on_line):
            if not self._asked(lambda: self._store.has(place, _RUN), on_life=on_life):
                return
            self._known.add((place, _RUN))
            folder.mkdir(exist_ok=True)
            with self._fetched(
                place, _RUN, folder / RECORD, on_line=on_line, on_life=on_life
            ) as draft:
                if draft is not None:
                    _move_run(draft, folder)

    def put_run(self, folder: Path, *, on_line: OnLine) -> None:
        """Put the record of a finished run, with its weights, in the background."""
        self._put(_Upload(place=f"{RUNS}/{folder.name}", name=_RUN, folder=folder, on_line=on_line))

    @contextmanager
    def trunk_alone(
        self,
        plan: TrainPlan,
        *,
        unless: Callable[[], bool],
        meanwhile: OnLife,
        on_line: OnLine,
        on_life: OnLife,
    ) -> Iterator[None]:
        """Fetch the state to start from, and keep drivers elsewhere from training this trunk.

        There is no need for that if ``unless()``: as the home has the state where the run leaves
        its trunk. On the way out the trunk's checkpoints are put, and then others may go on.
        """
        assert plan.trunk is not None
        leaves = plan.trunk.checkpoint_steps[-1]
        fetch = partial(self._fetch_trunk, plan, on_line=on_line, on_life=on_life)
        looked = -math.inf
        with ExitStack() as claim:
            while not unless():
                taken = self._claim(f"trunk-{plan.trunk.key}")
                if taken is not None:
                    claim.enter_context(taken)
                    fetch()
                    break
                if time.monotonic() - looked >= LOOK_SECONDS:
                    fetch(above=leaves - 1)  # nothing lower serves while another one trains it
                    looked = time.monotonic()
                    continue
                meanwhile()
                time.sleep(POLL_SECONDS)
            try:
                yield
            finally:
                self.put_trunk(plan, on_line=on_line)
                self._queue(claim.pop_all().close)

    def put_trunk(self, plan: TrainPlan, *, on_line: OnLine) -> None:
        """Put what the home has of a run's trunk, in the background."""
        assert plan.trunk is not None
        place = f"{TRUNKS}/{plan.trunk.key}"
        for path in reversed(checkpoint_paths(plan.trunk.folder)):
            name = f"{checkpoint_step(path):08d}"
            self._put(_Upload(place=place, name=name, folder=path, on_line=on_line))

    def close(self, patience: float | None = None) -> None:
        """Wait until everything is put, for ``patience`` seconds at most; say what is not."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._jobs.put(None)
        soon = QUIET_SECONDS if patience is None else min(QUIET_SECONDS, patience)
        thread.join(soon)
        if thread.is_alive():
            log.warning("%s: waiting for what is still to be put there ...", self._store.url)
            thread.join(None if patience is None else patience - soon)
        late = len(self._left) + thread.is_alive()
        with suppress(queue.Empty):
            while True:
                match self._jobs.get_nowait():
                    case _Upload():
                        late += 1
                    case None:
                        self._jobs.put(None)  # for the thread, which is still at work
                        break
                    case release:
                        release()
        if late:
            log.warning(
                "%s: %d checkpoints and records could not be put there; whatever command meets "
                "them next in this home tries again",
                self._store.url,
                late,
            )

    def _fetch_trunk(
        self, plan: TrainPlan, *, above: int = 0, on_line: OnLine, on_life: OnLife
    ) -> None:
        """Fetch the highest state ``above`` a step that the run may start from.

        Not where the home has one as high.
        """
        trunk, schedule = plan.trunk, plan.schedule
        assert trunk is not None
        assert isinstance(schedule, Exploring)
        place = f"{TRUNKS}/{trunk.key}"
        if self._silent:
            return
        with self._spared(on_line):
            names = self._asked(lambda: self._store.names(place), on_life=on_life)
            self._known.update((place, name) for name in names)
            stored = {int(name) for name in names if name.isdecimal()}
            here = {checkpoint_step(path) for path in checkpoint_paths(trunk.folder)}
            steps = shared_steps(
                schedule, stored | here, plan.evaluation_steps(), every=plan.steps_per_evaluation
            )
            own = map(checkpoint_step, checkpoint_paths(plan.checkpoint_dir))
            have = max([above, *own, *here.intersection(steps)])
            for step in sorted(stored.intersection(steps), reverse=True):
                if step <= have:
                    return
                trunk.folder.mkdir(exist_ok=True)
                target = checkpoint_path(trunk.folder, step=step)
                with self._fetched(
                    place, f"{step:08d}", target, on_line=on_line, on_life=on_life
                ) as draft:
                    if draft is not None:
                        draft.rename(target)
                        return

    @contextmanager
    def _fetched(
        self, place: str, name: str, target: Path, *, on_line: OnLine, on_life: OnLife
    ) -> Iterator[Path | None]:
        """Yield a folder beside ``target`` with the entry's files; None if it cannot be had."""
        draft = draft_of(target)
        draft.mkdir()
        try:
            there = self._fetch(place, name, draft, on_line=on_line, on_life=on_life)
            yield draft if there else None
        finally:
            remove(draft)

    def _fetch(
        self, place: str, name: str, draft: Path, *, on_line: OnLine, on_life: OnLife
    ) -> bool:
        """An entry that is no good is named and dropped: who trains it again puts it again."""
        try:
            return self._asked(
                lambda: self._store.get(place, name, draft), on_life=on_life, grows=draft
            )
        except DamagedEntryError as error:
            on_line(f"{error}: no good, it is trained again")
            self._asked(lambda: self._store.drop(place, name), on_life=on_life)
            self._known.discard((place, name))
            return False

    def _asked(self, call: Callable[[], T], *, on_life: OnLife, grows: Path | None = None) -> T:
        """Ask the store in a thread, for Ctrl-C comes through meanwhile.

        StoreError also where nothing comes for long: ``grows`` is the folder that it fills.
        """
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="shared", daemon=True).start()
        size, since = 0, time.monotonic()
        while not wait([answer], timeout=POLL_SECONDS).done:
            on_life()
            if grows is not None and (now := _blocks(grows)) > size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > STALLED_SECONDS:
                raise StoreError(f"nothing came for {STALLED_SECONDS:g} s")
        return answer.result()

    @contextmanager
    def _spared(self, on_line: OnLine) -> Iterator[None]:
        """What fails within, of the store or of the home, is said, and that is all."""
        try:
            yield
        except (StoreError, OSError) as error:
            self._failed(error, on_line)

    @property
    def _silent(self) -> bool:
        """Whether the store failed just now, and is left alone."""
        return time.monotonic() < self._silent_until

    def _failed(self, error: Exception, on_line: OnLine) -> None:
        self._silent_until = time.monotonic() + PAUSE_SECONDS
        if str(error) != self._said:  # once for as long as it lasts
            self._said = str(error)
            on_line(f"{self._store.url}: {first_line(error)}; training goes on without it")

    def _put(self, upload: _Upload) -> None:
        if (upload.place, upload.name) not in self._known:
            self._known.add((upload.place, upload.name))
            self._queue(upload)

    def _queue(self, job: _Upload | Callable[[], None]) -> None:
        self._jobs.put(job)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="put", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not isinstance(job, _Upload):
                job()
            elif self._silent or not self._upload(job):
                self._left.append(job)
            elif self._left:
                for each in self._left:
                    self._jobs.put(each)
                self._left.clear()
        while self._left and self._upload(self._left[0]):
            del self._left[0]
        if self._limit is not None and not self._left:
            with suppress(StoreError, OSError):
                shrink(self._store, limit=self._limit)

    def _upload(self, upload: _Upload) -> bool:
        """Put an entry; False if the store did not take it."""
        try:
            files, sums, note = _content(upload)
            self._store.put(upload.place, upload.name, files, sums=sums, note=note)
        except StoreError as error:
            with suppress(MachineError):  # the home is gone: whoever trains says so
                self._failed(error, upload.on_line)
            return False
        except (OSError, ValueError, LookupError, TypeError):
            # Dropped from the home meanwhile, or no good there: the next run sees to that.
            self._known.discard((upload.place, upload.name))
            return True
        self._said = ""
        return True


def _content(upload: _Upload) -> tuple[dict[str, Path], dict[str, str], dict[str, Any] | None]:
    """Files of an entry, their checksums as far as they are known, and what it is."""
    folder = upload.folder
    if upload.name == _RUN:
        record = Sealed.model_validate_json((folder / RECORD).read_bytes()).record
        sums = {weights.name: weights.sha256 for weights in record.weights}
        return {name: folder / name for name in (*sums, RECORD)}, sums, None
    files = {path.name: path for path in folder.iterdir()}
    sums = dict(json.loads(files[CHECKPOINT_MANIFEST].read_bytes())["sha256"])
    note = read_note(folder.parent / "trunk.json", TrunkNote)
    return files, sums, None if note is None else note.model_dump(mode="json")


def _move_run(draft: Path, folder: Path) -> None:
    """Move the files of a run from one folder to another, the record last: it speaks of them."""
    files = [path for path in draft.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda file: file.name == RECORD):
        target = folder / file.relative_to(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _blocks(folder: Path) -> int:
    """What the files of a folder take on the disk by now."""
    try:
        return sum(path.stat().st_blocks for path in folder.rglob("*"))
    except OSError:
        return 0  # one got another name just now


def stored_trunks(store: ObjectStore) -> list[TrunkEntry]:
    """Every trunk in the store, the one that got a checkpoint last first. StoreError."""
    found = sorted(store.entries(TRUNKS), key=lambda entry: entry[:2])
    trunks = []
    for place, group in groupby(found, key=lambda entry: entry[0]):
        entries = [(name, manifest) for _, name, manifest in group if name.isdecimal()]
        if entries:
            newest = max((manifest for _, manifest in entries), key=lambda each: each.made)
            trunks.append(
                TrunkEntry(
                    key=place.rpartition("/")[2],
                    note=_note(newest.note),
                    used=newest.made,
                    sizes={int(name): manifest.size for name, manifest in entries},
                )
            )
    return sorted(trunks, key=lambda trunk: trunk.used, reverse=True)


def shrink(store: ObjectStore, *, limit: int) -> int:
    """Drop trunk checkpoints until they take at most ``limit`` bytes; how many. StoreError.

    By the rule of the home's own (:func:`to_drop`), ``idle`` counting the trunks that got a
    checkpoint since. Nobody is asked: a run whose trunk goes away trains it again.
    """
    trunks = stored_trunks(store)
    if sum(trunk.size for trunk in trunks) <= limit:
        return 0
    dropped = to_drop(
        (
            TrunkCheckpoint(trunk=trunk.key, step=step, size=size, idle=idle)
            for idle, trunk in enumerate(trunks)
            for step, size in trunk.sizes.items()
        ),
        limit=limit,
    )
    for checkpoint in dropped:
        store.drop(f"{TRUNKS}/{checkpoint.trunk}", f"{checkpoint.step:08d}")
    return len(dropped)


def clear(
    store: ObjectStore, *, task: str | None = None, older_than: timedelta | None = None
) -> Cleared:
    """Drop the trunks of ``task`` that got no checkpoint for ``older_than`` (None: any).

    With them goes what interrupted uploads left behind a day ago or earlier. StoreError.
    """
    since = datetime.now(UTC) - (older_than or timedelta())
    removed = []
    for trunk in stored_trunks(store):
        of_task = task is None or (trunk.note is not None and trunk.note.task == task)
        if of_task and trunk.used <= since:
            for step in trunk.sizes:
                store.drop(f"{TRUNKS}/{trunk.key}", f"{step:08d}")
            removed.append(trunk)
    for below in (TRUNKS, RUNS):
        store.sweep(below)
    return Cleared(removed=tuple(removed), in_use=())


def _note(note: dict[str, Any] | None) -> TrunkNote | None:
    try:
        return TrunkNote.model_validate(note)
    except ValidationError:
        return None
