"""Options that several commands share, each written once, and how far their numbers go."""

import errno
import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from knee_tune.errors import MachineError, printable

if TYPE_CHECKING:
    from knee_tune.records.study import StudyRecord

MOST, MOST_SEED = 1_000_000, 2**31 - 1

"""The highest count and the highest random seed that an option takes."""

SMALLEST, LARGEST = 1e-12, 1e12

"""Of LRs, tolerances and seconds. A number with two bounds is finite too."""


def path_of(text: str | Path) -> Path:
    """The path that was typed; BadParameter if no file can have it, there or not.

    Nothing at all would be the working folder, which nobody means by ``--home "$UNSET"``.
    """
    if not str(text):
        raise typer.BadParameter("it is empty; name a path")
    try:
        os.lstat(text)
    except ValueError as error:
        raise typer.BadParameter(f"no file can be called so ({error})") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise typer.BadParameter(f"{error.strerror}") from None
    return Path(text)


HomeOption = Annotated[
    Path,
    typer.Option(
        "--home",
        parser=path_of,
        metavar="DIR",
        envvar="KNEE_TUNE_HOME",
        help="Folder that keeps everything.",
    ),
]

StorageOption = Annotated[
    str | None,
    typer.Option(
        envvar="OPTUNA_STORAGE", help="Optuna storage, an SQLAlchemy URL. (default: HOME/optuna.db)"
    ),
]

TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or database; 'none' tracks nothing. (default: HOME/mlflow.db)",
    ),
]

StudyArgument = Annotated[
    str | None,
    typer.Argument(metavar="[STUDY]", help="Name of the study; the only one if left out."),
]

TrialOption = Annotated[
    int | None,
    typer.Option(
        "--trial", min=0, max=MOST_SEED, help="Number of the trial; the winner if left out."
    ),
]

TrunkCacheOption = Annotated[
    str,
    typer.Option(
        "--trunk-cache",
        metavar="SIZE",
        envvar="KNEE_TUNE_TRUNK_CACHE",
        help="Room for trunk checkpoints in HOME/trunks, as in 500MB; 0 shares no trunks.",
    ),
]

TrialsPerGpuOption = Annotated[
    int,
    typer.Option(
        "--trials-per-gpu",
        min=1,
        max=MOST,
        metavar="K",
        help="Trials of --concurrency that share a GPU: for small models, one rank each.",
    ),
]

AmpOption = Annotated[
    bool | None,
    typer.Option("--amp/--no-amp", help="bf16 autocast on a GPU. (default: as the recipe says)"),
]

CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        help="torch.compile, on a GPU with CUDA graphs. Every trial waits for the compiler before "
        "its first step, up to a minute where its cache is cold: for long trials.",
    ),
]

ScaleOption = Annotated[
    float | None,
    typer.Option(
        "--scale",
        min=0.0001,
        max=10,
        metavar="S",
        help="All epochs times S: the budget's, the warmup's and the boundaries'; as a study of "
        "its own.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

DEFAULT_HOME = Path("knee-runs")

DEFAULT_TRUNK_CACHE = "20GB"


class Runner(StrEnum):
    """How worker groups are started."""

    FORKSERVER = "forkserver"
    TORCHRUN = "torchrun"


class Device(StrEnum):
    """What trains."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Schedule(StrEnum):
    """The paper's baselines."""

    STEP = "step"
    LINEAR = "linear"
    COSINE = "cosine"
    ONE_CYCLE = "one_cycle"
    INVERSE_SQRT = "inverse_sqrt"
    CONSTANT = "constant"


class Alias(StrEnum):
    """What a model is called in the registry."""

    CHAMPION = "champion"
    CANDIDATE = "candidate"


class TextKind(StrEnum):
    """How far a corpus is prepared already."""

    RAW = "raw"
    TOK = "tok"
    BPE = "bpe"


# The consoles of all commands, and plain lines for those that need no table while they work.


class PlainConsole(Console):
    """Takes no order from what it prints: no markup unless asked for, and nothing that steers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string passes here, in cells of tables too."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """And here every text that has styles already."""
        if isinstance(renderable, Text) and not renderable.plain.isprintable():
            renderable = _printable(renderable)
        return super().render(renderable, options)


def _printable(text: Text) -> Text:
    edges = {edge for span in text.spans for edge in (span.start, span.end)}
    pieces = text.divide(sorted(edge for edge in edges if 0 < edge < len(text)))
    for piece in pieces:  # of one style each
        piece.plain = printable(piece.plain)
    return text.blank_copy().join(pieces)


class ConsoleLines:
    """One line per event, as it is, without wrapping."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str) -> None:
        """Print it."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def refuse_failures(record: "StudyRecord") -> None:
    """MachineError if trials or runs of a study failed: what is missing is said last."""
    confirmation = record.confirmation
    failed = (
        (record.counts.failed, "trial", ""),
        (record.run_counts.failed, "run", ""),
        (confirmation.failed if confirmation else 0, "run", " of its confirmation"),
    )
    said = [f"{count} {what}{'s' * (count > 1)}{of}" for count, what, of in failed if count]
    if said:
        raise MachineError(
            f"study {record.name}: {' and '.join(said)} failed; the same command tries again"
        )


def open_in_browser(path: Path) -> None:
    """Open a file in the browser there is; a line on standard error if there is none."""
    import webbrowser

    if not webbrowser.open(path.absolute().as_uri()):
        typer.echo("--open: no browser was found; open the file yourself", err=True)
