"""``knee-tune horizons``: the best setting at several budgets, from shared trunks."""

import json as json_module
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from knee_tune.cli.budget import several
from knee_tune.cli.console import PlainConsole, open_in_browser
from knee_tune.cli.options import (
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    SEARCH,
    AmpOption,
    CompileOption,
    Device,
    DeviceOption,
    HomeOption,
    JsonOption,
    NprocOption,
    OpenOption,
    PresetOption,
    ReplicatesOption,
    SeedOption,
    SettingsOption,
    SlotsOption,
    StorageOption,
    TrackingOption,
    TrialsPerGpuOption,
    TrunkCacheOption,
)

if TYPE_CHECKING:
    from knee_tune.commands.run import StudyStart
    from knee_tune.stats.horizons import Horizons
    from knee_tune.study.events import Watcher


def horizons(
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What to train; see knee-tune tasks.", rich_help_panel=SEARCH
        ),
    ],
    budgets: Annotated[
        str,
        typer.Option(
            metavar="EPOCHS,...", help="Ascending, as in 10,20,40.", rich_help_panel=SEARCH
        ),
    ],
    preset: PresetOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What its studies' names begin with. (default: horizons-TASK-PRESET)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Of every budget. (default: the preset's)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    replicates: ReplicatesOption = None,
    seed: SeedOption = None,
    settings: SettingsOption = None,
    show: OpenOption = False,
    nproc: NprocOption = None,
    slots: SlotsOption = 1,
    device: DeviceOption = Device.AUTO,
    trials_per_gpu: TrialsPerGpuOption = 1,
    amp: AmpOption = None,
    compile_: CompileOption = False,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Find the best seed LR and explore fraction of several budgets, which share trunks.

    Every budget is a study of its own; longer ones go on from the trunks of
    shorter ones, and begin at their best seed LR. The same command again
    continues.
    """
    from knee_tune.cli.summary import print_start
    from knee_tune.cli.watch import watching
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.horizons import resolve_horizons, search_horizons
    from knee_tune.commands.look import size_of_cache
    from knee_tune.commands.workers import GroupOptions
    from knee_tune.config.resolve import sets

    search = resolve_horizons(
        budgets=several("--budgets", budgets, int),
        name=name,
        settings=settings or (),
        task=task,
        preset=preset,
        trials=trials,
        replicates=replicates,
        seed=seed,
        nproc=nproc,
    )
    options = GroupOptions(
        nproc=search.spec.nproc,
        nproc_asked=nproc is not None or sets(settings or (), "nproc"),
        slots=slots,
        device=device.value,
        trials_per_gpu=trials_per_gpu,
        amp=amp,
        compile=compile_,
        trunk_cache=size_of_cache(trunk_cache),
    )
    progress = PlainConsole(stderr=json)

    def watch(start: "StudyStart") -> AbstractContextManager["Watcher"]:
        progress.print(f"\n{start.name}", style="bold")
        print_start(progress, start)
        return watching(progress, start)

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    found, page = search_horizons(
        search, places, options, watch=watch, on_line=lambda line: progress.print(line)
    )
    if json:
        typer.echo(
            json_module.dumps(
                found.model_dump(mode="json") | {"report": str(page) if page else None}
            )
        )
    else:
        print_horizons(PlainConsole(), found)
        if page is not None:
            typer.echo(f"report: {page}")
    if show and page is not None:
        open_in_browser(page)


def print_horizons(console: Console, found: "Horizons") -> None:
    """A line for every horizon, whether the best seed LR moves, and what it cost."""
    from knee_tune.records.shown import learning_rate, number, percent
    from knee_tune.report.horizons import horizon_words

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("budget")
    for column in ("steps", "seed LR", "explore", found.metric, "steps trained", "alone"):
        table.add_column(column, justify="right")
    for each in found.horizons:
        table.add_row(
            each.budget,
            f"{each.total_steps:,}",
            learning_rate(each.seed_lr),
            percent(each.explore_fraction),
            number(each.value.value),
            f"{each.trained:,}",
            f"{each.independent:,}",
        )
    console.print()
    console.print(table)
    console.print(horizon_words(found)[1], soft_wrap=True)
    trained = sum(each.trained for each in found.horizons)
    independent = sum(each.independent for each in found.horizons)
    console.print(
        f"steps trained: {trained:,} of {independent:,} that the same trials would take alone "
        f"({trained / independent:.0%})",
        soft_wrap=True,
    )
