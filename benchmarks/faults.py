"""Whether studies survive SIGKILLs of any of their processes, at any moment.

    python -m benchmarks.faults --kills 1000 [--seed 0] [--only grid,gp] [--out FILE]

A small study is trained once in peace. Then the same command is given again and again in a new home
while processes of its tree are killed: the driver, the warm process that ranks are forked from, and
ranks, at random moments. When the study is done it must be the one that was trained in peace: the
same trials with the same values, curves and bits of weights, each once; nothing runs, failed or is
left behind, and no step is missing in the account. Results add up in ``--out`` over all calls.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from knee_tune.specs.records import StudyRecord
from knee_tune.tuning.storage import open_storage
from knee_tune.tuning.study import load_study, study_record

NAME = "faults"
DIGITS = ("--task", "digits", "--preset", "quick", "--set", "recipe.epochs=3")
SMALL_GRID = (
    *("--set", "space.seed_lr={values: [0.03, 0.05]}"),
    *("--set", "space.explore_fraction={values: [0.2, 0.4, 0.8]}"),
)
STUDIES = {
    "grid": (*DIGITS, *SMALL_GRID, "--sampler", "grid", "--no-fuse", "--concurrency", "2"),
    "gp": (*DIGITS, "--sampler", "gp", "--trials", "9", "--nproc", "2"),
    "fused": (*DIGITS, *SMALL_GRID, "--sampler", "grid", "--goal", "ridge", "--replicates", "2"),
    "replicates": (*DIGITS, "--sampler", "random", "--trials", "4", "--replicates", "2"),
    "iwslt": (
        *("--task", "iwslt", "--preset", "demo", "--sampler", "random", "--trials", "2"),
        *("--set", "recipe.epochs=1"),
    ),
}
"""What is trained, by kind: options of ``knee-tune run``."""

ROLES = ("driver", "warm process", "rank")
ODDS = (1, 1, 2)
PATIENCE = 170.0
"""Seconds of peace after which a command hangs."""


@dataclass
class Tally:
    """What was done to one study, and what it came to."""

    kind: str
    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    """By role."""
    commands: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Everything that was not as it must be."""

    @property
    def killed(self) -> int:
        """Processes of any role."""
        return sum(self.kills.values())


def command(kind: str, home: Path) -> list[str]:
    """The command that trains, and continues, a study."""
    options = ("--study-name", NAME, "--no-register", "--tracking-uri", "none", "--device", "cpu")
    return [
        *(sys.executable, "-m", "knee_tune", "run", *STUDIES[kind], *options),
        *("--home", str(home)),
    ]


def trained_in_peace(kind: str, home: Path) -> dict[str, Any]:
    """The undisturbed study, by point."""
    subprocess.run(command(kind, home), check=True, capture_output=True, timeout=600)
    return outcome(recorded(home))


def recorded(home: Path) -> StudyRecord:
    """The study of a home."""
    return study_record(load_study(open_storage(f"sqlite:///{home}/optuna.db"), NAME))


def outcome(record: StudyRecord) -> dict[str, Any]:
    """What must not depend on kills: of every point its ends, curves and bits."""
    found = dict[str, Any]()
    for trial in record.trials:
        point = f"{trial.seed_lr:g}, {trial.explore_fraction:g}"
        runs = [
            (replicate.state, replicate.metrics, [each.metrics for each in replicate.curve])
            for replicate in trial.replicates
        ]
        curve = [(each.step, each.metrics) for each in trial.curve]
        doubled = found.get(point, {}).get("times", 0)
        found[point] = {
            "times": doubled + 1,
            "end": (trial.state, trial.value, trial.metrics, trial.spread),
            "curve": curve,
            "runs": runs,
            "weights": _weights(trial.checkpoint) if trial.state == "complete" else None,
        }
    return found


def _weights(checkpoint: str | None) -> dict[str, str]:
    files = sorted(Path(checkpoint or "").rglob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def torment(kind: str, home: Path, *, seed: int, kills: int, mean: float) -> Tally:
    """Give the command until it is done, killing ``kills`` times, a ``mean`` of seconds apart."""
    chance, tally = random.Random(seed), Tally(kind=kind, seed=seed)
    began = time.monotonic()
    temporary = home.parent / f"{home.name}-tmp"
    temporary.mkdir(exist_ok=True)
    code = None
    while code != 0:
        tally.commands += 1
        with (home.parent / f"{home.name}.log").open("a+") as log:
            start = log.tell()
            process = subprocess.Popen(
                command(kind, home),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(temporary)},
            )
            family = _kill_some(process, tally, chance, kills=kills, mean=mean)
            code = process.wait()
            _, living = psutil.wait_procs(family, timeout=120)
            tally.wrong += [f"outlives its driver: {each.cmdline()[:3]}" for each in living]
            log.seek(start)
            said = log.read()
        if code not in (0, 1, -9):
            tally.wrong.append(f"exit code {code}: {said[-300:]}")
        if "Traceback" in said:
            tally.wrong.append(f"a traceback: {said[-1500:]}")
        if tally.commands > kills + 5:
            tally.wrong.append(f"does not come to its end: {said[-300:]}")
            break
    tally.seconds = time.monotonic() - began
    return tally


def _kill_some(
    process: subprocess.Popen[bytes],
    tally: Tally,
    chance: random.Random,
    *,
    kills: int,
    mean: float,
) -> list[psutil.Process]:
    """Kill members of a command's tree until it ends, or enough are; everybody seen in it."""
    driver, seen = psutil.Process(process.pid), set[psutil.Process]()
    while tally.killed < kills and process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.expovariate(1 / mean))
        role = chance.choices(ROLES, ODDS)[0]
        tree = dict(_tree(driver))
        seen |= tree.keys()
        victims = [member for member, its in tree.items() if its == role]
        if victims and process.poll() is None:
            try:
                chance.choice(sorted(victims, key=lambda each: each.pid)).kill()
            except psutil.NoSuchProcess:
                continue
            tally.kills[role] = tally.kills.get(role, 0) + 1
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        tally.wrong.append("it hangs")
        seen |= dict(_tree(driver)).keys()
        process.kill()
    return list(seen)


def _tree(driver: psutil.Process) -> Iterator[tuple[psutil.Process, str]]:
    """Every living process of a command and its role."""
    try:
        yield driver, "driver"
        for child in driver.children():
            yield child, "warm process"
            for rank in child.children(recursive=True):
                yield rank, "rank"
    except psutil.NoSuchProcess:
        return


def differences(home: Path, peace: dict[str, Any]) -> list[str]:
    """What is not as in the study that was trained in peace."""
    record = recorded(home)
    wrong = []
    counts = record.counts
    if counts.running or counts.failed or any(t.state == "waiting" for t in record.trials):
        wrong.append(f"not at its end: {counts}")
    found = outcome(record)
    for point in sorted(found.keys() | peace.keys()):
        mine, theirs = found.get(point), peace.get(point)
        if mine is None or theirs is None:
            wrong.append(f"{point}: {'missing' if mine is None else 'not in the other study'}")
        else:
            names = [name for name in theirs if mine[name] != theirs[name]]
            wrong += [f"{point}: other {name}: {mine[name]}, {theirs[name]}" for name in names]
    for trial in record.trials:
        accounted = trial.steps_trained + trial.steps_reused + trial.steps_pruned
        if accounted < trial.steps_budget:
            wrong.append(f"trial {trial.number}: {accounted} of {trial.steps_budget} steps")
    return wrong


def left_behind(kind: str, home: Path) -> Iterator[str]:
    """What kills have left that the next command does not remove an hour later."""
    for draft in home.rglob("*draft*"):
        os.utime(draft, (0, 0))
    temporary = home.parent / f"{home.name}-tmp"
    again = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run(command(kind, home), capture_output=True, env=again, timeout=600)
    for path in (*home.rglob("*draft*"), *home.rglob("*.filling"), *temporary.glob("*knee*")):
        yield f"left behind: {path.relative_to(home.parent)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, compare, print and keep the figures."""
    parser = argparse.ArgumentParser(description="Kill and compare.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, help="of the first study (default: the next one)")
    parser.add_argument(
        "--mean", type=float, help="seconds between two kills (default: a sixth of a study's)"
    )
    parser.add_argument("--each", type=int, default=12, help="kills of one study")
    parser.add_argument("--only", default=",".join(STUDIES), help="kinds of studies")
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    asked = parser.parse_args(arguments)
    known = json.loads(asked.out.read_text()) if asked.out.exists() else []
    kinds, left, seed = asked.only.split(","), asked.kills, asked.seed or len(known)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder)
        peace, takes = dict[str, dict[str, Any]](), dict[str, float]()
        while left > 0:
            kind, home = kinds[seed % len(kinds)], root / f"home-{seed}"
            if kind not in peace:
                began = time.monotonic()
                peace[kind] = trained_in_peace(kind, root / f"{kind}-peace")
                takes[kind] = time.monotonic() - began
            mean, kills = asked.mean or takes[kind] / 6, min(left, asked.each)
            tally = torment(kind, home, seed=seed, kills=kills, mean=mean)
            tally.wrong += [*differences(home, peace[kind]), *left_behind(kind, home)]
            left -= max(1, tally.killed)
            seed += 1
            known.append(asdict(tally))
            asked.out.write_text(json.dumps(known, indent=1))
            print(
                f"{kind} (seed {tally.seed}): {tally.kills} in {tally.commands} commands, "
                f"{tally.seconds:.0f} s: {tally.wrong or 'as in peace'}",
                flush=True,
            )
    roles = sum((Counter(each["kills"]) for each in known), Counter[str]())
    seconds = sum(each["seconds"] for each in known)
    wrong = [each for each in known if each["wrong"]]
    print(
        f"{roles.total()} kills ({', '.join(f'{n} of a {role}' for role, n in roles.items())}) in "
        f"{len(known)} studies, {seconds / max(1, roles.total()):.1f} s each; not as in peace: "
        f"{len(wrong)}"
    )


if __name__ == "__main__":
    main()
