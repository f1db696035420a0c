"""In which phase the rows of a table differ: how long each explores, where they are one series."""

from collections.abc import Sequence

from pydantic import Field

from knee_tune.specs.base import Spec
from knee_tune.specs.study import ReferenceRow


class Explored(Spec):
    """Rows of one schedule and one budget that differ in how long they stay at one LR."""

    lr: float
    epochs: tuple[int, ...] = Field(description="at that LR, of every row")


def explored_in(rows: Sequence[ReferenceRow]) -> Explored | None:
    """The highest LR at which the rows stay for different times; None if they are no series.

    In the paper's Table 1 that is 0.1, in Table 2 it is 0.01 (all rows have 100 epochs at 0.1), in
    Table 15 the seed LR.
    """
    if len({(row.schedule, row.epochs) for row in rows}) != 1:
        return None
    phases = [_phases(row) for row in rows]
    if rows[0].schedule == "knee" and len({row.seed_lr for row in rows}) != 1:
        return None
    for lr in sorted({lr for row in phases for lr in row}, reverse=True):
        epochs = tuple(row.get(lr, 0) for row in phases)
        if len(set(epochs)) > 1:
            return Explored(lr=lr, epochs=epochs) if len(set(epochs)) == len(rows) else None
    return None


def _phases(row: ReferenceRow) -> dict[float, int]:
    """Epochs at every LR that is held; empty where none is."""
    if row.seed_lr is None:
        return {}
    if row.schedule == "knee":
        return {row.seed_lr: row.explore_epochs or 0}
    if row.schedule != "step":
        return {}
    ends = (*row.boundaries, row.epochs)
    starts = (0, *row.boundaries)
    return {
        float(f"{row.seed_lr * 0.1**passed:.3g}"): end - start
        for passed, (start, end) in enumerate(zip(starts, ends, strict=True))
    }
