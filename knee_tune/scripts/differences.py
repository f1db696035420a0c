"""What differs first between two runs, from the notes of their steps. Without torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from knee_tune.config.recipe import Spec

Note = Mapping[str, Mapping[str, str]]
"""What there was at the end of a step: by part of the state and name, digests of the values."""

Notes = Mapping[int, Note]
"""Those of one rank, by step."""

PARTS = {
    "inputs": "another batch",
    "state": "{name}, of {keeper}",
    "model": "the parameter {name}",
    "optimizer": "the optimizer's {name}",
    "buffers": "the buffer {name} of the model",
    "reported": "{name} was reported as {one} and as {other}",
    "forgotten": "{name}, which is not among {keeper}",
    "generators": "the global generator of {name}",
}
"""What a step's note has, in the order in which one thing follows from the other."""

_NOT_SAVED = ("(random.Random)", "(numpy.random.Generator)", "(numpy.random.RandomState)")
"""Kinds of generators that have no ``state_dict``."""


class Difference(Spec):
    """The first thing that two runs do not have in common."""

    step: int
    rank: int
    part: str
    name: str
    values: tuple[str, str]
    """Digests; of what was reported the numbers."""
    forgotten: tuple[str, ...]
    """What has a state that nobody saves, and that differs after this step: ``ema (EMA)``."""
    of_task: bool = Field(default=False, exclude_if=lambda of_task: not of_task)
    """Whether a task was trained, not a script."""

    @property
    def keeper(self) -> str:
        """Where people say what else is to be saved."""
        return "the task's state()" if self.of_task else "state= of join"

    @property
    def what(self) -> str:
        """In words."""
        one, other = self.values
        return PARTS[self.part].format(name=self.name, one=one, other=other, keeper=self.keeper)

    def advice(self, *, restarted: bool, ranks: int) -> str:
        """Say what to do about it. ``restarted``: one of the runs began in the middle."""
        if self.forgotten:
            return self._about_forgotten(restarted=restarted)
        if not restarted:
            return (_TWICE_TASK if self.of_task else _TWICE).get(self.part, _ARITHMETIC)
        keep = _KEEP_TASK if self.of_task else _KEEP
        if self.part in ("model", "optimizer") and ranks > 2:
            return (
                "if it is DistributedDataParallel that sums up in another order after its first "
                "step, find_unused_parameters=True ends that; else something that the loss "
                f"depends on is not saved: {keep}"
            )
        if self.part == "reported":
            return (
                "the evaluation depends on something that is not saved: draw from a fixed seed "
                f"there, or {keep}"
            )
        known = _RESTARTED | (_RESTARTED_TASK if self.of_task else {})
        return known.get(self.part, f"something that the loss depends on is not saved: {keep}")

    def _about_forgotten(self, *, restarted: bool) -> str:
        if not restarted:
            seed = "self.seed" if self.of_task else "run.seed"
            return f"make {_listed(self.forgotten)} follow from a seed: {seed}, or a fixed one"
        # a task's state() takes what has a state_dict, which torch's generators have not either
        unsaved = (*_NOT_SAVED, "(torch.Generator)") if self.of_task else _NOT_SAVED
        lost = [name for name in self.forgotten if name.endswith(unsaved)]
        kept = [name.partition(" (")[0] for name in self.forgotten if name not in lost]
        advice = []
        if kept:
            entries = ", ".join(
                f"{name.rpartition('.')[2]!r}: {name}" if _is_name(name) else "...: ..."
                for name in kept
            )
            give = (
                "return {{{}}} from the task's state()"
                if self.of_task
                else "give join state={{{}}}"
            )
            advice.append(f"{give.format(entries)}, or remove it if no step depends on it")
        if lost and self.of_task:
            advice.append(
                f"draw from torch's global generator instead of {_listed(lost)}: it is seeded anew "
                "for every step and item"
            )
        elif lost:
            advice.append(
                f"replace {_listed(lost)} by a torch.Generator, which state= takes, or by a "
                "generator made anew from run.seed and the step"
            )
        return "; ".join(advice)


# What to do about a difference, by where it was first seen.

_ARITHMETIC = (
    "the arithmetic is not the same twice: torch.use_deterministic_algorithms(True) names what is "
    "to blame"
)

_TWICE = {
    "inputs": "something draws from no seed before or within the loop: seed it with run.seed, and "
    "take batches from run.batches(loader)",
    "generators": "something draws from it as often as it likes, as a thread does; let it draw "
    "from a generator of its own",
}
"""Between two runs from the start."""

_TWICE_TASK = {"inputs": "something draws from no seed: make it follow from self.seed"}

_RESTARTED = {
    "inputs": "take batches from run.batches(loader); with a loop of your own over run.steps() "
    "give join what knows the position, state={'loader': loader}, with a state_dict",
    "state": "its load_state_dict does not put back all that its state_dict gives, or the "
    "state_dict leaves something out",
    "buffers": "it is not in the model's state_dict: register it without persistent=False",
    "generators": "something draws from it a different number of times after a new start, as what "
    "is drawn once and kept does; draw it before join, or from a seed of its own",
}
"""After a run began in the middle."""

_RESTARTED_TASK = {
    "inputs": "train_batches has to give the same batches whatever step it begins with, and an "
    "item of a data set must not depend on those that were read before it",
}

_KEEP = (
    "keep what changes from step to step (a loss scale, a count, a running mean) in an object with "
    "state_dict and load_state_dict, and give that to join in state="
)

_KEEP_TASK = _KEEP.replace("give that to join in state=", "return that from the task's state()")


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def first_difference(
    one: Sequence[Notes], other: Sequence[Notes], *, steps: Sequence[int], of_task: bool
) -> Difference | None:
    """What two runs differ in first, of ``steps``; None if they have the same bits.

    Both have the notes of every rank; within a step what comes first in :data:`PARTS` counts.
    ``of_task``: whether a task was trained, not a script.
    """
    for step in steps:
        pairs = [(a[step], b[step]) for a, b in zip(one, other, strict=True)]
        for part in PARTS:
            for rank, (a, b) in enumerate(pairs):
                for name in _differing(a, b, part):
                    return Difference(
                        step=step,
                        rank=rank,
                        part=part,
                        name=name,
                        values=(a[part].get(name, "nothing"), b[part].get(name, "nothing")),
                        forgotten=tuple(_differing(a, b, "forgotten")),
                        of_task=of_task,
                    )
    return None


def _differing(one: Note, other: Note, part: str) -> Iterator[str]:
    names = dict.fromkeys((*one[part], *other[part]))
    if part == "forgotten":  # what only one has was made at another time, which tells nothing
        names = {name: None for name in names if name in one[part] and name in other[part]}
    return (name for name in names if one[part].get(name) != other[part].get(name))


def notes_file(log_dir: Path, *, rank: int) -> Path:
    """Where a rank notes its steps, one line of JSON for each."""
    return log_dir / f"steps-{rank}.jsonl"


def read_notes(log_dir: Path, *, ranks: int) -> list[dict[int, Note]]:
    """What every rank noted."""
    texts = [notes_file(log_dir, rank=rank).read_text(encoding="utf-8") for rank in range(ranks)]
    notes = [[json.loads(line) for line in text.splitlines()] for text in texts]
    return [{note["step"]: note["parts"] for note in of_rank} for of_rank in notes]
