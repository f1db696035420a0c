"""Options that several commands share, each written once, and how far their numbers go."""

import errno
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
