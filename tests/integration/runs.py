"""What tests of training runs have in common: whom they tell, and outcomes compared by bits."""

from collections.abc import Mapping
from typing import Any

import psutil
from torch import Tensor, equal

from knee_tune.workers.protocol import Channel, Decision, Done, Outcome, Report
from tests import warm


class Reports(list[Report], Channel):
    """A line to a driver in the same process."""

    def report(self, report: Report) -> Decision:
        self.append(report)
        return Decision(stop=False)

    def progress(self, step: int) -> None:
        pass

    def line(self, text: str) -> None:
        pass


def done(outcome: Outcome) -> Done:
    assert isinstance(outcome, Done), outcome
    return outcome


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal bit for bit."""
    if isinstance(left, Tensor):
        return equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def living_ranks() -> list[psutil.Process]:
    """The ranks of warm processes of ours, the newest last: those of before may not be gone yet."""
    helpers = [*psutil.Process().children(), *warm.helpers()]
    found = [rank for helper in helpers for rank in helper.children()]
    return sorted(found, key=lambda rank: (rank.create_time(), rank.pid))  # pids start anew
