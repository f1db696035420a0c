"""Whether studies survive SIGKILLs of any of their processes, at any moment.

    python -m benchmarks.faults --kills 1000 [--seed 0] [--only grid,gp] [--out FILE]

A small study is trained once in peace. Then the same command is given again and again in a new home
while processes of its tree are killed: the driver, the warm process that ranks are forked from, and
ranks, at random moments, most of them amid training. When the study is done it must be the one that
was trained in peace: the same trials with the same values, curves and bits of weights, each once,
and the same in MLflow where it is tracked; nothing runs, failed or is left behind. Every step that
a rank trained was written down by a witness outside of knee-tune (``benchmarks/witness``): the
study's account has exactly these, but for the one of an attempt that was killed in the microseconds
between training it and noting it. Results add up in ``--out`` over all calls.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil

from knee_tune.commands.home import Home
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import StepCount
from knee_tune.study.attributes import FUSED, extra_steps, replicates_of, run_of
from knee_tune.study.recovery import BATCH, current
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, study_record

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
    "script": (
        str(Path(__file__).parents[1] / "examples" / "pytorch" / "train.py"),
        *("--steps", "60", "--evaluate-every", "10", "--nproc", "2"),
        *("--seed-lr", "0.02,0.05", "--explore", "0.2,0.4,0.8", "--sampler", "grid"),
    ),
}
"""What is trained, by kind: options of ``knee-tune run``."""

TRACKED = ("gp",)
"""Kinds that are tracked in the home's MLflow store, where the winner is registered."""

WITNESS = Path(__file__).parent / "witness"

ODDS = {"driver": 1, "warm process": 1, "rank": 2}
"""How often a process of each role is killed, where there is one of each."""


PATIENCE = 600.0
"""Seconds of peace after which a command hangs."""

OUTLIVES = 20.0
"""Seconds in which whoever is left of a killed driver must have ended."""


@dataclass
class Tally:
    """What was done to one study, and what it came to."""

    kind: str
    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    """By role."""
    amid_training: int = 0
    """Of the kills."""
    commands: int = 0
    seconds: float = 0.0
    trained: int = 0
    """Steps, as the witness saw them."""
    not_noted: int = 0
    """Of these, steps whose note a kill was quicker than."""
    wrong: list[str] = field(default_factory=list)
    """Everything that was not as it must be."""

    @property
    def killed(self) -> int:
        """Processes of any role."""
        return sum(self.kills.values())


def command(kind: str, home: Path) -> list[str]:
    """The command that trains, and continues, a study."""
    untracked = () if kind in TRACKED else ("--no-register", "--tracking-uri", "none")
    return [
        *(sys.executable, "-m", "knee_tune", "run", *STUDIES[kind], *untracked),
        *("--study-name", NAME, "--device", "cpu", "--home", str(home)),
    ]


def environment(home: Path) -> dict[str, str]:
    """With a witness and a folder for temporary files of its own."""
    temporary = _beside(home, "tmp")
    temporary.mkdir(exist_ok=True)
    paths = [str(WITNESS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "FAULTS_WITNESS": str(_beside(home, "witness")),
    }


def _beside(home: Path, what: str) -> Path:
    return home.with_name(f"{home.name}-{what}")


def trained_in_peace(kind: str, home: Path) -> dict[str, Any]:
    """The undisturbed study, by point."""
    subprocess.run(
        command(kind, home), env=environment(home), check=True, capture_output=True, timeout=600
    )
    return outcome(home)


def recorded(home: Path) -> StudyRecord:
    """The study of a home."""
    return study_record(_study(home))


def _study(home: Path) -> optuna.Study:
    return load_study(open_storage(f"sqlite:///{home}/optuna.db"), NAME)


def outcome(home: Path) -> dict[str, Any]:
    """What must not depend on kills: of every point its ends, curves, bits, and MLflow run."""
    found = dict[str, Any]()
    tracked = in_mlflow(home)
    for trial in recorded(home).trials:
        point = f"{trial.seed_lr:g}, {trial.explore_fraction:g}"
        runs = [
            (replicate.state, replicate.metrics, [each.metrics for each in replicate.curve])
            for replicate in trial.replicates
        ]
        found[point] = {
            "times": found.get(point, {}).get("times", 0) + 1,
            "end": (trial.state, trial.value, trial.metrics, trial.spread),
            "curve": [(each.step, each.metrics) for each in trial.curve],
            "runs": runs,
            "weights": _weights(trial.checkpoint) if trial.state == "complete" else None,
            "in MLflow": tracked.pop(trial.key, None),
        }
    return found | {"else in MLflow": tracked}


def _weights(checkpoint: str | None) -> dict[str, str]:
    files = sorted(Path(checkpoint or "").rglob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def in_mlflow(home: Path) -> dict[str, Any]:
    """Runs by their trial's key, and what is registered; nothing if the home tracks nothing."""
    file = home / "mlflow.db"
    if not file.exists():
        return {}
    with closing(sqlite3.connect(file)) as store:
        metrics = defaultdict[str, list[Any]](list)
        for run, *metric in store.execute("SELECT run_uuid, key, step, value FROM metrics"):
            metrics[run].append(tuple(metric))
        keys = dict(store.execute("SELECT run_uuid, value FROM tags WHERE key = 'knee.run_key'"))
        runs = store.execute("SELECT run_uuid, name, status, lifecycle_stage FROM runs").fetchall()
        registered = {
            table: store.execute(f"SELECT {columns} FROM {table}").fetchall()
            for table, columns in {
                "model_versions": "name, version, status",
                "registered_model_aliases": "name, alias, version",
                "logged_models": "name, status, lifecycle_stage",
            }.items()
        }
    found = defaultdict[str, list[Any]](list)
    for run, name, *state in runs:
        measured = sorted(each for each in metrics[run] if not each[0].startswith("steps_"))
        key = keys.get(run, name).partition("/")[2]  # what comes before is this study's alone
        found[key].append((state, measured))
    unsent = [path.name for path in (home / "outbox").rglob("*.jsonl")]
    return dict(found) | registered | {"unsent": unsent}


def torment(kind: str, home: Path, *, seed: int, kills: int, mean: float, pause: float) -> Tally:
    """Give the command until it is done, and kill ``kills`` times.

    A kill comes a ``mean`` of seconds after training has gone on, or, if it does not, a mean of
    ``pause`` seconds after the one before.
    """
    chance, tally = random.Random(seed), Tally(kind=kind, seed=seed)
    began = time.monotonic()
    code = None

    def wait(process: subprocess.Popen[bytes]) -> bool:
        soon, late = chance.expovariate(1 / mean), chance.expovariate(1 / pause)
        return _wait(process, home, soon=soon, late=late)

    while code != 0:
        tally.commands += 1
        with _beside(home, "log").open("a+") as log:
            start = log.tell()
            process = subprocess.Popen(
                command(kind, home),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(home),
            )
            family = _kill_some(process, tally, chance, kills=kills, wait=wait)
            code = process.wait()
            _, living = psutil.wait_procs(family, timeout=OUTLIVES)
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
    wait: Callable[[subprocess.Popen[bytes]], bool],
) -> list[psutil.Process]:
    """Kill members of a command's tree until it ends, or enough are; everybody seen in it."""
    driver, seen = psutil.Process(process.pid), set[psutil.Process]()
    while tally.killed < kills and process.poll() is None:
        trains = wait(process)
        tree = dict(_tree(driver))
        seen |= tree.keys()
        victims = sorted(tree, key=lambda each: each.pid)
        if not victims or process.poll() is not None:
            continue
        there = Counter(tree.values())
        odds = [ODDS[tree[victim]] / there[tree[victim]] for victim in victims]
        (victim,) = chance.choices(victims, odds)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
        tally.kills[tree[victim]] = tally.kills.get(tree[victim], 0) + 1
        tally.amid_training += trains
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        tally.wrong.append("it hangs")
        seen |= dict(_tree(driver)).keys()
        process.kill()
    return list(seen)


def _wait(process: subprocess.Popen[bytes], home: Path, *, soon: float, late: float) -> bool:
    """Until ``soon`` after training has gone on, or ``late`` from now; whether it is the former.

    Or until the command has ended.
    """
    before, deadline = _written(home), time.monotonic() + late
    while process.poll() is None and time.monotonic() < deadline:
        if _written(home) > before:
            with suppress(subprocess.TimeoutExpired):
                process.wait(soon)
            return True
        time.sleep(0.01)
    return False


def _written(home: Path) -> int:
    try:
        return _beside(home, "witness").stat().st_size
    except FileNotFoundError:
        return 0


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
    counts = recorded(home).counts
    wrong = []
    if counts.running or counts.failed or any(t.state == "waiting" for t in recorded(home).trials):
        wrong.append(f"not at its end: {counts}")
    found = outcome(home)
    for point in sorted(found.keys() | peace.keys()):
        mine, theirs = found.get(point), peace.get(point)
        if mine is None or theirs is None:
            wrong.append(f"{point}: {'missing' if mine is None else 'not in the other study'}")
        else:
            names = sorted(mine.keys() | theirs.keys())
            wrong += [
                f"{point}: other {name}: {mine.get(name)}, {theirs.get(name)}"
                for name in names
                if mine.get(name) != theirs.get(name)
            ]
    return wrong


@dataclass
class Account:
    """The steps of a home's study, held against what the witness saw of each of its runs."""

    trained: int
    not_noted: int
    wrong: list[str]


def account(home: Path) -> Account:
    """What was trained, and what the study says of it.

    Of a run that many trials share (a batch) the sum over them follows from its own count by rule,
    which is a unit test's affair; here it is the run's count that must be true.
    """
    told, wrong = told_steps(_study(home)), list[str]()
    seen = defaultdict[str, list[tuple[str, int]]](list)
    for line in _beside(home, "witness").read_text().splitlines():
        run, process, step = line.split()
        seen[run].append((process, int(step)))
    not_noted = 0
    for run in sorted(told.keys() | seen.keys()):
        count, attempts = told.get(run, StepCount()), len({process for process, _ in seen[run]})
        short = len(seen[run]) - count.trained
        if not 0 <= short <= max(0, attempts - 1):  # the last attempt was not killed
            wrong.append(f"{run}: {count.trained} steps told, {len(seen[run])} trained")
        own, distinct = count.reached - count.reused, len({step for _, step in seen[run]})
        if not 0 <= distinct - own <= max(0, short):
            wrong.append(f"{run}: {own} steps told to be its own, {distinct} are")
        not_noted += short
    for trial in recorded(home).trials:
        steps = sum((each.steps for each in trial.replicates), StepCount())
        if trial.steps.trained != steps.trained or trial.steps.reused != steps.reused:
            wrong.append(f"trial {trial.number}: its steps are not those of its replicates")
        if steps.reached + trial.steps_pruned != trial.budget:
            wrong.append(f"trial {trial.number}: {steps} and {trial.steps_pruned} pruned steps")
    return Account(trained=sum(map(len, seen.values())), not_noted=not_noted, wrong=wrong)


def told_steps(study: optuna.Study) -> Mapping[str, StepCount]:
    """What the study says that every run cost, by the name of the run's folder."""
    told = dict[str, StepCount]()
    for trial in current(study.get_trials(deepcopy=False)):
        attrs, replicates = trial.user_attrs, replicates_of(trial.user_attrs)
        folders = [Path(each.checkpoint or "").name for each in replicates]
        if BATCH in attrs:
            told[folders[0]] = extra_steps(study, attrs[BATCH])
            continue
        counts = [run_of(attrs)] if FUSED in attrs else [each.steps for each in replicates]
        for folder, count in zip(folders, counts, strict=False):
            told[folder] = told.get(folder, StepCount()) + count
    return told


def left_behind(home: Path) -> Iterator[str]:
    """What kills have left that a command does not remove, at once or an hour later."""
    for draft in home.rglob("*draft*"):
        os.utime(draft, (0, 0))
    Home(home).sweep()  # as every command does
    names = ("*draft*", "*.filling", "*.steps", "torchrun-*", ".mlflow.db.*")
    for path in (*(path for name in names for path in home.rglob(name)), *_temporary(home)):
        yield f"left behind: {path.relative_to(home.parent)}"


def _temporary(home: Path) -> Iterator[Path]:
    for path in _beside(home, "tmp").iterdir():
        ours = not path.name.startswith("torchinductor_")  # torch's own cache, which stays
        if ours and not _tried_by_python(path):
            yield path


def _tried_by_python(path: Path) -> bool:
    """Whether it is the file with which Python tries a folder for temporary files.

    It has eight letters for a name and no more than the word "blah", and a process that is killed
    amid the try leaves it.
    """
    named = re.fullmatch(r"[a-z0-9_]{8}", path.name)
    return bool(named) and path.is_file() and b"blah".startswith(path.read_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, compare, print and keep the figures."""
    parser = argparse.ArgumentParser(description="Kill and compare.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, help="of the first study (default: the next one)")
    parser.add_argument(
        "--mean", type=float, help="seconds from training to a kill (default: a trial's; at most 1)"
    )
    parser.add_argument("--each", type=int, default=12, help="kills of one study")
    parser.add_argument("--only", default=",".join(STUDIES), help="kinds of studies")
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    asked = parser.parse_args(arguments)
    kinds, left = asked.only.split(","), asked.kills
    seed = len(_known(asked.out)) if asked.seed is None else asked.seed
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root, peace, takes = Path(folder), dict[str, dict[str, Any]](), dict[str, float]()
        while left > 0:
            kind, home = kinds[seed % len(kinds)], root / f"home-{seed}"
            if kind not in peace:
                began = time.monotonic()
                peace[kind] = trained_in_peace(kind, root / f"{kind}-peace")
                takes[kind] = time.monotonic() - began
                in_peace = account(root / f"{kind}-peace")
                if in_peace.wrong or in_peace.not_noted:
                    sys.exit(f"{kind}, in peace: {in_peace}")
            if (
                kind in TRACKED and seed % 4
            ):  # a store takes seconds to make; not all need their own
                _copy_of_store(root, home)
            tally = torment(
                kind,
                home,
                seed=seed,
                kills=min(left, asked.each),
                mean=asked.mean or min(1.0, _seconds_of_a_trial(root / f"{kind}-peace")),
                pause=2 * takes[kind],
            )
            steps = account(home)
            tally.trained, tally.not_noted = steps.trained, steps.not_noted
            tally.wrong += [*differences(home, peace[kind]), *steps.wrong, *left_behind(home)]
            left -= max(1, tally.killed)
            seed += 1
            # Read anew: several of these may add to one file.
            asked.out.write_text(json.dumps([*_known(asked.out), asdict(tally)], indent=1))
            print(
                f"{kind} (seed {tally.seed}): {tally.kills}, {tally.amid_training} amid training, "
                f"in {tally.commands} commands, {tally.seconds:.0f} s; {tally.trained} steps, "
                f"{tally.not_noted} not noted: {tally.wrong or 'as in peace'}",
                flush=True,
            )
            if tally.wrong:  # to be looked into
                shutil.copytree(home, asked.out.parent / f"wrong-{kind}-{tally.seed}")
            shutil.rmtree(home)
    print(summary(_known(asked.out)))


def _known(out: Path) -> list[dict[str, Any]]:
    """What earlier calls have found."""
    return list(json.loads(out.read_text())) if out.exists() else []


def _seconds_of_a_trial(home: Path) -> float:
    record = recorded(home)
    return record.seconds / len(record.trials)


def _copy_of_store(root: Path, home: Path) -> None:
    """An empty MLflow store for a new home."""
    from knee_tune.tracking.store import connect, local_store  # slow

    connect(local_store(root / "empty"))
    home.mkdir()
    shutil.copyfile(root / "empty" / "mlflow.db", home / "mlflow.db")


def summary(known: Sequence[Mapping[str, Any]]) -> str:
    """All that was ever killed, in a line."""
    roles = sum((Counter(each["kills"]) for each in known), Counter[str]())
    seconds = sum(each["seconds"] for each in known)
    trained, not_noted = (sum(each[name] for each in known) for name in ("trained", "not_noted"))
    amid = sum(each["amid_training"] for each in known)
    return (
        f"{roles.total()} kills ({', '.join(f'{n} of a {role}' for role, n in roles.items())}), "
        f"{amid} of them amid training, in {len(known)} studies, "
        f"{seconds / max(1, roles.total()):.1f} s each; {trained:,} steps trained, {not_noted} of "
        f"them not noted; not as in peace: {sum(bool(each['wrong']) for each in known)}"
    )


if __name__ == "__main__":
    main()
