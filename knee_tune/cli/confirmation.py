"""What is printed of a confirmation, of the winner's place, and of the model registered."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from knee_tune.specs.shown import learning_rate, percent, setting

if TYPE_CHECKING:
    from knee_tune.specs.confirmation import Confirmation
    from knee_tune.specs.estimate import Estimate
    from knee_tune.specs.records import StudyRecord
    from knee_tune.specs.tracking import RegisteredModel

HOW_TO_A_CHAMPION = {
    "no": "it was not confirmed: knee-tune register --as champion makes it the champion anyhow",
    "not tried": "knee-tune register makes it the champion; --confirm 3:5 tests it first",
}
"""What to type if a candidate is to be the champion, by how it was confirmed."""


def print_confirmation(console: Console, confirmation: "Confirmation") -> None:
    """Every candidate's mean and difference with their intervals, and the verdict in one line."""
    seeds, steps = confirmation.seeds, confirmation.steps
    console.print(
        f"\nconfirmation with {len(seeds)} fresh seeds ({seeds[0]} to {seeds[-1]}), "
        f"{steps.trained:,} steps trained, {steps.reused:,} reused:",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("seed LR", justify="right")
    table.add_column("explore", justify="right")
    table.add_column(f"{confirmation.metric}, mean and interval", justify="right")
    table.add_column("difference to the default", justify="right")
    for index, candidate in enumerate(confirmation.candidates):
        difference = "(the default)" if candidate.default else _shown(candidate.difference, "+")
        table.add_row(
            learning_rate(candidate.seed_lr),
            percent(candidate.explore_fraction),
            _shown(candidate.mean),
            difference,
            style="bold" if index == confirmation.winner else "",
        )
    console.print(table)
    for candidate in confirmation.candidates:
        for run in candidate.runs:
            if run.value is None:
                console.print(
                    f"{setting(candidate.seed_lr, candidate.explore_fraction)} is out: "
                    f"{run.reason or 'no value'} (seed {run.seed})",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
    count = confirmation.comparisons
    together = "" if count < 2 else f"; the {count} differences hold together (Bonferroni)"
    console.print(f"(intervals of Student's t at 95 %{together})", soft_wrap=True)
    style = "bold green" if confirmation.confirmed else "yellow"
    console.print(confirmation.words, style=style, markup=False, soft_wrap=True)


def print_edges(console: Console, record: "StudyRecord") -> None:
    """If the winner lies on the edge of the search space: how to look beyond."""
    from knee_tune.specs.edges import edges

    winner = record.winner
    if winner is None:
        return
    for edge in edges(
        record.spec, seed_lr=winner.seed_lr, explore_fraction=winner.explore_fraction
    ):
        console.print(
            f"on the edge of the search space ({edge.what}): a better one may lie beyond; the same "
            f"command with more trials and --set '{edge.setting}' looks there",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def print_registered(console: Console, model: "RegisteredModel") -> None:
    """Where the model is, what it is called, and how to load it."""
    version = f"{model.name} version {model.version}"
    if model.new:
        said = f"registered {version} as {model.alias}"
    else:
        said = f"already registered: {version} is the {model.alias}"
    console.print(said, soft_wrap=True)
    if model.alias == "candidate" and model.confirmed in HOW_TO_A_CHAMPION:
        console.print(f"  {HOW_TO_A_CHAMPION[model.confirmed]}", soft_wrap=True, markup=False)
    console.print(f'  mlflow.pyfunc.load_model("{model.uri}")', soft_wrap=True, markup=False)


def _shown(estimate: "Estimate | None", sign: str = "") -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{sign}.4g} [{estimate.low:{sign}.4g}, {estimate.high:{sign}.4g}]"
