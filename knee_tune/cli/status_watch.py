"""``knee-tune status --watch``: a study that any number of drivers serve, as it goes on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from knee_tune.cli.summary import with_spread
from knee_tune.errors import UserError
from knee_tune.records.shown import duration, explored, learning_rate, percent
from knee_tune.records.study import StudyRecord, TrialRecord

EVERY = 2.0
"""Seconds from one look at the study to the next."""


@dataclass
class Pace:
    """Steps per second of running trials, from what they have reported since somebody watches.

    A trial has a pace once two of its reports were seen.
    """

    _seen: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def note(self, trial: TrialRecord, *, now: float) -> None:
        """Note how far a running trial is; ``now`` in seconds."""
        reports = self._seen.get(trial.number, [])
        steps = trial.progress * trial.budget
        if steps and (not reports or steps > reports[-1][1]):
            self._seen[trial.number] = [*reports[:1], (now, steps)]

    def of(self, trial: TrialRecord) -> float | None:
        """Steps per second, None where that is not known yet."""
        reports = self._seen.get(trial.number, [])
        if len(reports) < 2:
            return None
        (since, first), (until, last) = reports
        return (last - first) / (until - since)


def watch_status(
    console: Console,
    records: Iterator[StudyRecord],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show one record after the other in place, until somebody interrupts.

    UserError where the console is no terminal, or a dumb one, and for a study that compares.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        raise UserError(
            "`watch`: needs a terminal that can move its cursor; without it `status` prints once"
        )
    pace = Pace()
    with Live(console=console, auto_refresh=False) as live:
        for record in records:
            if record.spec.compare is not None:
                raise UserError(
                    f"study {record.name}: it compares schedules; `watch` shows the trials of a "
                    "search, and `status` the rows"
                )
            for trial in record.trials:
                if trial.state == "running":
                    pace.note(trial, now=time.monotonic())
            live.update(view(record, pace, now=time.time()), refresh=True)
            sleep(EVERY)


def view(record: StudyRecord, pace: Pace, *, now: float) -> RenderableType:
    """Who trains what, since when and how fast; what waits, and the winner so far.

    ``now``: seconds since 1970.
    """
    running = [trial for trial in record.trials if trial.state == "running"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("trial", "seed LR", "explore"):
        table.add_column(column, justify="right")
    table.add_column("driver", overflow="fold")
    for column in ("for", "of its steps", "steps/s", record.metric):
        table.add_column(column, justify="right")
    for trial in running:
        newest = trial.curve[-1].metrics.get(record.metric) if trial.curve else None
        rate = pace.of(trial)
        table.add_row(
            str(trial.number),
            learning_rate(trial.seed_lr),
            explored(*trial.point[1:]),
            trial.driver,
            duration(now - trial.started) if trial.started else "",
            percent(trial.progress),
            "" if rate is None else f"{rate:,.1f}",
            with_spread(newest, None),
        )
    counts, winner = record.counts, record.winner
    waiting = sum(trial.state == "waiting" for trial in record.trials)
    known = [rate for trial in running if (rate := pace.of(trial)) is not None]
    drivers = len({trial.driver for trial in running})
    summary = (
        f"{record.name}: {counts.complete} complete, {counts.pruned} pruned, "
        f"{counts.failed} failed, {waiting} waiting, {counts.running} running"
        + (f" by {drivers} driver{'s' if drivers > 1 else ''}" if drivers else "")
        + (f", {sum(known):,.1f} steps/s" if known else "")
    )
    best = "" if winner is None else f"best: {winner.setting}, {record.metric} {winner.value:.4g}"
    return Group(table, Text(f"\n{summary}"), Text(best, style="bold green"))
