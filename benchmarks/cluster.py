"""What it costs to train beyond one machine's fork server.

``ray``: from asking for two ranks to their first step, on a Ray of this machine and by the fork
server, group by group in turn, both warm. ``python -m benchmarks.cluster ray``.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.orchestration import first_step, opened_for
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.workers import GroupOptions

OPTIONS = {
    "forkserver": GroupOptions(nproc=2),
    "ray": GroupOptions(nproc=2, runner="ray"),
}


def ray(runs: int) -> dict[str, list[float]]:
    """Seconds to a first step by each runner; the first group of each warms up, uncounted."""
    quick = resolve_asked(task="digits", trials=1, nproc=2, settings=("recipe.epochs=1",))
    seconds: dict[str, list[float]] = {runner: [] for runner in OPTIONS}
    with ExitStack() as stack:
        studies = {}
        for runner, options in OPTIONS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            study = stack.enter_context(opened_for(quick, folder, options))
            studies[runner] = (study, folder)
        for run in range(runs + 1):
            for runner, (study, folder) in studies.items():
                seconds[runner].append(first_step(study, folder, run))
                time.sleep(0.2)  # what the group before leaves is gone
    return {runner: found[1:] for runner, found in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["ray"])
    parser.add_argument("--runs", type=int, default=15)
    chosen = parser.parse_args()
    found = ray(chosen.runs)
    print(f"from asking for two ranks to their first step (median of {chosen.runs}, in turn)")
    for runner, seconds in found.items():
        print(f"  {runner:10} {statistics.median(seconds):6.3f} s, max {max(seconds):.3f} s")
    ratio = statistics.median(found["ray"]) / statistics.median(found["forkserver"])
    print(f"  ratio      {ratio:6.2f}")


if __name__ == "__main__":
    main()
