"""``knee-tune horizons``: the best setting at several budgets, from shared trunks."""

import json as json_module
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from knee_tune.cli.console import PlainConsole, open_in_browser
from knee_tune.cli.flags import as_typed
from knee_tune.cli.options import (
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    MOST,
    SEARCH,
    AmpOption,
    CompileOption,
    DeviceOption,
    EvaluateEveryOption,
    ExploreOption,
    HomeOption,
    JsonOption,
    MaximizeOption,
    MinimizeOption,
    NprocOption,
    OpenOption,
    PresetOption,
    ReplicatesOption,
    ScriptArgument,
    ScriptArguments,
    SeedOption,
    SettingsOption,
    SharedLimitOption,
    SharedOption,
    SlotsOption,
    StorageOption,
    TaskOption,
    TrackingOption,
    TrialsPerGpuOption,
    TrunkCacheOption,
)
from knee_tune.errors import UserError

if TYPE_CHECKING:
    from knee_tune.commands.horizons import HorizonsSearch
    from knee_tune.commands.run import StudyStart
    from knee_tune.stats.horizons import Horizons
    from knee_tune.study.events import Watcher


def horizons(
    budgets: Annotated[
        str,
        typer.Option(
            metavar="N,...|Nsteps,...",
            help="Ascending, as in 10,20,40: epochs of a task, steps of a script. "
            "1000steps,2000steps are always steps.",
            rich_help_panel=SEARCH,
        ),
    ],
    script: ScriptArgument = None,
    arguments: ScriptArguments = None,
    task: TaskOption = None,
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
            max=MOST,
            metavar="N",
            help="Of every budget. (default: the preset's)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    replicates: ReplicatesOption = None,
    seed: SeedOption = None,
    settings: SettingsOption = None,
    seed_lr: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH|LIST",
            help="Seed LRs to search, as in 1e-4:1e-2 or 0.1,0.2; with --trunk its own. "
            "(default: the task's; of a script within a factor of 10 of its own)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    explore: ExploreOption = None,
    trunk: Annotated[
        str | None,
        typer.Option(
            metavar="FILE@STEP",
            help="Begin every run with a checkpoint from elsewhere (safetensors, as "
            "knee_tune.save_trunk writes it), trained for STEP steps at --seed-lr.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    evaluate_every: EvaluateEveryOption = None,
    minimize: MinimizeOption = None,
    maximize: MaximizeOption = None,
    show: OpenOption = False,
    nproc: NprocOption = None,
    slots: SlotsOption = 1,
    device: DeviceOption = "auto",
    trials_per_gpu: TrialsPerGpuOption = 1,
    amp: AmpOption = None,
    compile_: CompileOption = False,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    shared: SharedOption = None,
    shared_limit: SharedLimitOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Find the best seed LR and explore fraction of several budgets, which share trunks.

    Of a training script, or of a task. Every budget is a study of its own;
    longer ones go on from the trunks of shorter ones, and begin at their best
    seed LR. The same command again continues.
    """
    from knee_tune.cli.summary import print_start, refuse_failures
    from knee_tune.cli.watch import watching
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.horizons import (
        look_at_horizons,
        read_budgets,
        read_trunk,
        resolve_horizons,
        search_horizons,
    )
    from knee_tune.commands.look import size_of_cache, size_of_limit
    from knee_tune.commands.workers import GroupOptions
    from knee_tune.config.resolve import sets

    asked: dict[str, Any] = {
        "budgets": read_budgets(budgets),
        "name": name,
        "settings": settings or (),
        "trials": trials,
        "replicates": replicates,
        "seed": seed,
        "nproc": nproc,
        "seed_lr": seed_lr,
        "explore": explore,
        "trunk": None if trunk is None else read_trunk(trunk),
    }
    of_script: dict[str, Any] = {
        "evaluate_every": evaluate_every,
        "minimize": minimize,
        "maximize": maximize,
    }
    search: HorizonsSearch | None = None
    if script is None:
        if task is None:
            raise UserError("--task: missing; name one, or a script, as in horizons train.py")
        if any(of_script.values()):
            raise UserError(
                "`evaluate_every`, `minimize`, `maximize`: of scripts alone; a task has "
                "--set recipe.objective"
            )
        search = resolve_horizons(task=task, preset=preset, **asked)
    elif (task, preset) != (None, None):
        raise UserError("`task`, `preset`: of tasks alone; leave them out for a script")
    options = GroupOptions(
        nproc=search.spec.nproc if search else nproc or 1,
        nproc_asked=nproc is not None or sets(settings or (), "nproc"),
        slots=slots,
        device=device,
        trials_per_gpu=trials_per_gpu,
        amp=amp,
        compile=compile_,
        trunk_cache=size_of_cache(trunk_cache),
        shared=shared,
        shared_limit=size_of_limit(shared_limit),
    )
    progress = PlainConsole(stderr=json)

    def watch(start: "StudyStart") -> AbstractContextManager["Watcher"]:
        progress.print(f"\n{start.name}", style="bold")
        print_start(progress, start)
        return watching(progress, start)

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    with ExitStack() as stack:
        if search is None:
            assert script is not None, "without one there is a task"
            looking = look_at_horizons(
                places.home, script, arguments or (), options, **asked, **of_script
            )
            search = stack.enter_context(looking)
        summary = search_horizons(
            search, places, options, watch=watch, on_line=lambda line: progress.print(line)
        )
    found, page = summary.found, summary.report
    if found is not None and json:
        told = found.model_dump(mode="json") | {"report": str(page) if page else None}
        typer.echo(json_module.dumps(told))
    elif found is not None:
        print_horizons(PlainConsole(), found)
        if page is not None:
            typer.echo(f"report: {page}")
    if show and page is not None:
        open_in_browser(page)
    if summary.unanswered:
        if not any(record.counts.failed for record in summary.records):
            raise UserError(summary.unanswered)
        progress.print(as_typed(summary.unanswered), markup=False, soft_wrap=True)
    refuse_failures(*summary.records)


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
    for line in horizon_words(found)[1:]:
        console.print(line, soft_wrap=True, markup=False)
    trained = sum(each.trained for each in found.horizons)
    independent = sum(each.independent for each in found.horizons)
    console.print(
        f"steps trained: {trained:,} of {independent:,} that the same trials would take alone "
        f"({trained / independent:.0%})",
        soft_wrap=True,
    )
