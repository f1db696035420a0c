"""``knee-tune reproduce``: one of the paper's tables, on a machine of ours."""

import json as json_module
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from knee_tune.cli.console import PlainConsole, open_in_browser
from knee_tune.cli.options import (
    COMPUTE,
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    MOST,
    SEARCH,
    AmpOption,
    CompileOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    OpenOption,
    PresetOption,
    ScaleOption,
    SettingsOption,
    SharedLimitOption,
    SharedOption,
    StorageOption,
    TrackingOption,
    TrialsPerGpuOption,
    TrunkCacheOption,
)
from knee_tune.cli.summary import (
    print_comparison,
    print_confirmation,
    refuse_failures,
    with_spread,
)
from knee_tune.errors import UserError
from knee_tune.records.shown import learning_rate, percent

if TYPE_CHECKING:
    from knee_tune.commands.home import Places
    from knee_tune.commands.overview import Overview
    from knee_tune.commands.run import StudyStart
    from knee_tune.records.findings import Ridge
    from knee_tune.records.study import StudyRecord
    from knee_tune.records.values import Estimate
    from knee_tune.study.events import Watcher


def reproduce(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="A table of the paper, as in table16.")],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="On which task, as in digits; without it tables 5, 6 and 7 show what their "
            "studies found.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    preset: PresetOption = None,
    study_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name to keep the study under. (default: its file's)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help="Random seeds. (default: the study's)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    scale: ScaleOption = None,
    settings: SettingsOption = None,
    show: OpenOption = False,
    json: JsonOption = False,
    nproc: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            metavar="N",
            help="Ranks. (default: the study's, else one for every CPU core)",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            max=MOST,
            metavar="N",
            help="Runs trained at the same time. (default: one for every CPU core, where they are "
            "not fused and no GPU trains them)",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse/--no-fuse",
            help="Train as one batched model, or every run by itself.",
            rich_help_panel=COMPUTE,
        ),
    ] = True,
    device: DeviceOption = "auto",
    trials_per_gpu: TrialsPerGpuOption = 1,
    amp: AmpOption = None,
    compile_: CompileOption = False,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    shared: SharedOption = None,
    shared_limit: SharedLimitOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Repeat a table of the paper and report. The same command again continues."""
    from knee_tune.commands.home import Home, Places

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    if task is None:
        _refuse_training(context, table)
        show_overview(table, places, scale=scale, json=json)
        return

    from knee_tune.cli.summary import print_start
    from knee_tune.cli.watch import watching
    from knee_tune.commands.look import size_of_cache, size_of_limit
    from knee_tune.commands.reproduce import as_json, resolve_table
    from knee_tune.commands.run import run_study
    from knee_tune.commands.workers import GroupOptions

    spec, options = resolve_table(
        table,
        task=task,
        preset=preset,
        name=study_name,
        seeds=seeds,
        fuse=fuse,
        scale=scale,
        settings=settings or (),
        nproc=nproc,
        slots=slots,
        options=GroupOptions(
            device=device,
            trials_per_gpu=trials_per_gpu,
            amp=amp,
            compile=compile_,
            trunk_cache=size_of_cache(trunk_cache),
            shared=shared,
            shared_limit=size_of_limit(shared_limit),
        ),
    )
    progress = PlainConsole(stderr=json)
    progress.print(Text.assemble((spec.name, "bold"), f": task {task}; warming up ..."))

    def watch(start: "StudyStart") -> AbstractContextManager["Watcher"]:
        print_start(progress, start)
        return watching(progress, start)

    found = run_study(spec, places, options, timeout=None, register=False, watch=watch)
    record, ridge, report = found.record, found.ridge, found.report
    if json:
        typer.echo(json_module.dumps(as_json(table, record, ridge=ridge, report=report)))
    else:
        print_reproduction(PlainConsole(), table, record, ridge)
        print_cost(PlainConsole(), record, report)
    if show and report is not None:
        open_in_browser(report)
    refuse_failures(record)


_OF_AN_OVERVIEW = {"table", "scale", "json", "home", "storage", "tracking_uri"}


def _refuse_training(context: typer.Context, table: str) -> None:
    """Refuse (UserError) what only a training takes: an overview trains nothing."""
    for name in context.params.keys() - _OF_AN_OVERVIEW:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(
                f"reproduce {table}: `{name.rstrip('_')}` is for a training; say on which `task`"
            )


def show_overview(table: str, places: "Places", *, scale: float | None, json: bool) -> None:
    """Print table 5, 6 or 7 with what is there of it, and the commands that train the rest.

    UserError for a table that one task alone has.
    """
    from knee_tune.commands.overview import SUMMARIES, as_json, overview_of
    from knee_tune.commands.reproduce import designs

    if table not in SUMMARIES:
        tasks = dict.fromkeys(each.task for each in designs() if each.table == table)
        there = (
            f"on which task? `task` may be {', '.join(tasks)}"
            if tasks
            else f"there is no such design; without a task there are {', '.join(SUMMARIES)}"
        )
        raise UserError(f"reproduce {table}: {there}")
    overview = overview_of(table, places, scale=scale)
    if json:
        typer.echo(json_module.dumps(as_json(overview)))
        return
    console = PlainConsole()
    console.print(Text(f"\n{table.replace('table', 'Table ')}", "bold"))
    console.print(_overview_table(overview))
    if overview.missing:
        console.print("\nnot run; each of these commands fills its cells:")
        for command in overview.missing:
            console.print(f"  {command}", soft_wrap=True)


def _overview_table(overview: "Overview") -> Table:
    """A line for every experiment and schedule: paper, ours, and how long ours was trained."""
    from knee_tune.records.shown import in_words

    reaches = overview.table == "table7"
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("experiment")
    table.add_column("schedule")
    for column in ("paper", "ours", "our epochs", "seeds"):
        table.add_column(column, justify="right")
    for line, found in overview.lines:
        metric = in_words(line.metric).removeprefix("test ")
        titles = [f"{line.experiment}, {line.budget}", f"({metric})"]
        for index, each in enumerate(found):
            title = titles[index] if index < len(titles) else ""
            paper = f"{each.cell.paper:g} epochs" if reaches else f"{each.cell.paper:.2f}"
            ours, seeds = "not run", ""
            if each.ours is not None and each.ours.mean is not None:
                ours = with_spread(each.ours.mean.value, each.ours.std)
                seeds = str(len(each.ours.values))
            epochs = "" if each.epochs is None else f"{each.epochs:g}"
            table.add_row(title, each.cell.column, paper, ours, epochs, seeds)
    return table


def print_reproduction(
    console: Console, table: str, record: "StudyRecord", ridge: "Ridge | None"
) -> None:
    """What the study says of the table."""
    if record.spec.compare is not None:
        print_comparison(console, record)
        return
    seeds = "1 seed" if record.spec.replicates == 1 else f"{record.spec.replicates} seeds"
    console.print(
        Text.assemble(
            (f"\n{table.replace('table', 'Table ')}", "bold"),
            f" on {record.task}: {len(record.ranked)} of {record.spec.size} points, {seeds} each",
        )
    )
    if len(record.spec.seed_lrs) == 1:
        console.print(_by_epochs(record))
    elif ridge is not None:
        console.print(_by_seed_lr(ridge))
    if ridge is not None:
        for line in _answers(record, ridge):
            console.print(line, soft_wrap=True)
    if record.confirmation is not None:
        print_confirmation(console, record.confirmation)


def print_cost(console: Console, record: "StudyRecord", report: Path | None) -> None:
    """What it cost, and where the report is."""
    from knee_tune.records.shown import duration

    for line in record.steps.words:
        console.print(line, soft_wrap=True)
    console.print(f"trained in {duration(record.seconds)}")
    if report is not None:
        console.print(f"report: {report}", soft_wrap=True, markup=False)


def _by_seed_lr(ridge: "Ridge") -> Table:
    """The best explore fraction of every seed LR."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("seed LR", "best explore", "95 % interval", ridge.surface.metric):
        table.add_column(column, justify="right")
    for each in ridge.optimal:
        if each.raw is not None:
            at_best = "" if each.metric is None else f"{each.metric.value:.4g}"
            best, interval = percent(each.raw.value), _fractions_between(each.raw)
            table.add_row(learning_rate(each.seed_lr), best, interval, at_best)
    return table


def _by_epochs(record: "StudyRecord") -> Table:
    """Every metric against the explore epochs, at the one seed LR there is."""
    from knee_tune.commands.reproduce import table_rows

    rows = table_rows(record)
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("explore epochs", "explore", *names):
        table.add_column(column, justify="right")
    for row in rows:
        values = (
            f"{row.metrics[name]:.4g}" + (f" ± {row.std[name]:.2g}" if name in row.std else "")
            for name in names
        )
        table.add_row(f"{row.explore_epochs:g}", percent(row.explore_fraction), *values)
    return table


def _answers(record: "StudyRecord", ridge: "Ridge") -> list[str | Text]:
    """Recommendation, description, evidence and verdict; those there are.

    One seed LR says nothing about a relation.
    """
    from knee_tune.report.answer import answer_of
    from knee_tune.report.wording import ridge_words

    lines: list[str | Text] = []
    answer = answer_of(record, ridge)
    if answer is not None and (expected := answer.expected) is not None:
        lines.append(
            Text.assemble(
                (f"use {answer.setting}", "bold green"),
                f": mean {answer.metric} {expected.value:.4g}{_between(expected)} over new random "
                "seeds",
            )
        )
    if ridge.spearman is not None:
        lines.append(
            "rank correlation (Spearman) of seed LR and best explore fraction: "
            f"{ridge.spearman.value:.2f}{_between(ridge.spearman)}"
        )
    if ridge.crossover is not None:
        lines.append(f"crossover test: p = {ridge.crossover.p:.2g}")
    if len(ridge.optimal) > 1:
        lines += [Text(f"verdict: {ridge.verdict}", "bold"), ridge_words(ridge)]
    return lines


def _between(estimate: "Estimate") -> str:
    """`` [low, high]``; nothing if there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{estimate.low:.4g}, {estimate.high:.4g}]"


def _fractions_between(estimate: "Estimate") -> str:
    """``40% to 80%``; nothing if there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{percent(estimate.low)} to {percent(estimate.high)}"
