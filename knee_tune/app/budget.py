"""``knee-tune budget``: the smallest budget that reaches a target (the paper's Table 7)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from knee_tune.app.budget_request import Search
from knee_tune.app.ending import told_end
from knee_tune.app.extra_runs import ExtraRun, Lines, train_extra_runs
from knee_tune.app.home import Places
from knee_tune.app.placement import GroupOptions
from knee_tune.app.searches import KeptSearch, continued_search
from knee_tune.app.workshop import Workshop, open_workshop
from knee_tune.planning.plan import Schedule
from knee_tune.planning.planner import (
    baseline_schedule,
    check_warmup,
    distinct_fractions,
    knee_schedule,
    twins_in_words,
)
from knee_tune.specs.budget import KNEE, BudgetRecord, BudgetRun, in_epochs
from knee_tune.specs.shown import percent
from knee_tune.specs.tracking import Attached, StudyFinished, StudyStarted, StudyState
from knee_tune.tracking import Tracker, experiment_name, open_tracker, provenance


@dataclass(frozen=True, kw_only=True)
class OpenedSearch:
    """What training for a budget search needs."""

    workshop: Workshop
    study: KeptSearch
    tracker: Tracker

    def on_interrupt(self) -> None:
        """There is no database to wait for."""


def search_budget(
    search: Search, places: Places, options: GroupOptions, watcher: Lines
) -> BudgetRecord:
    """Train budget after budget until every schedule has reached the target, or none is left.

    The same call continues: what was trained before, by anyone in this home, is not trained again.
    UserError or MachineError if a run cannot be trained; KeyboardInterrupt is raised on after its
    end is recorded.
    """
    with (
        open_workshop(places.home, search.spec, search.recipe, options) as workshop,
        continued_search(places.home, _asked(search, workshop)) as kept,
    ):
        for remark in workshop.remarks:
            watcher.line(f"{remark} at every budget, which share trunks")
        tracker = open_tracker(
            home=places.home.root, uri=places.tracking_uri, gone=lambda: workshop.held.gone
        )
        opened = OpenedSearch(workshop=workshop, study=kept, tracker=tracker)
        tracker.record(_started(opened, search))
        with told_end(
            tracker,
            uri=places.tracking_uri,
            finished=lambda state: _finished(opened, state),
            on_line=watcher.line,
        ):
            for epochs in search.budgets:
                _train(opened, search, epochs, watcher)
            kept.keep(kept.record.model_copy(update={"finished": True}))
        return kept.record


def _asked(search: Search, workshop: Workshop) -> BudgetRecord:
    """The record of a search that has trained nothing yet.

    UserError if its smallest budget is all warmup.
    """
    check_warmup(workshop.recipe, workshop.facts)
    spec, metric = search.spec, search.recipe.metric(search.recipe.objective)
    return BudgetRecord(
        name=search.name,
        key="",
        task=spec.task,
        preset=spec.preset,
        recipe={k: value for k, value in workshop.spec.recipe.items() if k != "epochs"},
        nproc=workshop.placement().world_size,
        data_fingerprint=workshop.facts.data_fingerprint,
        metric=f"valid_{metric.name}",
        direction=metric.direction,
        target=search.target,
        budgets=tuple(search.budgets),
        schedules=search.schedules,
    )


def _train(opened: OpenedSearch, search: Search, epochs: int, watcher: Lines) -> None:
    """Train the schedules that have not reached the target yet at one more budget."""
    kept = opened.study
    left = [name for name in search.schedules if kept.record.smallest(name) is None]
    at = replace(opened, workshop=search.at(opened.workshop, epochs))
    runs = list(_runs(at.workshop, search, left, epochs))
    if not runs:
        return
    watcher.line(f"budget of {in_epochs(epochs)}: {', '.join(left)}; {len(runs)} runs")
    if KNEE in left:
        recipe, facts = at.workshop.recipe, at.workshop.facts
        for line in twins_in_words(recipe, facts, search.explore_fractions):
            watcher.line(line)
    ends = train_extra_runs(at, watcher, [extra for extra, _ in runs])
    done = []
    for (extra, asked), ended in zip(runs, ends, strict=True):
        record = ended.record
        if ended.failure is not None:
            raise ended.error(
                f"budget search {search.name}: {extra.name}: {record.reason}; the same command "
                "goes on from here"
            )
        trained = {"steps_trained": record.steps_trained, "reason": record.reason}
        done.append(asked.model_copy(update={"value": record.value, **trained}))
    kept.keep(kept.record.model_copy(update={"runs": (*kept.record.runs, *done)}))


def _runs(
    workshop: Workshop, search: Search, schedules: Sequence[str], epochs: int
) -> Iterator[tuple[ExtraRun, BudgetRun]]:
    """Every run of one budget, each training once: two fractions may come to the same knee.

    Runs on one trunk are kept apart, so that slots which work side by side need not wait for it.
    """
    distinct = distinct_fractions(workshop.recipe, workshop.facts, search.explore_fractions)
    for name in schedules:
        for (fraction, seed_lr), seed in product(
            search.points(name), workshop.spec.replicate_seeds
        ):
            if fraction is not None and fraction not in distinct:
                continue
            schedule = _schedule(name, workshop, seed_lr=seed_lr, explore_fraction=fraction)
            explore = "" if fraction is None else f"-explore{fraction:g}"
            key = f"{name}-{epochs}ep-lr{seed_lr}{explore}-seed{seed}"
            shown = "" if fraction is None else f", explore {percent(fraction)}"
            several = len(workshop.spec.replicate_seeds) > 1
            yield (
                ExtraRun(
                    key=key,
                    name=f"{name} {in_epochs(epochs)}{shown}"
                    + (f", seed {seed}" if several else ""),
                    schedule=schedule,
                    seed=seed,
                    label=name,
                    explore_fraction=fraction,
                ),
                BudgetRun(
                    key=key,
                    schedule=name,
                    epochs=epochs,
                    seed_lr=seed_lr,
                    explore_fraction=fraction,
                    seed=seed,
                    steps_budget=schedule.total_steps,
                ),
            )


def _schedule(
    name: str, workshop: Workshop, *, seed_lr: float, explore_fraction: float | None
) -> Schedule:
    recipe, facts = workshop.recipe, workshop.facts
    if explore_fraction is None:
        return baseline_schedule(name, recipe, facts, seed_lr=seed_lr)
    return knee_schedule(recipe, facts, seed_lr=seed_lr, explore_fraction=explore_fraction)


def _started(opened: OpenedSearch, search: Search) -> StudyStarted:
    """The search's own MLflow run begins."""
    record, spec = opened.study.record, search.spec
    placement = opened.workshop.placement()
    return StudyStarted(
        uid=record.uid,
        name=record.name,
        task=spec.task,
        experiment=experiment_name(spec.subject),
        description=f"Smallest budget with {record.metric} {record.target:g}",
        params={
            "recipe": record.recipe,
            "target": record.target,
            "seed": spec.seed,
        },
        tags={
            **provenance(),
            "knee.kind": "budget",
            "knee.budgets": ",".join(map(str, record.budgets)),
            "knee.preset": spec.preset,
            "knee.data_fingerprint": record.data_fingerprint,
            "knee.device": placement.device,
            "knee.world_size": str(placement.world_size),
        },
    )


def _finished(opened: OpenedSearch, state: StudyState) -> StudyFinished:
    """It ends, with what was found so far."""
    found = opened.study.record
    smallest = {name: found.smallest(name) for name in found.schedules}
    metrics = {f"epochs_{name}": float(cell.epochs) for name, cell in smallest.items() if cell}
    cost = found.steps()
    steps = {
        "steps_trained": float(cost.trained),
        "steps_independent": float(cost.independent),
    }
    opened.tracker.record(Attached(name="budget.json", text=found.model_dump_json(indent=2)))
    return StudyFinished(state=state, metrics=metrics | steps)
