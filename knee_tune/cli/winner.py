"""``knee-tune register`` and ``replay``: the winner in the registry, and trained once more."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from knee_tune.cli.console import ConsoleLines, PlainConsole
from knee_tune.cli.options import (
    DEFAULT_HOME,
    Alias,
    HomeOption,
    StorageOption,
    StudyArgument,
    TrackingOption,
    TrialOption,
)

if TYPE_CHECKING:
    from knee_tune.commands.winner import Replay


def register(
    study: StudyArgument = None,
    trial: TrialOption = None,
    alias: Annotated[
        Alias | None,
        typer.Option(
            "--as", help="Alias. (default: champion, or candidate if a confirmation failed)"
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Test a study's winner once and put it into the MLflow model registry.

    It is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.cli.summary import print_registered
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import find_search
    from knee_tune.commands.winner import register_study

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    registered = register_study(
        places,
        find_search(places, study).study_name,
        number=trial,
        alias=alias,
        untried="champion",  # who types this has decided
        on_line=ConsoleLines(PlainConsole()).line,
    )
    print_registered(PlainConsole(), registered, places)


def replay(
    study: StudyArgument = None,
    trial: TrialOption = None,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Train the winner, or another trial, again from its recorded plan and compare."""
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import find_search
    from knee_tune.commands.winner import replay as replay_trial

    places = Places.of(Home(home), storage=storage, tracking_uri="none")
    console = PlainConsole()
    again = replay_trial(
        places,
        find_search(places, study).study_name,
        number=trial,
        on_report=lambda report: console.print(f"step {report.step}/{report.total_steps}"),
        on_line=ConsoleLines(PlainConsole()).line,
    )
    print_replay(console, again)


def print_replay(console: Console, replay: "Replay") -> None:
    """Then and now, metric by metric."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("metric", "recorded", "replayed"):
        table.add_column(column, justify="right")
    for name, value in replay.metrics.items():
        then = replay.trial.kept_metrics.get(name)
        table.add_row(name, "" if then is None else f"{then:.6g}", f"{value:.6g}")
    console.print(table)
    same = "the same, bit for bit" if replay.same else "not the same bits"
    console.print(f"trial {replay.trial.number} replayed: {same}")
