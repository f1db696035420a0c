"""What people see of a study that compares: the table's rows beside ours."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from knee_tune.cli.lines import PlainConsole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knee_tune.reporting.compared import Comparison, Measured
    from knee_tune.specs.records import StudyRecord


def print_comparison(console: Console, record: "StudyRecord") -> None:
    """How far it is, every row's numbers so far, and what went wrong."""
    from knee_tune.reporting.compared import comparison_of

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
                f"{table.rows[run.row].shown}, seed {run.seed}: {run.reason}",
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
    for setting, row in zip(settings, found.rows, strict=True):
        cells = [part for name in names for part in _cells(row.metrics[name])]
        table.add_row(setting, str(len(row.metrics[found.metric].values)), *cells)
    return table


def _cells(found: "Measured") -> tuple[str, str]:
    """The paper's mean and standard deviation; our mean and its interval."""
    from knee_tune.reporting.shown import NOTHING, rounded

    paper = NOTHING if found.paper is None else f"{found.paper:.4g}"
    if found.paper_std is not None:
        paper += f" ± {found.paper_std:.2g}"
    return paper, rounded(found.mean)
