"""Commands around the studies: ``data prepare`` and ``doctor``."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from knee_tune.cli.lines import PlainConsole
from knee_tune.cli.options import (
    DEFAULT_HOME,
    MOST,
    HomeOption,
    JsonOption,
    StorageOption,
    TextKind,
    TrackingOption,
    path_of,
)
from knee_tune.errors import one_line


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
    from knee_tune.app.home import Home
    from knee_tune.app.upkeep import prepare_data, training_command
    from knee_tune.cli.summary import print_prepared

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

    from knee_tune.app.home import Home, Places
    from knee_tune.app.upkeep import check_up
    from knee_tune.cli.summary import print_checks

    checks = check_up(Places.of(Home(home), storage=storage, tracking_uri=tracking_uri))
    if json:
        typer.echo(json_module.dumps({"checks": [asdict(check) for check in checks]}))
    else:
        print_checks(PlainConsole(), checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
