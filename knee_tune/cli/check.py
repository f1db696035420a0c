"""``knee-tune check``: is a training exactly resumable?"""

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from knee_tune.cli.options import (
    DEFAULT_HOME,
    DeviceOption,
    HomeOption,
    JsonOption,
    NprocOption,
    PresetOption,
    RunnerOption,
    ScriptArgument,
    ScriptArguments,
    SettingsOption,
    TaskOption,
)
from knee_tune.errors import UserError, printable

if TYPE_CHECKING:
    from knee_tune.commands.check import Comparison

MOST_STEPS = 100_000
"""Of a check: every one is hashed and noted."""

INEXACT = 1
"""Exit code for what is not exactly resumable."""


def check(
    script: ScriptArgument = None,
    arguments: ScriptArguments = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=MOST_STEPS,
            metavar="N",
            help="Steps of a run; best more than an epoch. (default: 40, or as join says if that "
            "is fewer)",
        ),
    ] = None,
    cut: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_STEPS,
            metavar="K",
            help="Step after which runs go on, best in the middle of an epoch. (default: 17 of 40)",
        ),
    ] = None,
    task: TaskOption = None,
    preset: PresetOption = None,
    settings: SettingsOption = None,
    nproc: NprocOption = None,
    device: DeviceOption = "auto",
    runner: RunnerOption = "forkserver",
    home: HomeOption = DEFAULT_HOME,
    json: JsonOption = False,
) -> None:
    """Is a training script or a task exactly resumable, and if not, what differs first?

    Compares uninterrupted, resumed and branched runs at every step. Keeps nothing.
    Exit codes: 0 it is; 1 it is not; 2 it cannot be trained.
    """
    if (script is None) == (task is None):
        raise UserError("name what to check: a script, or a task with `task`")
    if script is not None and (preset, settings) != (None, None):
        raise UserError("`preset`, `settings`: of tasks alone; leave them out for a script")
    from knee_tune.commands.check import check as check_training
    from knee_tune.commands.home import Home
    from knee_tune.commands.workers import GroupOptions

    options = GroupOptions(nproc=nproc or 1, device=device, runner=runner)
    data = Home(home).data
    checked = check_training(
        script,
        arguments or (),
        options,
        steps=steps,
        cut=cut,
        task=task,
        preset=preset,
        settings=tuple(settings or ()),
        data=data if data.is_dir() else None,  # what is prepared without it goes with the check
        on_comparison=lambda found: None if json else print_comparison(found, options.nproc),
    )
    if json:
        typer.echo(json_module.dumps({**checked.model_dump(), "exact": checked.exact}))
    elif checked.exact:
        typer.echo("exactly resumable: runs that go on or branch have the uninterrupted run's bits")
    if not checked.exact:
        raise typer.Exit(INEXACT)


def print_comparison(found: "Comparison", ranks: int) -> None:
    """One line; of a difference what differs first, and what to do about it."""
    difference = found.difference
    if difference is None:
        said = f"the same bits, steps {found.first_step} to {found.last_step}"
        typer.echo(f"{found.what}: {said}")
        return
    where = f"step {difference.step}" + (f", rank {difference.rank}" if ranks > 1 else "")
    lines = [f"{found.what}: not the same bits, first at {where}: {difference.what}"]
    if difference.forgotten and difference.part != "forgotten":
        also = ", ".join(difference.forgotten)
        lines.append(f"  also different, and not among {difference.keeper}: {also}")
    for line in (*lines, f"  {found.advice}", "not exactly resumable"):
        typer.echo(printable(line))
