"""``knee-tune data``: corpora and images made ready to train on."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from knee_tune.cli.console import PlainConsole
from knee_tune.cli.flags import as_typed
from knee_tune.cli.options import DEFAULT_HOME, MOST, HomeOption, JsonOption, TextKind, path_of
from knee_tune.errors import one_line

if TYPE_CHECKING:
    from knee_tune.commands.look import PreparedSet

data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)


@data_app.command()
def prepare(
    task: Annotated[
        str,
        typer.Argument(help="Task whose data is prepared: iwslt, cifar10, gpt, ..."),
    ],
    from_path: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=path_of,
            metavar="PATH",
            help="Folder or archive with the corpus; folder, archive or .npz file with the images; "
            "file or folder with the text or the questions. (default: downloaded where it is "
            "published; of gpt and bert the embedded text, of squad generated questions)",
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
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="FILE",
            help="WordPiece vocabulary of bert, one entry a line. (default: learned from the text)",
        ),
    ] = None,
    lowercase: Annotated[
        bool | None,
        typer.Option(
            "--lowercase/--no-lowercase",
            help="Text that is not cut by BPE yet. (default: of iwslt yes, of translation no)",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a set made otherwise.")] = False,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make data ready to train on: a corpus (download, tokenize, clean, BPE, binarize), images, any
    text, questions."""
    from knee_tune.commands.home import Home
    from knee_tune.commands.look import prepare_data, training_command

    given: dict[str, Any] = {
        "from_path": from_path,
        "name": name,
        "source": source,
        "target": target,
        "kind": kind,
        "train_prefix": train_prefix,
        "valid_prefix": valid_prefix,
        "test_prefix": test_prefix,
        "bpe_codes": bpe_codes,
        "codes": codes,
        "joint_dictionary": joint_dictionary or None,
        "vocabulary": vocabulary,
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
        warnings = [as_typed(warning) for warning in prepared.warnings]
        typer.echo(json_module.dumps(vars(prepared) | {"warnings": warnings}, default=str))
    else:
        print_prepared(console, prepared, command=training_command(task, Home(home), prepared.name))


def print_prepared(console: Console, prepared: "PreparedSet", *, command: str) -> None:
    """What the set holds, and the command that trains on it."""
    done = "already there" if prepared.reused else f"prepared in {prepared.seconds:.0f} s"
    console.print(Text.assemble((prepared.name, "bold"), f" {done}: {prepared.contents()}"))
    for warning in prepared.warnings:
        console.print(as_typed(warning), style="yellow", markup=False, soft_wrap=True)
    console.print(f"in {prepared.folder}", soft_wrap=True)
    console.print(f"train on it: {command}", soft_wrap=True, markup=False)
