"""``knee-tune analyse lr-range``: Smith's test, and the page that shows it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knee_tune.analysis.range_curve import RangeReading, read_off
from knee_tune.app.ending import interruptible
from knee_tune.app.extra_runs import Lines
from knee_tune.app.home import Home
from knee_tune.app.placement import GroupOptions
from knee_tune.app.request import StudyRequest
from knee_tune.app.workshop import open_workshop
from knee_tune.errors import UserError, disk_trouble
from knee_tune.planning.plan import LRRangePlan
from knee_tune.reporting.lr_range_figure import as_page, lr_range_figure


@dataclass(frozen=True, kw_only=True)
class RangeRequest:
    """An LR range test as options name it."""

    study: StudyRequest
    """Task, preset, settings, random seed."""
    low: float
    high: float
    steps: int

    def check(self) -> None:
        """UserError for a range that is none."""
        if not (math.isfinite(self.high) and 0 < self.low < self.high):
            raise UserError(
                f"--low {self.low:g} --high {self.high:g}: the LR grows from low to high; as in "
                "--low 1e-5 --high 10"
            )


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """A finished test."""

    task: str
    lrs: list[float]
    losses: list[float]
    """Mean training loss of every step."""
    reading: RangeReading
    exploded: bool
    """It ended before its last step."""
    page: Path


def lr_range_test(
    home: Home,
    request: RangeRequest,
    *,
    out: Path | None,
    options: GroupOptions,
    lines: Lines,
    on_step: Callable[[int], None],
) -> RangeTest:
    """Train with growing LRs, read the curve off, and write it to ``out`` as one HTML file.

    ``out``: in the home if None. UserError if the range is none, the page cannot be written, or the
    loss is lost at the very first step.
    """
    request.check()
    spec, recipe = request.study.resolve()
    page = out or home.root / f"lr-range-{spec.task}-{spec.preset}.html"
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist; make it or name another")
    with open_workshop(home, spec, recipe, options) as workshop, interruptible():
        plan = LRRangePlan(
            **dict(workshop.order("lr-range")),
            low=request.low,
            high=request.high,
            steps=request.steps,
        )
        lines.line(
            f"LR range test of {spec.task}: {request.steps} steps, LR {request.low:g} to "
            f"{request.high:g}"
        )
        done = workshop.run(plan, on_line=lines.line, on_progress=on_step)
    lrs, losses = done.result["lrs"], done.result["losses"]
    if not losses:
        raise UserError(f"--low {request.low:g}: the loss is lost at the first step; start lower")
    reading = read_off(lrs, losses)
    figure = lr_range_figure(lrs, losses, reading=reading, title=f"LR range test of {spec.task}")
    try:
        page.write_text(as_page(figure), encoding="utf-8")
    except OSError as error:
        if disk_trouble(error):
            raise
        raise UserError(f"--out {page}: {error.strerror}; name another file") from error
    return RangeTest(
        task=spec.task,
        lrs=lrs,
        losses=losses,
        reading=reading,
        exploded=len(lrs) < request.steps,
        page=page,
    )
