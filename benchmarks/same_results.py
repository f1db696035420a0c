"""Whether this checkout still does what another one does: the same answers, the same bits.

    python -m benchmarks.same_results --against DIR [--only digits,grid,...]

``DIR`` is another checkout (``git worktree add DIR COMMIT``). Both, one after the other and in this
environment, train small studies in fresh homes, give them to every command that prints JSON, and
register the winner. What is printed must be equal, but for times, places and names that hold the
code (a run is called after the code that trains it), and so must all files of weights, byte for
byte. Meant for changes of structure: whoever changes what is said or trained sees it listed.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

QUICK = ("--task", "digits", "--preset", "quick")
SMALL = (
    *(*QUICK, "--set", "recipe.epochs=2", "--set", "space.seed_lr={values: [0.03, 0.05]}"),
    *("--set", "space.explore_fraction={values: [0.2, 0.4, 0.8]}"),
)
STUDIES = {
    "digits": (("run", *QUICK, "--trials", "6", "--seed", "2", "--confirm", "1:2"),),
    "grid": (("run", *SMALL, "--sampler", "grid", "--replicates", "2", "--goal", "ridge"),),
    "pruned": (
        ("run", *SMALL, "--sampler", "random", "--no-fuse", "--nproc", "2", "--pruner", "median"),
        ("run", *SMALL, "--sampler", "random", "--no-fuse", "--nproc", "2", "--schedule", "cosine"),
        ("audit", "--json"),
    ),
    "table": (("reproduce", "table16", "--task", "digits", "--scale", "0.1", "--seeds", "2"),),
    "budget": (
        (
            *("budget", *QUICK, "--target", "60", "--budgets", "2,4", "--replicates", "2"),
            "--json",
        ),
    ),
    "translation": (
        *(("run", "--task", "iwslt", "--preset", "demo", "--trials", "2", "--sampler", "random"),),
    ),
}
"""Commands by the name of the home that they are given in."""

QUESTIONS = (
    *(
        ("status", "--json", "--all"),
        ("best", "--json"),
        ("report", "--format", "json", "--out", "-"),
    ),
    *(("tasks", "--json"), ("trunks", "list", "--json")),
)

VARYING = re.compile(
    r"code|key|checkpoint|folder|path|home|uri|url|link|started|finished|ended|created|written|used"
    r"|seconds|time|date|version|host|user|pid|commit|size|bytes|platform|where",
)
"""Fields that say when, where, or by which code."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and ask in both checkouts; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--only", default=",".join(STUDIES), help="homes, by name")
    asked = parser.parse_args(arguments)
    here = Path(__file__).resolve().parents[1]
    different = False
    for name in asked.only.split(","):
        ours, theirs = (results(checkout, name) for checkout in (here, asked.against.resolve()))
        lines = list(difflib.unified_diff(theirs, ours, "theirs", "ours", lineterm="", n=1))
        print(f"{name}: {len(ours)} lines, " + ("DIFFERENT" if lines else "the same"), flush=True)
        print(*lines, sep="\n", end="\n" if lines else "")
        different |= bool(lines)
    sys.exit(different)


def results(checkout: Path, name: str) -> list[str]:
    """What the commands of one home printed and left behind, without what may vary."""
    with tempfile.TemporaryDirectory(prefix="same-") as folder:
        home = Path(folder) / name
        lines: list[str] = []
        for command in (*STUDIES[name], *QUESTIONS):
            code, printed = knee_tune(checkout, *command, "--home", str(home))
            lines.append(f"$ {' '.join(command)}: exit code {code}")
            if "json" in command or "--json" in command:
                lines += shown(printed)
        return lines + [f"weights {digest}" for digest in weights(home)]


def knee_tune(checkout: Path, *command: str) -> tuple[int, str]:
    """Exit code and stdout of a command by that checkout; what it complains of is shown."""
    done = subprocess.run(
        [sys.executable, "-m", "knee_tune", *command],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    return done.returncode, done.stdout


def shown(printed: str) -> Iterator[str]:
    """Lines of the JSON in ``printed``, which may begin with lines of another kind."""
    start = min((at for at in map(printed.find, "{[") if at >= 0), default=0)
    try:
        said = json.loads(printed[start:])
    except ValueError:
        yield from printed.splitlines()
        return
    yield from json.dumps(steady(said), indent=1, sort_keys=True).splitlines()


def steady(value: Any) -> Any:
    """``value`` without its fields that vary, and without what is drawn from them."""
    if isinstance(value, dict):
        return {name: steady(each) for name, each in value.items() if not VARYING.search(name)}
    if isinstance(value, list):
        return [steady(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"\b[0-9a-f]{8,64}\b|\S*/\S+|\d{4}-\d\d-\d\d\S*|\d+ (s|ms|min)\b", "…", value)
    return value


def weights(home: Path) -> list[str]:
    """Digests of all weights in the home, trunk checkpoints among them."""
    files = [file for file in home.rglob("*.safetensors") if file.is_file()]
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


if __name__ == "__main__":
    main()
