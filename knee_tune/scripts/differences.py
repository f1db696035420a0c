"""What differs first between two runs of a script, from the notes of their steps. Without torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from knee_tune.config.recipe import Spec

Note = Mapping[str, Mapping[str, str]]
"""What there was at the end of a step: by part of the state and name, digests of the values."""

Notes = Mapping[int, Note]
"""Those of one rank, by step."""

PARTS = {
    "inputs": "another batch",
    "state": "{name}, of state= of join",
    "model": "the parameter {name}",
    "optimizer": "the optimizer's {name}",
    "buffers": "the buffer {name} of the model",
    "reported": "{name} was reported as {one} and as {other}",
    "forgotten": "{name}, which is not among state= of join",
    "generators": "the global generator of {name}",
}
"""What a step's note has, in the order in which one thing follows from the other."""

_NOT_SAVED = ("(random.Random)", "(numpy.random.Generator)", "(numpy.random.RandomState)")
"""Kinds of generators that ``state`` does not take."""


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

    @property
    def what(self) -> str:
        """In words."""
        one, other = self.values
        return PARTS[self.part].format(name=self.name, one=one, other=other)

    def advice(self, *, restarted: bool, ranks: int) -> str:
        """Say what to do about it. ``restarted``: one of the runs began in the middle."""
        if self.forgotten:
            return _about_forgotten(self.forgotten, restarted=restarted)
        if not restarted:
            return {
                "inputs": "something draws from no seed before or within the loop: seed it with "
                "run.seed, and take batches from run.batches(loader)",
                "generators": "something draws from it as often as it likes, as a thread does; let "
                "it draw from a generator of its own",
            }.get(
                self.part,
                "the arithmetic is not the same twice: torch.use_deterministic_algorithms(True) "
                "names what is to blame",
            )
        if self.part in ("model", "optimizer") and ranks > 2:
            return (
                "if it is DistributedDataParallel that sums up in another order after its first "
                "step, find_unused_parameters=True ends that; else something that the loss "
                f"depends on is not saved: {_KEEP}"
            )
        return {
            "inputs": "take batches from run.batches(loader); with a loop of your own over "
            "run.steps() give join what knows the position, state={'loader': loader}, with a "
            "state_dict",
            "state": "its load_state_dict does not put back all that its state_dict gives, or the "
            "state_dict leaves something out",
            "buffers": "it is not in the model's state_dict: register it without persistent=False",
            "reported": "the evaluation depends on something that is not saved: draw from a fixed "
            f"seed there, or {_KEEP}",
            "generators": "something draws from it a different number of times after a new start, "
            "as what is drawn once and kept does; draw it before join, or from a seed of its own",
        }.get(self.part, f"something that the loss depends on is not saved: {_KEEP}")


_KEEP = (
    "keep what changes from step to step (a loss scale, a count, a running mean) in an object with "
    "state_dict and load_state_dict, and give that to join in state="
)


def _about_forgotten(names: Sequence[str], *, restarted: bool) -> str:
    if not restarted:
        return f"make {_listed(names)} follow from a seed: run.seed, or a fixed one"
    lost = [name for name in names if name.endswith(_NOT_SAVED)]
    kept = [name.partition(" (")[0] for name in names if name not in lost]
    advice = []
    if kept:
        entries = ", ".join(
            f"{name.rpartition('.')[2]!r}: {name}" if _is_name(name) else "...: ..."
            for name in kept
        )
        advice.append(f"give join state={{{entries}}}, or remove it if no step depends on it")
    if lost:
        advice.append(
            f"replace {_listed(lost)} by a torch.Generator, which state= takes, or by a generator "
            "made anew from run.seed and the step"
        )
    return "; ".join(advice)


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def first_difference(
    one: Sequence[Notes], other: Sequence[Notes], *, steps: Sequence[int]
) -> Difference | None:
    """What two runs differ in first, of ``steps``; None if they have the same bits.

    Both have the notes of every rank; within a step what comes first in :data:`PARTS` counts.
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
