"""A study that compares: every row of a published table, trained with several random seeds."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack

from knee_tune.commands.extra_runs import EndedRun, ExtraRun, train_extra_runs
from knee_tune.commands.opened import OpenedStudy
from knee_tune.errors import MachineError, UserError
from knee_tune.plans.planner import in_order, trunk_of
from knee_tune.records.study import ComparedRun
from knee_tune.schedules import Exploring, Phased
from knee_tune.study.attributes import known_compared, record_compared
from knee_tune.study.events import Watcher
from knee_tune.study.locks import take_claim


def compare_rows(
    opened: OpenedStudy,
    watcher: Watcher,
    *,
    timeout: float | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> None:
    """Train what is left of the table, test every complete run once, and analyse it.

    Nothing is selected here, so every run is tested. What is found is kept run by run, number by
    number: an interrupted comparison goes on where it was. A run that failed is tried again by the
    next command, one that diverged has diverged. Drivers that compare at the same time share the
    runs: this one ends when the others are training all that is left, and takes over what a driver
    that died was training. After ``timeout`` seconds no run is begun. ``on_change`` is called when
    there is something new to show.
    """
    _Comparison(opened, watcher, on_change).run(timeout)


class _Comparison:
    """What is to be trained, and what is known of it so far."""

    def __init__(
        self, opened: OpenedStudy, watcher: Watcher, on_change: Callable[[], None]
    ) -> None:
        self._opened, self._watcher, self._on_change = opened, watcher, on_change
        self._spec = opened.workers.spec
        self._known = self._read()
        self._points = {key_of(row, seed): (row, seed) for row, seed in self._all()}
        self._left_out = 0
        """Runs that another driver has done since."""
        self._all_taken = False
        """Whether other drivers train all that is left."""

    def run(self, timeout: float | None) -> None:
        """See :func:`compare_rows`."""
        left = [point for point in self._all() if not self._is_done(*point)]
        if not left:
            return
        runs = in_order(
            (self._to_train(*point) for point in left), slots=self._opened.workers.options.slots
        )
        self._watcher.line(f"comparing: {len(left)} runs, {self._of_what()}")
        ended = train_extra_runs(
            self._opened,
            self._watcher,
            runs,
            choose=self._choose,
            follow=self._follow,
            timeout=timeout,
        )
        still = len(runs) - len(ended) - self._left_out
        if still and self._all_taken:
            self._watcher.line(
                f"another driver still trains {still} of these runs; the same command again goes on"
            )
        elif still:
            self._watcher.line(
                f"runs that are left: {still}; `timeout` ended the comparison before them, the "
                "same command again goes on"
            )

    def _read(self) -> dict[tuple[int, int], ComparedRun]:
        """What the study knows now, from all drivers."""
        return {(run.row, run.seed): run for run in known_compared(self._opened.study)}

    def _all(self) -> Iterator[tuple[int, int]]:
        rows = range(len(self._opened.workers.rows))
        return ((row, seed) for row in rows for seed in self._spec.replicate_seeds)

    def _of_what(self) -> str:
        assert self._spec.compare is not None, "a comparison has a table"
        rows, seeds = len(self._spec.compare.rows), self._spec.replicates
        return f"{rows} rows of {self._spec.compare.table} x {seeds} random seeds"

    def _is_done(self, row: int, seed: int) -> bool:
        run = self._known.get((row, seed))
        if run is None or run.state == "failed":
            return False
        wanted = {analysis.name for analysis in self._spec.analyses}
        return run.state == "pruned" or (_tested(run) and wanted <= run.metrics.keys())

    def _to_train(self, row: int, seed: int) -> ExtraRun:
        assert self._spec.compare is not None, "a comparison has a table"
        schedule = self._opened.workers.rows[row]
        fraction = None
        if isinstance(schedule, Exploring):
            first = schedule.phases[0] if isinstance(schedule, Phased) else schedule
            fraction = (first.knee_step - first.warmup_steps) / first.total_steps
        return ExtraRun(
            key=key_of(row, seed),
            name=f"{self._spec.compare.rows[row].shown}, seed {seed}",
            schedule=schedule,
            seed=seed,
            label=self._spec.compare.rows[row].schedule,
            explore_fraction=fraction,
        )

    def _choose(self, waiting: list[ExtraRun], claim: ExitStack) -> ExtraRun | None:
        """The next run that no other driver trains, nor a run of its trunk if there is a choice.

        In the home of that driver it would wait for the trunk, in another one train it again.
        """
        taken, later = set[Hashable](), list[ExtraRun]()
        for run in tuple(waiting):
            trunk = trunk_of(run, alone=run.key)
            if trunk in taken:
                later.append(run)
            elif self._claimed(run, waiting, claim):
                return run
            elif run in waiting:
                taken.add(trunk)
        for run in later:
            if self._claimed(run, waiting, claim):
                return run
        self._all_taken = bool(waiting)
        return None

    def _claimed(self, run: ExtraRun, waiting: list[ExtraRun], claim: ExitStack) -> bool:
        """Whether this driver trains the run from now on. If another one has done it, nobody does.

        The record is read under the claim: until then another driver may still be writing it.
        """
        taken = take_claim(self._opened.places.storage_url, f"{self._opened.uid}-{run.key}")
        if taken is None:
            return False
        claim.enter_context(taken)
        waiting.remove(run)
        self._known = self._read()
        point = self._points[run.key]
        if self._is_done(*point):
            claim.close()
            self._left_out += 1
            known = self._known[point]
            found = ", ".join(_words(known)) or known.reason
            self._watcher.line(f"{run.name}: done by another driver: {found}")
            self._on_change()
            return False
        self._all_taken = False
        return True

    def _follow(self, ended: EndedRun) -> Mapping[str, float]:
        """Keep how a run ended; test and analyse it if that was not done before."""
        run = self._kept(self._as_compared(ended))
        if ended.weights is None:
            return {}
        workers, key, weights = self._opened.workers, ended.run.key, ended.weights
        slot, on_life = ended.slot, ended.on_life
        if not _tested(run):
            try:
                found = workers.test(weights, key=key, slot=slot, on_life=on_life)
            except (UserError, MachineError) as error:
                return self._given_up(run, ended, f"test: {error}", state="failed")
            run = self._kept(_with(run, found))
        for analysis in self._spec.analyses:
            if analysis.name not in run.metrics:
                try:
                    found = workers.analyse(
                        weights,
                        analysis,
                        key=key,
                        seed=ended.run.seed,
                        slot=slot,
                        on_line=self._watcher.line,
                        on_life=on_life,
                    )
                except (UserError, MachineError) as error:
                    return self._given_up(run, ended, f"{analysis.name}: {error}")
                run = self._kept(_with(run, {analysis.name: found[analysis.name]}))
        self._watcher.line(f"{ended.run.name}: {', '.join(_words(run))}")
        return {name: run.metrics[name] for name in _measured(run)}

    def _as_compared(self, ended: EndedRun) -> ComparedRun:
        """The run with what was measured of these weights before."""
        record = ended.record
        row, seed = self._points[ended.run.key]
        known = self._known.get((row, seed))
        same = known is not None and record.answered and known.checkpoint == record.checkpoint
        before = known.metrics if known and same else {}
        curve = record.curve[-1].metrics if record.curve else {}
        last = {"train_loss": curve["train_loss"]} if "train_loss" in curve else {}
        fields = dict(record) | {"metrics": {**before, **last, **record.metrics}}
        if known:
            fields |= {"started": known.started, "seconds": known.seconds}
            fields["answered"] = record.answered and known.answered
        return ComparedRun(row=row, **fields)

    def _kept(self, run: ComparedRun) -> ComparedRun:
        """``run``, kept with the study at once."""
        record_compared(self._opened.study, run)
        self._on_change()
        return run

    def _given_up(
        self, run: ComparedRun, ended: EndedRun, reason: str, *, state: str = "complete"
    ) -> Mapping[str, float]:
        """What could not be measured is no reason to end the others; the next command tries it."""
        run = self._kept(run.model_copy(update={"state": state, "reason": reason}))
        self._watcher.line(f"{ended.run.name}: {reason}")
        return {name: run.metrics[name] for name in _measured(run)}


def key_of(row: int, seed: int) -> str:
    """Names the run of a row with a random seed, in its study."""
    return f"row-{row}-{seed}"


def _with(run: ComparedRun, found: Mapping[str, float]) -> ComparedRun:
    """``run`` with further metrics."""
    return run.model_copy(update={"metrics": {**run.metrics, **found}})


def _tested(run: ComparedRun) -> bool:
    return any(name.startswith("test_") for name in run.metrics)


def _measured(run: ComparedRun) -> list[str]:
    """What was found after the training."""
    return [name for name in run.metrics if not name.startswith(("valid_", "train_"))]


def _words(run: ComparedRun) -> list[str]:
    return [f"{name} {run.metrics[name]:.4g}" for name in _measured(run)]
