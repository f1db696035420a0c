"""Runs of ours as a study trains them, and a reference, in turns on the same machine."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from knee_tune.commands.workers import Workers
from knee_tune.plans.planner import budget_steps
from knee_tune.schedules import Cosine
from knee_tune.stats.estimates import mean_estimate
from knee_tune.workers.protocol import Callbacks, Decision, Done, Report


def train_in_slots(workers: Workers, *, seed: int) -> list[list[Report]]:
    """A run in every slot, all at the same time: the first with ``seed``, each with one more.

    Returns the reports of each.
    """
    facts, recipe = workers.facts, workers.recipe
    schedule = Cosine(seed_lr=recipe.seed_lr, total_steps=budget_steps(recipe, facts))

    def slot(number: int) -> list[Report]:
        reports: list[Report] = []

        def told(report: Report) -> Decision:
            reports.append(report)
            return Decision(stop=False)

        plan = workers.train_plan(
            schedule, log_key=f"slot-{number}", seed=seed + number, slot=number
        )
        outcome = workers.runner.run(plan, Callbacks(on_report=told, on_line=print))
        shutil.rmtree(plan.checkpoint_dir, ignore_errors=True)
        if not isinstance(outcome, Done):
            raise SystemExit(outcome.traceback or outcome.message)
        return reports

    slots = workers.options.slots
    with ThreadPoolExecutor(slots) as pool:
        return list(pool.map(slot, range(slots)))


def steps_per_second(reports: Sequence[Report]) -> float:
    """From the first report to the last, evaluations included; start and caches do not count."""
    first, last = reports[0], reports[-1]
    return (last.step - first.step) / (last.seconds - first.seconds)


def in_turns(
    each: dict[str, Callable[[int], float]],
    reference: Callable[[int], float],
    *,
    rounds: int,
    unit: str,
) -> dict[str, tuple[float, list[float]]]:
    """For every way its median rate and its ratio to the reference, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in each}
    theirs = []
    for number in range(rounds):
        theirs.append(reference(number))
        print(f"  round {number + 1}: reference {theirs[-1]:,.1f}", end="", flush=True)
        for name, measure in each.items():
            rates[name].append(measure(number))
            print(f", {name} {rates[name][-1]:,.1f}", end="", flush=True)
        print()
    print(f"reference: {median(theirs):,.1f} {unit}")
    return {
        name: (median(rate), [a / b for a, b in zip(rate, theirs, strict=True)])
        for name, rate in rates.items()
    }


def shown(values: Sequence[float]) -> str:
    """The mean and its 95 % interval, where there are values enough."""
    mean = mean_estimate(values)
    if mean.low is None:
        return f"{mean.value:.2f}"
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
