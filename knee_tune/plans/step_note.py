"""How far an attempt of a run has got, on disk: steps stay counted whoever is killed.

The driver begins the note with what earlier attempts have cost. Rank 0 writes over its first bytes
where it started and what it has trained, after every step: a write into the page cache, which
outlives every process of the group.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from knee_tune.files import write_whole
from knee_tune.plans.plan import TrainPlan
from knee_tune.records.values import StepCount

_STEPS = "{first:012d} {last:012d}\n"

_LENGTH = len(_STEPS.format(first=0, last=0))

_NOT_BEGUN = " " * (_LENGTH - 1) + "\n"


def note_path(plan: TrainPlan) -> Path:
    """Return the file of one run and of whom it is trained for: others count their own attempts."""
    return plan.log_dir / f"{plan.checkpoint_dir.name}.steps"


def begin_note(plan: TrainPlan, before: StepCount) -> None:
    """Note what the attempts ``before`` have cost; OSError if that cannot be written.

    A rank that is still dying keeps the note of its own attempt open, which this one replaces.
    """
    path = note_path(plan)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, _NOT_BEGUN + before.model_dump_json())


def read_note(plan: TrainPlan) -> StepCount | None:
    """Count all attempts up to the one that is noted, as far as it got; None: none is noted."""
    try:
        text = note_path(plan).read_text()
        before = StepCount.model_validate_json(text[_LENGTH:])
        steps = text[:_LENGTH].split()
        return before.after(first=int(steps[0]), last=int(steps[1])) if steps else before
    except (OSError, ValueError):
        return None


def end_note(plan: TrainPlan) -> None:
    """Delete the note: what it says is counted elsewhere."""
    with suppress(OSError):
        note_path(plan).unlink(missing_ok=True)


@contextmanager
def counted_elsewhere(
    plan: TrainPlan, steps: StepCount, *, checkpoint: str | None
) -> Iterator[StepCount]:
    """Yield ``steps``, or what a note of earlier code says of the same run, if that is more.

    ``checkpoint``: the folder that the run had then, named after that code as well; its state is of
    no use now. The note is forgotten at the end of the context, when its steps are counted.
    """
    if checkpoint is None or Path(checkpoint).name == plan.checkpoint_dir.name:
        yield steps
        return
    before = plan.model_copy(update={"checkpoint_dir": Path(checkpoint)})
    noted = read_note(before)
    if noted is not None and noted.trained > steps.trained:
        steps = StepCount(trained=noted.trained)
    yield steps
    end_note(before)


class StepNote:
    """The note of an attempt as rank 0 writes it; nothing is written where no driver counts."""

    def __init__(self, plan: TrainPlan, *, first: int) -> None:
        self._first = first
        try:
            self._file: int | None = os.open(note_path(plan), os.O_WRONLY)
        except OSError:
            self._file = None
        self.write(first)

    def write(self, step: int) -> None:
        """Note that ``step`` is trained."""
        if self._file is not None:
            steps = _STEPS.format(first=self._first, last=step).encode()
            with suppress(OSError):  # a full disk: the driver counts by signs of life
                os.pwrite(self._file, steps, 0)

    def close(self) -> None:
        """Close the file: the attempt is over."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
