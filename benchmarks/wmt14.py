"""WMT'14's size: how long a generated corpus takes to prepare, in how much memory, and to batch.

    python -m benchmarks.wmt14 --pairs 450000 [--split-at-blanks] [--keep DIR]

Files of the names and the format of the published ones: sentences of 25 words on average, of
vocabularies as large as theirs for that many pairs, in Zipf's proportions. ``--split-at-blanks``
leaves Moses' rules out, which take most of the time and no memory. Prints seconds by phase, the
most memory that this process held, and what reading batches of 30,000 tokens costs one rank.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from knee_tune.tasks.translation import wmt14
from knee_tune.tasks.translation.recipe import Wmt14Recipe
from knee_tune.tasks.translation.task import TranslationTask
from knee_tune.workers.group import Group

AT_ONCE = 50_000
SYLLABLES = [a + b for a in "bdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ei", "au")]


def word(number: int, ending: str) -> str:
    """The word of that number: the rarer, the longer."""
    syllables = []
    while number >= 0:
        number, each = divmod(number, len(SYLLABLES))
        syllables.append(SYLLABLES[each])
        number -= 1
    return "".join(syllables) + ending


def write_corpus(folder: Path, pairs: int) -> None:
    """Write ``pairs`` sentence pairs into the three training texts, and 3,003 to test."""
    draw = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    # 4.5 million pairs have about 0.9 and 1.9 million different words.
    types = [max(1000, pairs // 5), max(1000, 2 * pairs // 5)]
    vocabularies = [
        [word(number, ending) for number in range(size)]
        for size, ending in zip(types, ("s", "en"), strict=True)
    ]

    def lines(count: int) -> Iterator[tuple[str, ...]]:
        for start in range(0, count, AT_ONCE):
            lengths = 1 + draw.gamma(2.0, 12.0, min(AT_ONCE, count - start)).astype(int)
            sides = []
            for vocabulary in vocabularies:
                size = len(vocabulary)
                # Ranks whose logarithms are uniform have Zipf's frequencies.
                ranks = np.exp(draw.random(lengths.sum()) * np.log(size)).astype(int) - 1
                sides.append(np.split(ranks, np.cumsum(lengths)[:-1]))
            for row in zip(*sides, strict=True):
                yield tuple(
                    " ".join([vocabulary[rank] for rank in ranks]).capitalize() + "."
                    for vocabulary, ranks in zip(vocabularies, row, strict=True)
                )

    shares = (0.43, 0.51, 1 - 0.43 - 0.51)
    for stem, share in zip(wmt14.TRAINING, shares, strict=True):
        with (
            (folder / f"{stem}.{wmt14.SOURCE}").open("w") as source,
            (folder / f"{stem}.{wmt14.TARGET}").open("w") as target,
        ):
            for pair in lines(round(pairs * share)):
                source.write(f"{pair[0]}\n")
                target.write(f"{pair[1]}\n")
    test = list(lines(3003))
    for side, name in enumerate(wmt14.TEST_FILES):
        segments = (f'<seg id="{n}">{pair[side]}</seg>\n' for n, pair in enumerate(test, start=1))
        (folder / name).write_text("".join(segments))


def memory() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def split_at_blanks(lines: Iterable[str], language: str, **_: Any) -> Iterator[list[str]]:
    """Stand in for Moses' rules: the full stop is a word of its own."""
    for line in lines:
        yield [f"{line[:-1]} ."]


def measure(folder: Path, pairs: int, *, cheap: bool) -> None:
    """Prepare and batch; print what it takes."""
    began = time.monotonic()
    write_corpus(folder / "orig", pairs)
    size = sum(path.stat().st_size for path in (folder / "orig").iterdir())
    print(f"{pairs:,} pairs, {size / 1e9:.2f} GB, generated in {time.monotonic() - began:.0f} s")

    phases: dict[str, float] = {}
    last = [time.monotonic(), ""]

    def note(phase: str, _: float) -> None:
        now = time.monotonic()
        if last[1]:
            phases[str(last[1])] = phases.get(str(last[1]), 0.0) + now - float(last[0])
        if phase != last[1] and last[1]:
            print(f"  {last[1]}: {phases[str(last[1])]:.0f} s, {memory():.2f} GiB", flush=True)
        last[:] = [now, phase]

    rules = split_at_blanks if cheap else wmt14.tokenized
    with mock.patch.object(wmt14, "tokenized", rules):
        prepared = wmt14.prepare(data_root=folder, from_path=folder / "orig", progress=note)
    note("", 1.0)
    print(
        f"prepared in {prepared.seconds:.0f} s, at most {memory():.2f} GiB: {prepared.contents()}"
    )

    task = TranslationTask(Wmt14Recipe(), data_dir=folder, seed=1)
    began = time.monotonic()
    steps = task.steps_per_epoch(Group())
    print(f"batches of an epoch: {steps:,} steps, found in {time.monotonic() - began:.1f} s")
    began, count = time.monotonic(), 0
    for _ in islice(task.train_batches(steps // 2, Group()), 200):
        count += 1
    seconds = time.monotonic() - began
    print(f"{count / seconds:.0f} steps of 30,000 tokens read a second, {memory():.2f} GiB at most")


def main() -> None:
    """Generate, prepare, batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=450_000)
    parser.add_argument("--split-at-blanks", action="store_true", help="without Moses' rules")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the data there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(asked.keep or Path(folder), asked.pairs, cheap=asked.split_at_blanks)


if __name__ == "__main__":
    main()
