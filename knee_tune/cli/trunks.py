"""``knee-tune trunks``: what the trunk store holds, and making room."""

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from knee_tune.cli.console import PlainConsole
from knee_tune.cli.options import DEFAULT_HOME, HomeOption, JsonOption

if TYPE_CHECKING:
    from knee_tune.commands.look import StoredTrunks
    from knee_tune.runs.trunks import TrunkEntry

SharedTrunksOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Those that homes share there (run --shared) instead of a home's."
    ),
]
"""Never from the environment: what is cleared is named."""

trunks_app = typer.Typer(help="Trunks, which many runs start from.", no_args_is_help=True)


@trunks_app.command(name="list")
def list_command(
    json: JsonOption = False, home: HomeOption = DEFAULT_HOME, shared: SharedTrunksOption = None
) -> None:
    """The trunks that are kept, the one used last first."""
    from knee_tune.commands.home import Home
    from knee_tune.commands.look import list_shared_trunks, list_trunks

    stored = list_trunks(Home(home)) if shared is None else list_shared_trunks(shared)
    if json:
        typer.echo(json_module.dumps(_as_json(stored)))
    else:
        _print(PlainConsole(), stored)


@trunks_app.command(name="clear")
def clear_command(
    task: Annotated[str | None, typer.Option(help="Only the trunks of this task.")] = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", min=0, max=36_500, help="Only those that no run used for so long."
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    shared: SharedTrunksOption = None,
) -> None:
    """Remove trunks. Nothing is lost but time: the next run trains what it misses."""
    from knee_tune.commands.home import Home
    from knee_tune.commands.look import clear_shared_trunks, clear_trunks

    if shared is None:
        cleared = clear_trunks(Home(home), task=task, older_than_days=older_than)
    else:
        cleared = clear_shared_trunks(shared, task=task, older_than_days=older_than)
    size = _shown(sum(entry.size for entry in cleared.removed))
    typer.echo(f"{_count(len(cleared.removed), 'trunk')} removed, {size}")
    for entry in cleared.in_use:
        PlainConsole().print(f"left, because a run is training it: {_named(entry)}")


def _print(console: Console, stored: "StoredTrunks") -> None:
    table = Table("task", "seed LR", "seed", "ranks", "checkpoints", "size", "last used", box=None)
    for entry in stored.trunks:
        note = entry.note
        about = (
            (note.task, f"{note.seed_lr:g}", _known(note.seed), _known(note.world_size))
            if note
            else (entry.key, "?", "?", "?")
        )
        used = f"{entry.used.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(*about, _steps(entry), _shown(entry.size), used)
    if stored.trunks:
        console.print(table)
    limit = "" if stored.limit is None else f" of {_shown(stored.limit)}"
    console.print(f"{_count(len(stored.trunks), 'trunk')}, {_shown(stored.size)}{limit}")


def _as_json(stored: "StoredTrunks") -> dict[str, Any]:
    return {
        "trunks": [
            {
                "key": entry.key,
                "task": entry.note and entry.note.task,
                "seed_lr": entry.note and entry.note.seed_lr,
                "warmup_steps": entry.note and entry.note.warmup_steps,
                "seed": entry.note and entry.note.seed,
                "world_size": entry.note and entry.note.world_size,
                "knots": list(entry.sizes),
                "bytes": entry.size,
                "used": entry.used.isoformat(timespec="seconds"),
            }
            for entry in stored.trunks
        ],
        "bytes": stored.size,
        "limit_bytes": stored.limit,
    }


def _steps(entry: "TrunkEntry") -> str:
    steps = list(entry.sizes)
    match len(steps):
        case 0:
            return "none"
        case 1:
            return f"1 (step {steps[0]:,})"
    return f"{len(steps)} (steps {steps[0]:,} to {steps[-1]:,})"


def _named(entry: "TrunkEntry") -> str:
    note = entry.note
    return f"{note.task}, seed LR {note.seed_lr:g}, seed {_known(note.seed)}" if note else entry.key


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shown(size: int) -> str:
    """Bytes as people read them."""
    from pydantic import ByteSize

    return ByteSize(size).human_readable(decimal=True)
