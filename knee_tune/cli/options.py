"""Options that several commands share, each written once, and how far their numbers go.

An option's parameter is called as the field of the library is that it sets.
"""

import errno
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from knee_tune.schedules.schedule import LONGEST_RUN

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


# What people may choose; each list is that of the field that it sets, which the types check.

Runner = Literal["forkserver", "torchrun", "ray"]

Strategy = Literal["pack", "spread"]

Device = Literal["auto", "cpu", "cuda"]

Schedule = Literal["step", "linear", "cosine", "one_cycle", "inverse_sqrt", "constant"]

Alias = Literal["champion", "candidate"]

TextKind = Literal["raw", "tok", "bpe"]

SEARCH, OF_A_SCRIPT, COMPUTE, PLACES = "Search", "Of a script", "Compute", "Places"
"""Panels of ``--help``."""

DEFAULT_HOME = Path("knee-runs")

DEFAULT_TRUNK_CACHE = "20GB"

StudyArgument = Annotated[
    str | None,
    typer.Argument(metavar="[STUDY]", help="Name of the study; the only one if left out."),
]

ScriptArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[SCRIPT]",
        parser=path_of,
        show_default=False,
        help="Your training script, which calls knee_tune.join; or name a task.",
    ),
]

ScriptArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- ARGUMENTS]", show_default=False, help="The script's own."),
]

TaskOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="What to train; see knee-tune tasks.", rich_help_panel=SEARCH
    ),
]

PresetOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Variant of the task.", rich_help_panel=SEARCH),
]

OpenOption = Annotated[bool, typer.Option("--open", help="Open the report in the browser.")]

SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MOST_SEED,
        metavar="N",
        help="Random seed, of the sampler and of the first training run.",
        rich_help_panel=SEARCH,
    ),
]

ReplicatesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        metavar="N",
        help="Random seeds of every setting: 1 to explore, 3 to rank.",
        rich_help_panel=SEARCH,
    ),
]

SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any field: --set recipe.epochs=4",
        rich_help_panel=SEARCH,
    ),
]

ExploreOption = Annotated[
    str | None,
    typer.Option(
        metavar="LOW:HIGH[:STEP]|LIST",
        help="Explore fractions to search, as in 0.1:0.9. (default: the study's)",
        rich_help_panel=SEARCH,
    ),
]

EvaluateEveryOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=LONGEST_RUN,
        metavar="N",
        help="Steps from one evaluation to the next. (default: as join says)",
        rich_help_panel=OF_A_SCRIPT,
    ),
]

MinimizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="METRIC",
        help="The metric it reports that is to be small. (default: as join says)",
        rich_help_panel=OF_A_SCRIPT,
    ),
]

MaximizeOption = Annotated[
    str | None,
    typer.Option(metavar="METRIC", help="The same, to be large.", rich_help_panel=OF_A_SCRIPT),
]

ScaleOption = Annotated[
    float | None,
    typer.Option(
        min=0.0001,
        max=10,
        metavar="S",
        help="All epochs times S: the budget's, the warmup's and the boundaries'; as a study of "
        "its own.",
        rich_help_panel=SEARCH,
    ),
]

TrialOption = Annotated[
    int | None,
    typer.Option(
        min=0, max=MOST_SEED, metavar="N", help="Number of the trial; the winner if left out."
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

RunnerOption = Annotated[
    Runner,
    typer.Option(
        metavar="NAME",
        help="What starts worker groups: forkserver, torchrun or ray.",
        rich_help_panel=COMPUTE,
    ),
]

NprocOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST,
        metavar="N",
        help="Ranks that train one model. (default: the study's)",
        rich_help_panel=COMPUTE,
    ),
]

SlotsOption = Annotated[
    int,
    typer.Option(
        "--concurrency",
        min=1,
        max=MOST,
        metavar="N",
        help="Trials or runs trained at the same time.",
        rich_help_panel=COMPUTE,
    ),
]

DeviceOption = Annotated[
    Device,
    typer.Option(metavar="NAME", help="auto, cpu or cuda.", rich_help_panel=COMPUTE),
]

TrialsPerGpuOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST,
        metavar="K",
        help="Trials of --concurrency that share a GPU: for small models, one rank each.",
        rich_help_panel=COMPUTE,
    ),
]

AmpOption = Annotated[
    bool | None,
    typer.Option(
        "--amp/--no-amp",
        help="bf16 autocast on a GPU. (default: as the recipe says)",
        rich_help_panel=COMPUTE,
    ),
]

CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        help="torch.compile, on a GPU with CUDA graphs. Every trial waits for the compiler before "
        "its first step, up to a minute where its cache is cold: for long trials.",
        rich_help_panel=COMPUTE,
    ),
]

TrunkCacheOption = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        envvar="KNEE_TUNE_TRUNK_CACHE",
        help="Room for trunk checkpoints in HOME/trunks, as in 500MB; 0 shares no trunks.",
        rich_help_panel=COMPUTE,
    ),
]

SharedOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="KNEE_TUNE_SHARED_URL",
        help="Folder or bucket, as s3://bucket/folder, through which homes share trunk "
        "checkpoints and finished runs.",
        rich_help_panel=PLACES,
    ),
]

SharedLimitOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Room for trunk checkpoints in --shared, as in 2TB. (default: no limit)",
        rich_help_panel=PLACES,
    ),
]

HomeOption = Annotated[
    Path,
    typer.Option(
        parser=path_of,
        metavar="DIR",
        envvar="KNEE_TUNE_HOME",
        help="Folder that keeps everything.",
        rich_help_panel=PLACES,
    ),
]

StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="OPTUNA_STORAGE",
        help="Optuna storage, an SQLAlchemy URL. (default: HOME/optuna.db)",
        rich_help_panel=PLACES,
    ),
]

TrackingOption = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or database; 'none' tracks nothing. (default: HOME/mlflow.db)",
        rich_help_panel=PLACES,
    ),
]
