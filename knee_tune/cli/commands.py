"""The commands. Every one parses its options, calls one function of the app, and prints."""

import json as json_module
from typing import Annotated

import typer

from knee_tune.cli.analyse import analyse_app
from knee_tune.cli.audit import audit
from knee_tune.cli.budget import budget
from knee_tune.cli.lines import ConsoleLines, PlainConsole
from knee_tune.cli.options import (
    DEFAULT_HOME,
    Alias,
    HomeOption,
    JsonOption,
    StorageOption,
    StudyArgument,
    TrackingOption,
    TrialOption,
)
from knee_tune.cli.report import report
from knee_tune.cli.reproduce import reproduce
from knee_tune.cli.run import run
from knee_tune.cli.trunks import trunks_app
from knee_tune.cli.upkeep import doctor, prepare

app = typer.Typer(
    name="knee-tune",
    help="Find the seed LR and the explore fraction of a Knee learning-rate schedule.",
    epilog="Exit codes: 0 done; 1 something of ours or of the machine, the same command goes on; "
    "2 your input, your own data and code included; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)
data_app.command()(prepare)


app.command()(run)


@app.command()
def status(
    study: StudyArgument = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every trial, not only the best and the newest.")
    ] = False,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """How a study stands: trials, the winner, steps trained.

    The winner is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import look_at
    from knee_tune.cli.summary import print_status

    record = look_at(Places.of(Home(home), storage=storage, tracking_uri="none"), study)
    if json:
        typer.echo(json_module.dumps(record.status_as_json()))
    else:
        print_status(PlainConsole(), record, every=every)


@app.command()
def best(
    study: StudyArgument = None,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """The winner so far: the seed LR and explore fraction to use.

    It is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import look_at_search
    from knee_tune.errors import UserError

    record = look_at_search(Places.of(Home(home), storage=storage, tracking_uri="none"), study)
    winner = record.winner
    if winner is None:
        raise UserError(f"study {record.name}: no trial is complete yet")
    if json:
        typer.echo(json_module.dumps(record.best_as_json()))
    else:
        typer.echo(
            f"{winner.setting}: {record.metric} {winner.value:.4g} "
            f"({winner.evidence} of {record.name})"
        )


@app.command()
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
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import find_search
    from knee_tune.app.winner import register_study
    from knee_tune.cli.confirmation import print_registered

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    registered = register_study(
        places,
        find_search(places, study).study_name,
        number=trial,
        alias=alias.value if alias else None,
        untried="champion",  # who types this has decided
        on_line=ConsoleLines(PlainConsole()).line,
    )
    print_registered(PlainConsole(), registered)


@app.command()
def replay(
    study: StudyArgument = None,
    trial: TrialOption = None,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Train the winner, or another trial, again from its recorded plan and compare."""
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import find_search
    from knee_tune.app.winner import replay as replay_trial
    from knee_tune.cli.summary import print_replay

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


@app.command()
def dashboard(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Name of the study to open first.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Open Optuna Dashboard on 127.0.0.1."""
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import serve

    places = Places.of(Home(home), storage=storage, tracking_uri="none")
    serve(places, study, port=port, on_line=ConsoleLines(PlainConsole()).line)


@app.command()
def tasks(
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,  # every command takes it: tasks are the same in all of them
) -> None:
    """What can be trained, and in which variants."""
    from dataclasses import asdict

    from knee_tune.app.look import list_tasks
    from knee_tune.cli.summary import print_tasks

    infos = list_tasks()
    if json:
        typer.echo(json_module.dumps({"tasks": [asdict(info) for info in infos]}))
    else:
        print_tasks(PlainConsole(), infos)


app.add_typer(data_app, name="data")
app.add_typer(trunks_app, name="trunks")
app.add_typer(analyse_app, name="analyse")
app.command()(audit)
app.command()(budget)
app.command()(doctor)
app.command()(report)
app.command()(reproduce)
