"""``knee-tune audit``: how often pruning threw away the winner."""

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from knee_tune.cli.console import ConsoleLines, PlainConsole
from knee_tune.cli.options import (
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    MOST,
    MOST_SEED,
    HomeOption,
    JsonOption,
    SharedLimitOption,
    SharedOption,
    SlotsOption,
    StorageOption,
    StudyArgument,
    TrackingOption,
    TrunkCacheOption,
)
from knee_tune.records.shown import explored, learning_rate

if TYPE_CHECKING:
    from knee_tune.records.findings import AuditReport
    from knee_tune.records.study import StudyRecord


def audit(
    study: StudyArgument = None,
    finish: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST,
            metavar="N",
            help="Pruned trials to have finished, by earlier audits too.",
        ),
    ] = 3,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_SEED, metavar="N", help="Random seed of the choice among them."
        ),
    ] = 1,
    slots: SlotsOption = 1,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    shared: SharedOption = None,
    shared_limit: SharedLimitOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Train some pruned trials to their end: how often was pruning wrong?

    They go on from where they were stopped, without changing the study; replicates that trained as
    one batched model start anew.
    A prune was wrong if the trial would have beaten every complete one.
    """
    from knee_tune.commands.audit import audit_study
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import find_search, size_of_cache, size_of_limit

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    name = find_search(places, study).study_name
    record = audit_study(
        places,
        name,
        ConsoleLines(PlainConsole(stderr=json)),
        finish=finish,
        seed=seed,
        slots=slots,
        trunk_cache=size_of_cache(trunk_cache),
        shared=shared,
        shared_limit=size_of_limit(shared_limit),
    )
    if json:
        typer.echo(json_module.dumps(record.audit_as_json()))
    else:
        print_audit(PlainConsole(), record, asked=finish)


def print_audit(console: Console, record: "StudyRecord", *, asked: int) -> None:
    """Every audited trial, the rates with their intervals, and what it cost."""
    report, best = record.audit_report, record.best
    assert report is not None, "an audit that finished nothing is refused"
    assert best is not None
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("trial", "seed LR", "explore", record.metric, "rank"):
        table.add_column(column, justify="right")
    table.add_column("its prune was")
    trials = {trial.number: trial for trial in record.trials}
    for verdict in report.verdicts:
        trial = trials[verdict.number]
        table.add_row(
            str(verdict.number),
            learning_rate(trial.seed_lr),
            explored(*trial.point[1:]),
            "diverged" if verdict.value is None else f"{verdict.value:.4g}",
            "" if verdict.rank is None else str(verdict.rank),
            Text("wrong", "red") if verdict.wrong else Text("right", "green"),
        )
    console.print(table)
    if report.wrong.of < asked:
        console.print(f"(only {report.wrong.of} trials were pruned: all are audited)")
    console.print(
        f"\n{record.name}: best of the complete trials {best.value:.4g} (trial {best.number})"
    )
    console.print(f"wrong prunes: {report.wrong.words}", style="bold", soft_wrap=True)
    console.print(f"would have been among the best 3: {report.top.words}", soft_wrap=True)
    console.print(f"in the best quarter: {report.top_quarter.words}", soft_wrap=True)
    console.print(
        f"the audit trained {report.steps_trained:,} steps; pruning had saved "
        f"{report.steps_saved:,} in {report.pruned} trials",
        soft_wrap=True,
    )


def audit_line(report: "AuditReport") -> str:
    """What ``status`` says of an audit."""
    rate = report.wrong
    return (
        f"audit: {rate.count} of {rate.of} audited prunes were wrong "
        f"(95% interval {rate.low:.0%} to {rate.high:.0%})"
    )
