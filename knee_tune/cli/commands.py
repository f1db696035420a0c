"""The commands. Every one parses its options, calls one function of the app, and prints."""

import json as json_module
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from knee_tune.cli.analyse import analyse_app
from knee_tune.cli.audit import audit
from knee_tune.cli.budget import budget
from knee_tune.cli.options import (
    DEFAULT_HOME,
    MOST,
    Alias,
    ConsoleLines,
    HomeOption,
    JsonOption,
    PlainConsole,
    StorageOption,
    StudyArgument,
    TextKind,
    TrackingOption,
    TrialOption,
    open_in_browser,
    path_of,
)
from knee_tune.cli.reproduce import reproduce
from knee_tune.cli.run import run
from knee_tune.errors import one_line

if TYPE_CHECKING:
    from knee_tune.commands.look import StoredTrunks
    from knee_tune.runs.trunks import TrunkEntry


# ``knee-tune trunks``: what the trunk store holds, and making room.

trunks_app = typer.Typer(help="Trunks, which many runs start from.", no_args_is_help=True)


@trunks_app.command(name="list")
def list_command(json: JsonOption = False, home: HomeOption = DEFAULT_HOME) -> None:
    """The trunks that are kept, the one used last first."""
    from knee_tune.commands.home import Home
    from knee_tune.commands.look import list_trunks

    stored = list_trunks(Home(home))
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
) -> None:
    """Remove trunks. Nothing is lost but time: the next run trains what it misses."""
    from knee_tune.commands.home import Home
    from knee_tune.commands.look import clear_trunks

    cleared = clear_trunks(Home(home), task=task, older_than_days=older_than)
    size = _shown(sum(entry.size for entry in cleared.removed))
    typer.echo(f"{_count(len(cleared.removed), 'trunk')} removed, {size}")
    for entry in cleared.in_use:
        PlainConsole().print(f"left, because a run is training it: {_named(entry)}")


def _print(console: Console, stored: "StoredTrunks") -> None:
    table = Table("task", "seed LR", "seed", "ranks", "checkpoints", "size", "last used", box=None)
    for entry in stored.trunks:
        note = entry.note
        about = (
            (note.task, f"{note.seed_lr:g}", str(note.seed), str(note.world_size))
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
    return f"{note.task}, seed LR {note.seed_lr:g}, seed {note.seed}" if note else entry.key


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shown(size: int) -> str:
    """Bytes as people read them."""
    from pydantic import ByteSize

    return ByteSize(size).human_readable(decimal=True)


# Commands around the studies: ``data prepare`` and ``doctor``.


def prepare(
    task: Annotated[
        str, typer.Argument(help="Task whose data is prepared: iwslt, cifar10 or imagenet.")
    ],
    from_path: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=path_of,
            metavar="PATH",
            help="Folder or archive with the corpus; folder, archive or .npz file with the images. "
            "(default: downloaded where it is published)",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the prepared set, for recipe.data.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Source language. (default: de)")] = None,
    target: Annotated[str | None, typer.Option(help="Target language. (default: en)")] = None,
    kind: Annotated[
        TextKind | None, typer.Option(help="What the text is, if its names do not tell.")
    ] = None,
    train_prefix: Annotated[
        str | None, typer.Option(help="Files PREFIX.<language> of the training text.")
    ] = None,
    valid_prefix: Annotated[str | None, typer.Option(help="Of the validation text.")] = None,
    test_prefix: Annotated[str | None, typer.Option(help="Of the test text.")] = None,
    bpe_codes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="BPE merges to learn. (default: codes beside the text, else 10,000)",
        ),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="FILE", help="BPE codes to apply instead."),
    ] = None,
    joint_dictionary: Annotated[
        bool, typer.Option("--joint-dictionary", help="One vocabulary for both languages.")
    ] = False,
    lowercase: Annotated[
        bool | None,
        typer.Option(
            "--lowercase/--no-lowercase", help="Text that is not cut by BPE yet. (default: yes)"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a set made otherwise.")] = False,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make data ready to train on: a corpus (download, tokenize, clean, BPE, binarize), images."""
    from knee_tune.cli.summary import print_prepared
    from knee_tune.commands.home import Home
    from knee_tune.commands.look import prepare_data, training_command

    given: dict[str, Any] = {
        "from_path": from_path,
        "name": name,
        "source": source,
        "target": target,
        "kind": kind and kind.value,
        "train_prefix": train_prefix,
        "valid_prefix": valid_prefix,
        "test_prefix": test_prefix,
        "bpe_codes": bpe_codes,
        "codes": codes,
        "joint_dictionary": joint_dictionary or None,
        "lowercase": lowercase,
        "force": force,
    }
    console = PlainConsole()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=json, transient=True) as progress:
        bar = progress.add_task("", total=1.0)

        def show(text: str, share: float) -> None:
            progress.update(bar, description=one_line(text), completed=share)

        prepared = prepare_data(task, Home(home), given | {"progress": show})
    if json:
        typer.echo(json_module.dumps(vars(prepared), default=str))
    else:
        print_prepared(console, prepared, command=training_command(task, Home(home), prepared.name))


def doctor(
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Check the set-up: libraries, devices, places, servers, data. Exit code 1 if one is amiss."""
    from dataclasses import asdict

    from knee_tune.cli.summary import print_checks
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import check_up

    checks = check_up(Places.of(Home(home), storage=storage, tracking_uri=tracking_uri))
    if json:
        typer.echo(json_module.dumps({"checks": [asdict(check) for check in checks]}))
    else:
        print_checks(PlainConsole(), checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


# ``knee-tune report``: what a study has found out, as a page to read.


class Format(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MD = "md"
    JSON = "json"


def report(
    study: StudyArgument = None,
    form: Annotated[
        Format,
        typer.Option("--format", help="html: one file with figures. md: text. json: all numbers."),
    ] = Format.HTML,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=path_of,
            metavar="PATH",
            help="File to write, or - to print. (default: HOME/reports/STUDY.FORMAT)",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Write what a study has found out: the setting to use, how sure that is, what it cost.

    The setting is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.report import study_report, text_of, usual_path, write_report
    from knee_tune.errors import UserError, printable

    printed = out == Path("-")
    if show and printed:
        raise UserError("--open: needs a file; leave out --out -")
    places = Places.of(Home(home), storage=storage, tracking_uri=None)
    found = study_report(places, study)
    if printed:
        typer.echo(text_of(found, form.value), nl=False)
        return
    path = write_report(found, out or usual_path(places, found.study, form.value), form.value)
    typer.echo(printable(f"report: {path}"))
    if show:
        open_in_browser(path)


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
    from knee_tune.cli.summary import print_status
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import look_at

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
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import look_at_search
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
    from knee_tune.cli.summary import print_registered
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import find_search
    from knee_tune.commands.winner import register_study

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
    from knee_tune.cli.summary import print_replay
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
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import serve

    places = Places.of(Home(home), storage=storage, tracking_uri="none")
    serve(places, study, port=port, on_line=ConsoleLines(PlainConsole()).line)


@app.command()
def tasks(
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,  # every command takes it: tasks are the same in all of them
) -> None:
    """What can be trained, and in which variants."""
    from dataclasses import asdict

    from knee_tune.cli.summary import print_tasks
    from knee_tune.commands.look import list_tasks

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
