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
    Device,
    DeviceOption,
    HomeOption,
    JsonOption,
    PresetOption,
    ScaleOption,
    SettingsOption,
    StorageOption,
    TrackingOption,
    TrialsPerGpuOption,
    TrunkCacheOption,
)
from knee_tune.cli.summary import print_comparison, print_confirmation, refuse_failures
from knee_tune.records.shown import learning_rate, percent

if TYPE_CHECKING:
    from knee_tune.commands.run import StudyStart
    from knee_tune.records.findings import Ridge
    from knee_tune.records.study import StudyRecord
    from knee_tune.records.values import Estimate
    from knee_tune.study.events import Watcher


def reproduce(
    table: Annotated[str, typer.Argument(help="A table of the paper, as in table16.")],
    task: Annotated[
        str,
        typer.Option(metavar="NAME", help="On which task, as in digits.", rich_help_panel=SEARCH),
    ],
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
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
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
    device: DeviceOption = Device.AUTO,
    trials_per_gpu: TrialsPerGpuOption = 1,
    amp: AmpOption = None,
    compile_: CompileOption = False,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Repeat a table of the paper and report. The same command again continues."""
    from knee_tune.cli.summary import print_start
    from knee_tune.cli.watch import watching
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import size_of_cache
    from knee_tune.commands.reproduce import as_json, resolve_table
    from knee_tune.commands.run import run_study
    from knee_tune.commands.workers import GroupOptions

    spec, recipe, options = resolve_table(
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
            device=device.value,
            trials_per_gpu=trials_per_gpu,
            amp=amp,
            compile=compile_,
            trunk_cache=size_of_cache(trunk_cache),
        ),
    )
    progress = PlainConsole(stderr=json)
    progress.print(Text.assemble((spec.name, "bold"), f": task {task}; warming up ..."))

    def watch(start: "StudyStart") -> AbstractContextManager["Watcher"]:
        print_start(progress, start)
        return watching(progress, start)

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    found = run_study(spec, recipe, places, options, timeout=None, register=False, watch=watch)
    record, ridge, report = found.record, found.ridge, found.report
    if json:
        typer.echo(json_module.dumps(as_json(table, record, ridge=ridge, report=report)))
    else:
        print_reproduction(PlainConsole(), table, record, ridge)
        print_cost(PlainConsole(), record, report)
    if show and report is not None:
        open_in_browser(report)
    refuse_failures(record)


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
