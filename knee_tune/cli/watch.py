"""What people see while a study runs: a live table on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from knee_tune.cli.flags import as_typed
from knee_tune.cli.summary import fate
from knee_tune.commands.run import StudyStart
from knee_tune.plans.plan import TrainPlan
from knee_tune.records.shown import explored, learning_rate, setting
from knee_tune.records.values import Point
from knee_tune.schedules import Decay
from knee_tune.study.events import End, Origin, Watcher
from knee_tune.workers.protocol import Report

SHOWN_TRIALS = 16
"""Rows of the live table; older trials scroll away."""

PACE_SECONDS = 3.0
"""How long to watch before a pace is told, and with it an end."""


@contextmanager
def watching(console: Console, start: StudyStart) -> Iterator[Watcher]:
    """The right watcher for where the output goes."""
    if not console.is_terminal or start.compares:  # a comparison has no trials for a table
        yield PlainWatcher(console, start)
        return
    watcher = LiveWatcher(console, start)
    with Live(get_renderable=watcher.render, console=console, refresh_per_second=4):
        yield watcher


class PlainWatcher:
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console, start: StudyStart) -> None:
        self._console, self._start = console, start
        self._batch = frozenset[int]()

    def trial_started(
        self,
        number: int,
        plan: TrainPlan,
        *,
        explore_fraction: float,
        decay: Decay | None = None,
        replicates: int,
    ) -> None:
        """Seed LR, explore fraction and budget."""
        times = f" x {replicates} replicates" if replicates > 1 else ""
        self.line(
            f"trial {number}: {setting(plan.schedule.seed_lr, explore_fraction, decay)}, "
            f"{plan.total_steps} steps{times}"
        )

    def trial_reused(self, number: int, step: int, *, replicate: int, origin: Origin) -> None:
        """Where it starts from, or that it was trained before."""
        what = f"from step {step} of its trunk" if origin == "trunk" else "answered from its record"
        self.line(f"{self._run(number, replicate)}: {what}")

    def trial_progressed(self, number: int, step: int) -> None:
        """Nothing: a log needs no sign of life."""

    def trial_reported(self, number: int, report: Report, *, replicate: int) -> None:
        """The watched metric."""
        value = report.metrics[self._start.watched]
        self.line(
            f"{self._run(number, replicate)}: step {report.step}/{report.total_steps}, "
            f"{self._start.watched} {value:.4g}"
        )

    def _run(self, number: int, replicate: int) -> str:
        if self._start.replicates == 1 or self._start.fused:
            return f"trial {number}"
        return f"trial {number}, replicate {replicate + 1}"

    def trial_finished(self, number: int, end: End, *, value: float | None, reason: str) -> None:
        """How it ended; of a batch, which has one end, those alone that diverged."""
        if number in self._batch and end != "pruned":
            return
        parts = [fate(end, reason).plain]
        if value is not None:
            parts.append(f"{self._start.metric} {value:.4g}")
        if reason and end == "complete":
            parts.append(reason)
        self.line(f"trial {number}: {', '.join(parts)}")

    def batch_started(self, points: Mapping[int, Point], plan: TrainPlan) -> None:
        """How many there are."""
        self._batch = frozenset(points)
        self.line(
            f"{len(points)} trials, {len(plan.replicas):,} replicas, {plan.total_steps} steps: "
            "training"
        )

    def batch_progressed(self, step: int) -> None:
        """Nothing: a log needs no sign of life."""

    def batch_reported(self, report: Report) -> None:
        """The watched metric, as a mean over everything."""
        value = report.metrics[self._start.watched]
        self.line(
            f"step {report.step}/{report.total_steps}, mean {self._start.watched} {value:.4g}"
        )

    def line(self, text: str) -> None:
        """As it is, without wrapping."""
        self._console.print(as_typed(text), highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Row:
    seed_lr: float
    explored: str
    total_steps: int
    """Of all its replicates."""
    run_steps: int
    """Of one of them."""
    step: int = 0
    reused: int = 0
    """Steps that needed no training."""
    state: str = "running"
    watched: float | None = None
    value: float | None = None
    reason: str = ""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def trained(self) -> int:
        return self.step - self.reused


class LiveWatcher:
    """A table of trials and a bar with the pace and the time left, redrawn in place."""

    def __init__(self, console: Console, start: StudyStart) -> None:
        self._console, self._start = console, start
        self._lock = threading.Lock()
        self._rows: dict[int, _Row] = {}
        self._batch = frozenset[int]()
        self._began = time.monotonic()
        self._wanted = None if start.trials is None else start.trials - start.finished
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            expand=True,
        )
        self._bar = self._progress.add_task(start.name, total=1.0, pace="")

    def trial_started(
        self,
        number: int,
        plan: TrainPlan,
        *,
        explore_fraction: float,
        decay: Decay | None = None,
        replicates: int,
    ) -> None:
        """A new row."""
        steps = plan.total_steps
        with self._lock:
            self._rows[number] = _Row(
                plan.schedule.seed_lr,
                explored(explore_fraction, decay),
                replicates * steps,
                steps,
            )

    def trial_reused(self, number: int, step: int, *, replicate: int, origin: Origin) -> None:
        """Moves the row's step at no cost."""
        with self._lock:
            row = self._rows[number]
            at = replicate * row.run_steps + step
            row.reused += at - row.step
            row.step = at

    def trial_progressed(self, number: int, step: int) -> None:
        """Moves the row's step."""
        with self._lock:
            self._rows[number].step = step

    def trial_reported(self, number: int, report: Report, *, replicate: int) -> None:
        """The row's newest value of the watched metric."""
        with self._lock:
            row = self._rows[number]
            row.step = replicate * row.run_steps + report.step
            row.watched = report.metrics[self._start.watched]

    def trial_finished(self, number: int, end: End, *, value: float | None, reason: str) -> None:
        """The row's end."""
        with self._lock:
            row = self._rows.get(number)
            if row is not None:
                row.state, row.value, row.reason, row.ended = end, value, reason, time.monotonic()

    def batch_started(self, points: Mapping[int, Point], plan: TrainPlan) -> None:
        """A row each."""
        self._batch = frozenset(points)
        steps = plan.total_steps
        with self._lock:
            for number, point in points.items():
                self._rows[number] = _Row(point[0], explored(*point[1:]), steps, steps)

    def batch_progressed(self, step: int) -> None:
        """Moves the step of all rows."""
        with self._lock:
            for number in self._batch:
                self._rows[number].step = step

    def batch_reported(self, report: Report) -> None:
        """Nothing: the mean over all of them is nobody's value."""

    def line(self, text: str) -> None:
        """Above the table, where it stays."""
        self._console.print(as_typed(text), highlight=False, markup=False)

    def render(self) -> Group:
        """The picture of this moment."""
        with self._lock:
            self._update_bar()
            return Group(self._table(), self._progress)

    def _update_bar(self) -> None:
        ended = [row for row in self._rows.values() if row.ended is not None]
        running = [row for row in self._rows.values() if row.ended is None]
        before = self._start.finished
        done = before + len(ended)
        if self._start.trials is None:
            share = self._trained / max(1, self._start.allowance)
            count = f"{done} trials"
        else:
            here = len(ended) + sum(row.step / row.total_steps for row in running)
            share = (before + here) / max(1, self._start.trials)
            count = f"{done}/{self._start.trials} trials"
        self._progress.update(
            self._bar,
            completed=min(1.0, share),
            description=f"{self._start.name}  {count}",
            pace=self._pace(ended, running),
        )

    @property
    def _trained(self) -> int:
        return sum(row.trained for row in self._rows.values())

    def _pace(self, ended: list[_Row], running: list[_Row]) -> str:
        """Steps per second, and the time that is left at that pace.

        A trial to come costs what the ended ones did on average: what they reused or had pruned,
        others will too. rich's own pace would take steps that were reused for trained ones.
        """
        elapsed = time.monotonic() - self._began
        trained = self._trained
        if elapsed < PACE_SECONDS or trained == 0:
            return ""
        usual = fmean(row.trained for row in ended) if ended else running[0].total_steps
        under_way = sum(row.total_steps - row.step for row in running)
        if self._wanted is None:
            to_come = max(0.0, self._start.allowance - trained - under_way)
        else:
            to_come = max(0, self._wanted - len(self._rows)) * usual
        left = to_come + under_way
        rate = trained / elapsed
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} steps/s, about {_duration(left / rate)} left"

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False, expand=False)
        table.add_column("trial", justify="right")
        table.add_column("seed LR", justify="right")
        table.add_column("explore", justify="right")
        table.add_column("step", justify="right")
        table.add_column(self._start.watched, justify="right")
        if self._start.metric != self._start.watched:
            table.add_column(self._start.metric, justify="right")
        table.add_column("state")
        table.add_column("time", justify="right")
        for number, row in list(self._rows.items())[-SHOWN_TRIALS:]:
            cells = [
                str(number),
                learning_rate(row.seed_lr),
                row.explored,
                f"{row.step}/{row.total_steps}",
                "" if row.watched is None else f"{row.watched:.4g}",
            ]
            if self._start.metric != self._start.watched:
                cells.append("" if row.value is None else f"{row.value:.4g}")
            state = fate(row.state, row.reason)
            seconds = (row.ended or time.monotonic()) - row.started
            table.add_row(*cells, state, _duration(seconds))
        return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
