"""``knee-tune budget``: the smallest budget that reaches a target."""

import json as json_module
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from knee_tune.cli.console import ConsoleLines, PlainConsole
from knee_tune.cli.options import (
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    SEARCH,
    AmpOption,
    CompileOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    NprocOption,
    PresetOption,
    ReplicatesOption,
    SeedOption,
    SettingsOption,
    SharedLimitOption,
    SharedOption,
    SlotsOption,
    TaskOption,
    TrackingOption,
    TrialsPerGpuOption,
    TrunkCacheOption,
)
from knee_tune.errors import UserError

if TYPE_CHECKING:
    from knee_tune.commands.home import Home
    from knee_tune.records.budget import BudgetRecord, Setting

T = TypeVar("T")


def budget(
    task: TaskOption = None,
    preset: PresetOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name to keep it under. (default: budget-TASK-PRESET-TARGET) Without --task: the "
            "kept search to show again.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE",
            help="Value of the objective on the validation split, in its own units. Accuracy and "
            "BLEU are in percent: 95, 95% and 0.95 mean the same.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCHS,...", help="Ascending, as in 10,20,30.", rich_help_panel=SEARCH
        ),
    ] = None,
    schedules: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="What is compared. (default: knee and all baselines)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    seed_lrs: Annotated[
        str | None,
        typer.Option(
            metavar="LR,...",
            help="Tried with every schedule. (default: the recipe's own)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    explore_fractions: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION,...",
            help="Tried with knee. (default: 0.5)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    replicates: ReplicatesOption = None,
    seed: SeedOption = None,
    settings: SettingsOption = None,
    nproc: NprocOption = None,
    slots: SlotsOption = 1,
    device: DeviceOption = "auto",
    trials_per_gpu: TrialsPerGpuOption = 1,
    amp: AmpOption = None,
    compile_: CompileOption = False,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    shared: SharedOption = None,
    shared_limit: SharedLimitOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Find the smallest budget that reaches a target, for knee and baselines.

    Every schedule starts with the smallest budget and stops at the first one
    at which the mean over its random seeds reaches the target. Trunks are
    shared over all budgets. The same command again continues.
    """
    from knee_tune.commands.budget import SCHEDULES, resolve_budget, search_budget
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import size_of_cache, size_of_limit
    from knee_tune.commands.workers import GroupOptions
    from knee_tune.config.recipe import task_slug
    from knee_tune.config.resolve import sets

    if task is None:
        if target or budgets:
            raise UserError("--task: missing; what is to be trained? see knee-tune tasks")
        _show(Home(home), name, json=json)
        return
    if target is None or budgets is None:
        missing, example = ("--target", "95") if target is None else ("--budgets", "10,20,30")
        raise UserError(f"{missing}: missing; as in {missing} {example}")
    search = resolve_budget(
        task=task,
        preset=preset,
        name=name,
        seed=seed,
        replicates=replicates,
        nproc=nproc,
        settings=settings or (),
        target=target,
        budgets=several("--budgets", budgets, int),
        schedules=SCHEDULES if schedules is None else several("--schedules", schedules, str),
        seed_lrs=several("--seed-lrs", seed_lrs, float),
        explore_fractions=several("--explore-fractions", explore_fractions, float),
    )
    options = GroupOptions(
        nproc=search.spec.nproc,
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
    places = Places.of(Home(home), storage=None, tracking_uri=tracking_uri)
    lines = ConsoleLines(PlainConsole(stderr=json))
    spec = search.spec
    lines.line(
        f"{search.name}: task {task_slug(spec.task)}, preset {spec.preset}, "
        f"{spec.typed_recipe.objective_metric.name} {search.target:g} or better; warming up ..."
    )
    record = search_budget(search, places, options, lines)
    if json:
        typer.echo(json_module.dumps(record.as_json()))
        return
    console = PlainConsole()
    console.print()
    print_budget(console, record)
    again = places.command("budget", "--name", record.name)
    console.print(f"\nLook at it again: {again}", soft_wrap=True, markup=False)
    if places.ui_command is not None:
        console.print(f"Its runs: {places.ui_command}", soft_wrap=True, markup=False)


def _show(home: "Home", name: str | None, *, json: bool) -> None:
    from knee_tune.commands.budget import known_search

    record = known_search(home, name)
    if json:
        typer.echo(json_module.dumps(record.as_json()))
    else:
        print_budget(PlainConsole(), record)


def several(option: str, text: str | None, kind: Callable[[str], T]) -> tuple[T, ...]:
    """``10,20`` as numbers; nothing if the option was not given. UserError for anything else."""
    if text is None:
        return ()
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        whole = "whole " if kind is int else ""
        raise UserError(f"{option} {text}: must be {whole}numbers with commas between") from None


def print_budget(console: Console, record: "BudgetRecord") -> None:
    """Schedule by budget, the smallest budget of each, what it cost, what Knee saves."""
    from knee_tune.records.budget import in_epochs

    better = "or less" if record.direction == "minimize" else "or more"
    console.print(
        Text.assemble(
            (record.name, "bold"),
            f": the smallest budget with {record.metric} {record.target:g} {better}",
            ("" if record.finished else " (not finished)", "yellow"),
        ),
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("schedule", no_wrap=True)
    for epochs in record.budgets:
        table.add_column(in_epochs(epochs), justify="right")
    for name in record.schedules:
        table.add_row(name, *(_cell(record, name, epochs) for epochs in record.budgets))
    console.print(table)
    console.print()
    for name in record.schedules:
        console.print(_found(record, name), soft_wrap=True)
    if record.saving is not None and record.finished:
        console.print(record.saving.text, style="bold", soft_wrap=True)
    if len({run.seed for run in record.runs}) == 1:
        console.print("one random seed each; --replicates 3 tells a lucky run from a good setting")
    steps, of_knee = record.steps(), record.steps("knee")
    if steps.independent:
        own = f"; of knee {of_knee.trained / of_knee.independent:.0%}" if of_knee.trained else ""
        console.print(
            f"steps trained: {steps.trained:,} of {steps.independent:,} that independent runs "
            f"would take ({steps.trained / steps.independent:.0%}{own})",
            soft_wrap=True,
        )


def _found(record: "BudgetRecord", schedule: str) -> str | Text:
    """The smallest budget of a schedule, or how near it came."""
    from knee_tune.records.budget import in_epochs

    smallest = record.smallest(schedule)
    if smallest is not None:
        reached = (in_epochs(smallest.epochs), "bold green")
        rest = f", {value_of(smallest)} at {smallest.point}"
        return Text.assemble(f"{schedule}: ", reached, rest)
    best = record.best(schedule)
    if best is None:
        return f"{schedule}: not reached, no setting has a value"
    return (
        f"{schedule}: not reached within {in_epochs(record.budgets[-1])}; at best "
        f"{value_of(best)} in {in_epochs(best.epochs)} at {best.point}"
    )


def _cell(record: "BudgetRecord", schedule: str, epochs: int) -> str | Text:
    best = record.best(schedule, epochs)
    if best is None:
        return "diverged" if record.settings(schedule, epochs) else ""
    return Text(value_of(best), "green" if record.reached(best) else "")


def value_of(setting: "Setting") -> str:
    """``94.2 ± 0.31``: mean, and spread if there are several random seeds."""
    spread = "" if setting.spread is None else f" ± {setting.spread:.2g}"
    return f"{setting.mean:.4g}{spread}"
