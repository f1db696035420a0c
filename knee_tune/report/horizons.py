"""The report on several horizons: the metric and the best setting against the total steps."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from knee_tune.config.study import StudySpec
from knee_tune.records.shown import (
    estimate,
    fraction_estimate,
    in_words,
    learning_rate,
    percent,
    sentence,
)
from knee_tune.records.values import Estimate
from knee_tune.report.document import Report, ReportContext, Section, Table, Tile, written_at
from knee_tune.report.plotting import ACCENT, BLUE, GREEN, axis, bars, figure
from knee_tune.stats.horizons import FEWEST, Horizon, Horizons

Figure = dict[str, Any]


class HorizonsReport(Report):
    """The report of ``knee-tune horizons``."""

    found: Horizons = Field(description="all numbers")


def horizons_report(
    found: Horizons, *, name: str, spec: StudySpec, context: ReportContext
) -> HorizonsReport:
    """Everything about the horizons; ``spec`` is that of the smallest one's study."""
    metric = in_words(found.metric)
    table = Table(
        caption=f"The best trial of every horizon, by {metric}; estimates over random seeds",
        columns=(
            *("budget", "total steps", "seed LR", "explore", sentence(metric)),
            *("best seed LR of each seed", "share that decays"),
        ),
        rows=tuple(
            (
                each.budget,
                f"{each.total_steps:,}",
                learning_rate(each.seed_lr),
                percent(each.explore_fraction),
                estimate(each.value),
                estimate(each.best_lr),
                fraction_estimate(each.best_decay),
            )
            for each in found.horizons
        ),
    )
    trained = sum(each.trained for each in found.horizons)
    independent = sum(each.independent for each in found.horizons)
    cost = Table(
        caption="Steps; a horizon's trunks go on from those of the shorter ones",
        columns=("budget", "trained", "of the same trials, each trained alone", "share"),
        rows=tuple(
            (each.budget, f"{each.trained:,}", f"{each.independent:,}", _share(each))
            for each in found.horizons
        ),
    )
    return HorizonsReport(
        study=name,
        task=spec.subject,
        preset=spec.preset,
        description=spec.description,
        written=written_at(context),
        metric=found.metric,
        direction=found.direction,
        environment=context.environment,
        replay=context.replay,
        left_out=() if found.exponent or found.one_lr else (_no_exponent(),),
        tiles=(
            Tile(label="horizons", value=str(len(found.horizons))),
            Tile(
                label="best seed LR",
                value=" → ".join(learning_rate(each.seed_lr) for each in found.horizons),
            ),
            Tile(
                label="steps trained",
                value=f"{trained / independent:.0%}",
                note="of the same trials, each alone",
            ),
        ),
        sections=(
            Section(
                key="answer",
                title="The answer",
                words=(*horizon_words(found), *_trunk_words(spec)),
                tables=(table,),
            ),
            Section(
                key="metric", title=f"{sentence(metric)} by horizon", figures=("metric",), wide=True
            ),
            Section(
                key="setting",
                title="How the best setting moves",
                figures=("decay",) if found.one_lr else ("seed_lr", "decay"),
                wide=True,
            ),
            Section(key="cost", title="What it cost", tables=(cost,)),
            Section(key="again", title="Every horizon is a study", commands=context.replay),
        ),
        figures=horizon_figures(found),
        found=found,
    )


def horizon_words(found: Horizons) -> tuple[str, ...]:
    """What to use at each horizon, whether the best seed LR moves, and which ends of the range
    it reached."""
    used = "; ".join(
        f"{each.budget}: seed LR {learning_rate(each.seed_lr)}, explore "
        f"{percent(each.explore_fraction)}"
        for each in found.horizons
    )
    return (sentence(f"{used}."), _moves(found), *_edges(found))


def _edges(found: Horizons) -> Iterator[str]:
    for edge in dict.fromkeys(each.edge for each in found.horizons if each.edge):
        at = ", ".join(each.budget for each in found.horizons if each.edge == edge)
        yield (
            f"At {at} the best trial has the {edge.what} of the search space, so a better one may "
            f"lie beyond: the same command with --set '{edge.setting}' and more trials looks there."
        )


def _moves(found: Horizons) -> str:
    if found.one_lr:
        return "One seed LR was searched, so whether the best one moves is not asked."
    if found.exponent is None:
        return f"Whether the best seed LR moves with the horizon is not told: {_no_exponent()}"
    shown = estimate(found.exponent, sign=True)
    if not found.resolved:
        return (
            f"Whether the best seed LR moves with the horizon is not resolved: the exponent of its "
            f"power law is {shown}, the grid's steps included, which may be zero."
        )
    last = found.horizons[-1]
    further = found.lr_at(2 * last.total_steps)
    assert further is not None, "it is resolved"
    return (
        f"The best seed LR moves with the horizon: a power law of exponent {shown}. At twice the "
        f"longest horizon it gives {further:.3g}; nothing was trained there."
    )


def _trunk_words(spec: StudySpec) -> tuple[str, ...]:
    if spec.trunk is None:
        return ()
    return (
        f"Every run begins at step {spec.trunk.step:,} of {spec.trunk.path.name}, a trunk that was "
        "trained elsewhere. Random seeds differ from there on: what the noise before it does is in "
        "no interval.",
    )


def _no_exponent() -> str:
    return f"a power law needs {FEWEST} horizons and {FEWEST} random seeds (replicates) at least."


def _share(each: Horizon) -> str:
    return f"{each.trained / each.independent:.0%}" if each.independent else ""


def horizon_figures(found: Horizons) -> dict[str, Figure]:
    """The metric, the best seed LR and the best decay share against the total steps."""
    each = found.horizons
    metric = sentence(in_words(found.metric))
    figures = {
        "metric": _against_steps(
            each, [h.value for h in each], title=metric, colour=BLUE, type="log"
        ),
        "decay": _against_steps(
            each,
            [h.best_decay for h in each],
            title="Share of the steps that decay",
            colour=GREEN,
            tickformat=".0%",
            rangemode="tozero",
        ),
    }
    if not found.one_lr:
        lrs = sorted({lr for h in each for lr in h.best_lrs.values()})
        figures["seed_lr"] = _against_steps(
            each,
            [h.best_lr for h in each],
            title="Best seed LR",
            colour=ACCENT,
            further=_power_law(found),
            type="log",
            tickvals=lrs,
            ticktext=[learning_rate(lr) for lr in lrs],
        )
    return figures


def _power_law(found: Horizons) -> list[dict[str, Any]]:
    """A dotted line up to twice the longest horizon, where the seeds agree on one."""
    steps = [found.horizons[0].total_steps, 2 * found.horizons[-1].total_steps]
    lrs = [found.lr_at(count) for count in steps]
    if None in lrs:
        return []
    line = {"color": ACCENT, "width": 1.5, "dash": "dot"}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": steps,
            "y": lrs,
            "line": line,
            "hovertemplate": "power law<extra></extra>",
            "showlegend": False,
        }
    ]


def _against_steps(
    horizons: Sequence[Horizon],
    values: Sequence[Estimate],
    *,
    title: str,
    colour: str,
    further: Sequence[dict[str, Any]] = (),
    **settings: Any,
) -> Figure:
    steps = [each.total_steps for each in horizons]
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": steps,
        "y": [each.value for each in values],
        "error_y": bars(values, colour=colour),
        "text": [each.budget for each in horizons],
        "hovertemplate": "%{text}, %{x:,} steps: %{y:.4g}<extra></extra>",
        "marker": {"color": colour, "size": 9},
        "line": {"color": colour, "width": 1.5},
        "showlegend": False,
    }
    shown = [f"{count:,}" for count in steps]
    return figure(
        [trace, *further],
        x=axis("Total steps", type="log", tickvals=steps, ticktext=shown),
        y=axis(title, **settings),
        title={"text": f"{title} by horizon"},
        height=360,
    )
