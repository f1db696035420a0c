"""The commands there are. Every one parses its options, calls one function, and prints."""

from typing import Annotated

import typer

from knee_tune import __version__
from knee_tune.cli.analyse import analyse_app
from knee_tune.cli.audit import audit
from knee_tune.cli.budget import budget
from knee_tune.cli.check import check
from knee_tune.cli.data import data_app
from knee_tune.cli.horizons import horizons
from knee_tune.cli.look import best, dashboard, doctor, report, status, tasks
from knee_tune.cli.reproduce import reproduce
from knee_tune.cli.run import run
from knee_tune.cli.trunks import trunks_app
from knee_tune.cli.winner import register, replay

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


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"knee-tune {__version__}")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take what stands before a command."""


for command in (
    *(run, check, status, best, report, register, replay, audit),
    *(horizons, budget, reproduce, tasks, dashboard, doctor),
):
    app.command()(command)

for name, group in {"data": data_app, "trunks": trunks_app, "analyse": analyse_app}.items():
    app.add_typer(group, name=name)
