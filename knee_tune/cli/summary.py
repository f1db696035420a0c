"""What commands print at their end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from knee_tune.cli.audit import audit_line
from knee_tune.cli.console import PlainConsole
from knee_tune.cli.flags import as_typed
from knee_tune.errors import MachineError, one_line
from knee_tune.records.shown import explored, fresh_seeds, learning_rate
from knee_tune.urls import shown_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knee_tune.commands.home import Places
    from knee_tune.commands.run import RunSummary, StudyStart
    from knee_tune.records.events import RegisteredModel
    from knee_tune.records.findings import Confirmation
    from knee_tune.records.study import BaselineRecord, StudyRecord
    from knee_tune.records.values import Estimate
    from knee_tune.stats.comparison import Comparison, Measured


def print_comparison(console: Console, record: "StudyRecord") -> None:
    """How far it is, every row's numbers so far, and what went wrong."""
    from knee_tune.stats.comparison import comparison_of

    table, counts = record.spec.compare, record.run_counts
    assert table is not None, "the study compares"
    wanted = len(table.rows) * record.spec.replicates
    count = record.spec.replicates
    seeds = "1 random seed" if count == 1 else f"{count} random seeds"
    scale = "" if record.spec.scale == 1 else f" at {record.spec.scale:g} times the epochs"
    console.print(
        Text.assemble(
            (f"\n{table.table}", "bold"),
            f" on {record.task}{scale}: {counts.complete} of {wanted} runs, {len(table.rows)} rows "
            f"with {seeds}; {counts.pruned} diverged, {counts.failed} failed",
        ),
        soft_wrap=True,
    )
    if counts.complete:
        rows = _rows(comparison_of(record), [row.shown for row in table.rows])
        if not console.is_terminal:  # a log has room for long lines
            roomy = console.options.update(max_width=1000)
            whole = Measurement.get(console, roomy, rows).maximum
            console = PlainConsole(file=console.file, width=max(console.width, whole))
        console.print(rows)
    for run in record.compared:
        if run.reason:
            console.print(
                f"{table.rows[run.row].shown}, seed {run.seed}: {as_typed(run.reason)}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )


def _rows(found: "Comparison", settings: "Sequence[str]") -> Table:
    """A row for every setting; of every metric the paper's number and our mean."""
    analyses = (name for name in ("sharpness", "fisher") if name in found.metrics)
    names = list(dict.fromkeys([*found.papers_metrics, found.metric, *analyses]))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("setting")
    table.add_column("seeds", justify="right")
    for name in names:
        table.add_column(f"{name}: paper", justify="right", overflow="fold")
        table.add_column("ours", justify="right", overflow="fold")
    for shown, row in zip(settings, found.rows, strict=True):
        cells = [part for name in names for part in _cells(row.metrics[name])]
        table.add_row(shown, str(len(row.metrics[found.metric].values)), *cells)
    return table


def _cells(found: "Measured") -> tuple[str, str]:
    """The paper's mean and standard deviation; our mean and its interval."""
    from knee_tune.records.shown import NOTHING, rounded

    paper = NOTHING if found.paper is None else f"{found.paper:.4g}"
    if found.paper_std is not None:
        paper += f" ± {found.paper_std:.2g}"
    return paper, rounded(found.mean)


HOW_TO_A_CHAMPION = {
    "no": "it was not confirmed: knee-tune register --as champion makes it the champion anyhow",
    "not tried": "knee-tune register makes it the champion; --confirm 3:5 tests it first",
}
"""What to type if a candidate is to be the champion, by how it was confirmed."""


def print_confirmation(console: Console, confirmation: "Confirmation") -> None:
    """Every candidate's mean and difference with their intervals, and the verdict in one line."""
    seeds, steps = confirmation.seeds, confirmation.steps
    what = "confirmation" if confirmation.race is None else "race"
    which = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    console.print(
        f"\n{what} with {fresh_seeds(len(seeds))} ({which}), "
        f"{steps.trained:,} steps trained, {steps.reused:,} reused:",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("seed LR", justify="right")
    table.add_column("explore", justify="right")
    if confirmation.race is not None:
        table.add_column("seeds", justify="right")
    table.add_column(f"{confirmation.metric}, mean and interval", justify="right")
    table.add_column("difference to the default", justify="right")
    for index, candidate in enumerate(confirmation.candidates):
        difference = "(the default)" if candidate.default else _shown(candidate.difference, "+")
        table.add_row(
            learning_rate(candidate.seed_lr),
            explored(*candidate.point[1:]),
            *([str(len(candidate.runs))] if confirmation.race is not None else []),
            _shown(candidate.mean),
            difference,
            style="bold" if index == confirmation.winner else "",
        )
    console.print(table)
    for candidate in confirmation.candidates:
        for run in candidate.runs:
            if run.value is None:
                console.print(
                    f"{candidate.setting} is out: "
                    f"{as_typed(run.reason) or 'no value'} (seed {run.seed})",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
    count = confirmation.comparisons
    together = "" if count < 2 else f"; the {count} differences hold together (Bonferroni)"
    console.print(f"(intervals of Student's t at 95 %{together})", soft_wrap=True)
    if confirmation.race is not None:
        ended = f" ({confirmation.race.ended})" if confirmation.race.ended else ""
        console.print(f"{confirmation.race.words}{ended}", soft_wrap=True, markup=False)
    style = "bold green" if confirmation.confirmed else "yellow"
    console.print(confirmation.words, style=style, markup=False, soft_wrap=True)


def print_edges(console: Console, record: "StudyRecord") -> None:
    """If the winner lies on the edge of the search space: how to look beyond."""
    from knee_tune.config.study import edges

    winner = record.winner
    if winner is None:
        return
    for edge in edges(
        record.spec, seed_lr=winner.seed_lr, explore_fraction=winner.explore_fraction
    ):
        console.print(
            f"on the edge of the search space ({edge.what}): a better one may lie beyond; the same "
            f"command with more trials and --set '{edge.setting}' looks there",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def print_registered(console: Console, model: "RegisteredModel", places: "Places") -> None:
    """What the model is called, and how to load it anywhere."""
    version = f"{model.name} version {model.version}"
    if model.new:
        said = f"registered {version} as {model.alias}"
    else:
        said = f"already registered: {version} is the {model.alias}"
    console.print(said, soft_wrap=True)
    if model.alias == "candidate" and model.confirmed in HOW_TO_A_CHAMPION:
        console.print(f"  {HOW_TO_A_CHAMPION[model.confirmed]}", soft_wrap=True, markup=False)
    if places.tracking_uri is not None:
        where = f'  mlflow.set_tracking_uri("{shown_url(places.tracking_uri)}")'
        console.print(where, soft_wrap=True, markup=False)
    how = "pyfunc.load_model" if model.answers else "artifacts.download_artifacts"
    console.print(f'  mlflow.{how}("{model.uri}")', soft_wrap=True, markup=False)


def _shown(estimate: "Estimate | None", sign: str = "") -> str:
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:  # of one random seed
        return f"{estimate.value:{sign}.4g}"
    return f"{estimate.value:{sign}.4g} [{estimate.low:{sign}.4g}, {estimate.high:{sign}.4g}]"


STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}
"""Colours of the states of trials."""

SHOWN_BEST, SHOWN_NEWEST = 5, 10
"""Trials in the table of a study with many: a terminal has room for them and for the rest."""


def fate(state: str, reason: str) -> Text:
    """How a trial stands or ended, and why: ``pruned at step 123``, ``failed: rank 1 was ...``."""
    text = Text(state, style=STYLES.get(state, ""))
    reason = as_typed(one_line(reason))
    if reason and state != "complete":
        rest = reason.removeprefix(state)
        text.append(rest if rest != reason else f": {reason}", style="dim")
    return text


def print_start(console: Console, start: "StudyStart") -> None:
    """What is about to be trained."""
    ranks = "1 rank" if start.world_size == 1 else f"{start.world_size} ranks"
    unit = "run" if start.compares else "trial"
    slots = "" if start.slots == 1 else f", {start.slots} {unit}s at a time"
    times = f" x {start.replicates} replicates" if start.replicates > 1 else ""
    of_trials = f"{start.finished}" + (f" of {start.trials}" if start.trials else "")
    console.print(
        f"{start.parameters:,} parameters, {start.total_steps:,} steps{times} per {unit}, {ranks} "
        f"on {start.device}{slots}; {of_trials} {unit}s done"
    )
    if start.validated:
        console.print(f"validation metrics are over {start.validated}", soft_wrap=True)
    for remark in start.remarks:
        console.print(as_typed(remark), markup=False, soft_wrap=True)
    if start.device == "cpu" and start.gpus:
        console.print(f"(too few GPUs for {ranks}{slots}: {start.gpus}; --nproc 1 would use one)")


def print_summary(console: Console, summary: "RunSummary", places: "Places") -> None:
    """The best setting, where things are, and what to type to look at them."""
    record = summary.record
    console.print()
    print_status(console, record)
    if summary.registered is not None:
        print_registered(console, summary.registered, places)
    if summary.unregistered:
        console.print(as_typed(summary.unregistered), style="yellow", markup=False, soft_wrap=True)
    console.print(f"everything is in {places.home.root}", soft_wrap=True, markup=False)
    if summary.report is not None:
        console.print(f"report: {summary.report}", soft_wrap=True, markup=False)
    console.print("\nLook at it:")
    commands = [places.command("dashboard", record.name), places.ui_command]
    if places.tracking_uri is not None and record.spec.compare is None:
        commands.append(places.command("register", record.name, tracking=True))
    for command in filter(None, commands):
        console.print(f"  {command}", soft_wrap=True, markup=False)


def print_status(console: Console, record: "StudyRecord", *, every: bool = False) -> None:
    """Trials, the winner, and what it all cost; of a comparison, its rows.

    Of many trials the best and the newest are shown, unless ``every`` one is asked for.
    """
    if record.spec.compare is not None:
        print_comparison(console, record)
        for line in record.steps.words:
            console.print(line, soft_wrap=True)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("trial", "seed LR", "explore", record.metric, "trained", "reused"):
        table.add_column(column, justify="right")
    table.add_column("state")
    winner = record.winner
    shown = record.trials if every else record.shown(best=SHOWN_BEST, newest=SHOWN_NEWEST)
    for trial in shown:
        mark = "bold" if winner is not None and trial == winner.trial else ""
        state = fate(trial.state, trial.reason)
        table.add_row(
            str(trial.number),
            learning_rate(trial.seed_lr),
            explored(*trial.point[1:]),
            with_spread(trial.value, trial.spread),
            f"{trial.steps.trained:,}",
            f"{trial.steps.reused:,}",
            state,
            style=mark,
        )
    console.print(table)
    if len(shown) < len(record.trials):
        console.print(
            f"({len(shown)} of {len(record.trials):,} trials: the best {SHOWN_BEST} and the newest "
            f"{SHOWN_NEWEST}; knee-tune status {record.name} --all, in this home, shows every one)",
            soft_wrap=True,
        )
    counts = record.counts
    console.print(
        f"\n{record.name}: {counts.complete} complete, {counts.pruned} pruned, "
        f"{counts.failed} failed, {counts.running} running"
    )
    if record.earlier is not None:
        console.print(record.earlier.words, soft_wrap=True)
    for line in record.steps.words:
        console.print(line, soft_wrap=True)
    for baseline in record.baselines:
        value = "no value" if baseline.value is None else f"{record.metric} {baseline.value:.4g}"
        console.print(f"baseline {baseline.schedule}, seed LR {baseline.seed_lr:g}: {value}")
    if winner is not None:
        value = with_spread(winner.value, winner.spread)
        separator = " " if winner.seeds else ", "
        console.print(
            Text.assemble(
                (f"best: {winner.setting}", "bold green"),
                f" ({record.metric} {value}{separator}{winner.evidence})",
            )
        )
    if (report := record.audit_report) is not None:
        console.print(audit_line(report), soft_wrap=True)
    if record.confirmation is not None:
        print_confirmation(console, record.confirmation)
    print_edges(console, record)


def with_spread(value: float | None, spread: float | None) -> str:
    """The mean over replicates and, if there were several, their standard deviation."""
    if value is None:
        return ""
    return f"{value:.4g}" if spread is None else f"{value:.4g} ± {spread:.2g}"


def print_baseline(console: Console, record: "BaselineRecord", *, study: str, metric: str) -> None:
    """One line."""
    value = "no value" if record.value is None else f"{metric} {record.value:.4g}"
    console.print(f"{record.schedule}, seed LR {record.seed_lr:g}: {value} (kept with {study})")


def refuse_failures(*records: "StudyRecord") -> None:
    """MachineError if trials or runs of these studies failed: what is missing is said last."""
    of_studies = []
    for record in records:
        confirmation = record.confirmation
        failed = (
            (record.counts.failed, "trial", ""),
            (record.run_counts.failed, "run", ""),
            (confirmation.failed if confirmation else 0, "run", " of its confirmation"),
        )
        said = [f"{count} {what}{'s' * (count > 1)}{of}" for count, what, of in failed if count]
        if said:
            of_studies.append(f"study {record.name}: {' and '.join(said)} failed")
    if of_studies:
        raise MachineError(f"{', '.join(of_studies)}; the same command tries again")
