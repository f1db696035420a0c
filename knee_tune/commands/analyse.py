"""``knee-tune analyse``: how sharp the minimum is that a trial, a row or any weights ended in."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from knee_tune.analysis.range_curve import RangeReading, read_off
from knee_tune.commands.comparison import key_of
from knee_tune.commands.extra_runs import Lines
from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import interruptible, reopen_workers
from knee_tune.commands.winner import complete_trial
from knee_tune.commands.workers import GroupOptions, Workers, open_workers
from knee_tune.config.recipe import BaseRecipe, task_slug
from knee_tune.config.study import Analysis, ResolvedStudy, Sharpness, StudySpec
from knee_tune.errors import UserError, disk_trouble, first_line
from knee_tune.plans.plan import KEPT_WEIGHTS, AnalysePlan, LRRangePlan
from knee_tune.records.events import RunLink
from knee_tune.records.study import StudyRecord
from knee_tune.report.document import figure_page
from knee_tune.report.run_figures import lr_range_figure
from knee_tune.study.storage import open_storage, refuse_missing
from knee_tune.study.study import Study, load_study, spec_of, study_record, trial_attrs
from knee_tune.tracking import experiment_name
from knee_tune.tracking.tracker import add_metrics
from knee_tune.workers.protocol import Callbacks


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Finished weights that are to be analysed."""

    name: str
    """What people read."""
    weights: Path
    seed: int
    """That they were trained with: it may be part of the training data (noisy labels)."""
    key: str | None = None
    """Of their MLflow run in the study; None: they are of no study."""


@dataclass(frozen=True, kw_only=True)
class Analysed:
    """What was found of them."""

    subject: Subject
    metrics: dict[str, float]
    """``sharpness`` and the ``loss`` it starts from, or ``fisher``."""
    run: RunLink | None = None
    """The MLflow run that has the metric now."""


def looks(analysis: Analysis) -> int:
    """How often an analysis looks at its whole sample, at most."""
    return analysis.iterations + isinstance(analysis, Sharpness)


def analyse_study(
    places: Places,
    name: str,
    analysis: Analysis,
    *,
    number: int | None = None,
    row: int | None = None,
    options: GroupOptions,
    lines: Lines,
    on_look: Callable[[int], None],
) -> list[Analysed]:
    """Analyse a study's winner, or its trial of that number; of a comparison every run of a row.

    Rows are counted from 1. ``on_look`` is called about once a second with the looks at the whole
    sample so far (:func:`looks`). What is found joins the MLflow run of the trial; where MLflow
    does not answer, that is a line. UserError if there is no such trial or row, or its weights are
    gone.
    """
    refuse_missing(places.storage_url)
    study = load_study(open_storage(places.storage_url), name)
    spec = spec_of(study)
    subjects = list(subjects_of(places.home, study, spec, number=number, row=row))
    with reopen_workers(places.home, study, options) as workers, interruptible():
        analysed = []
        for subject in subjects:
            found = _analyse(workers, subject, analysis, lines, on_look)
            run = _tracked(places, study, found, analysis, lines)
            analysed.append(replace(found, run=run))
        return analysed


def analyse_weights(
    places: Places,
    spec: ResolvedStudy[BaseRecipe],
    weights: Path,
    analysis: Analysis,
    *,
    options: GroupOptions,
    lines: Lines,
    on_look: Callable[[int], None],
) -> Analysed:
    """Analyse a file of weights, trained with the task and random seed of ``spec``.

    UserError if there is no such file, or it does not fit the task's model.
    """
    if not weights.is_file():
        raise UserError(f"`weights` {weights}: no such file; name a weights.safetensors")
    subject = Subject(name=str(weights), weights=weights.absolute(), seed=spec.seed)
    with open_workers(places.home, spec, options) as workers, interruptible():
        return _analyse(workers, subject, analysis, lines, on_look)


def subjects_of(
    home: Home, study: Study, spec: StudySpec, *, number: int | None, row: int | None
) -> Iterator[Subject]:
    """The winner of a search or its trial of that number, or a row's runs; UserError for none."""
    record = study_record(study)
    if spec.compare is None and row is not None:
        raise UserError(f"`row` {row}: study {record.name} compares no rows; leave it out")
    if spec.compare is None:
        yield _trial(home, study, record, number)
        return
    if number is not None:
        raise UserError(f"`trial` {number}: study {record.name} compares rows; name one with `row`")
    rows = spec.compare.rows
    if row is None or row > len(rows):
        listed = "; ".join(f"{index}: {each.shown}" for index, each in enumerate(rows, start=1))
        asked = "name a row with `row`" if row is None else f"`row` {row}: not there"
        raise UserError(f"study {record.name}: {asked}; its rows are {listed}")
    runs = [run for run in record.compared if run.row == row - 1 and run.state == "complete"]
    if not runs:
        raise UserError(f"study {record.name}: no run of row {row} is complete yet")
    for run in runs:
        yield _there(
            Subject(
                name=f"{rows[row - 1].shown}, seed {run.seed}",
                weights=home.weights(f"{run.checkpoint}/{KEPT_WEIGHTS}"),
                seed=run.seed,
                key=key_of(run.row, run.seed),
            )
        )


def _trial(home: Home, study: Study, record: StudyRecord, number: int | None) -> Subject:
    trial = complete_trial(record, number)
    return _there(
        Subject(
            name=f"trial {trial.number} of {record.name}",
            weights=home.weights(trial_attrs(study, trial.number)["weights"]),
            seed=record.spec.seed,
            key=trial.key,
        )
    )


def _there(subject: Subject) -> Subject:
    if not subject.weights.is_file():
        raise UserError(f"{subject.name}: its weights are gone ({subject.weights})")
    return subject


def _analyse(
    workers: Workers,
    subject: Subject,
    analysis: Analysis,
    lines: Lines,
    on_look: Callable[[int], None],
) -> Analysed:
    order = workers.order(f"analyse-{analysis.name}", seed=subject.seed)
    plan = AnalysePlan(**dict(order), weights=subject.weights, analysis=analysis)
    lines.line(f"{analysis.name} of {subject.name}")
    done = workers.run(plan, Callbacks(on_line=lines.line, on_progress=on_look))
    return Analysed(subject=subject, metrics=done.result["metrics"])


def _tracked(
    places: Places, study: Study, found: Analysed, analysis: Analysis, lines: Lines
) -> RunLink | None:
    """The MLflow run that has the metric now, if there is one."""
    if places.tracking_uri is None or found.subject.key is None:
        return None
    try:
        run = add_metrics(
            {analysis.name: found.metrics[analysis.name]},
            tags={f"knee.{analysis.name}": analysis.model_dump_json(exclude={"name"})},
            study_uid=f"{study.study_name}-{study.user_attrs['key']}",
            key=found.subject.key,
            experiment=experiment_name(spec_of(study).subject),
            home=places.home.root,
            uri=places.tracking_uri,
        )
    except Exception as error:  # the analysis is sound, and may have taken an hour
        reason = first_line(error)
        lines.line(f"MLflow: not recorded ({type(error).__name__}: {reason})")
        return None
    if run is None:
        lines.line(f"MLflow: not recorded, it has no run of {found.subject.name}")
    return run


# ``knee-tune analyse lr-range``: Smith's test, and the page that shows it.


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """A finished test."""

    task: str
    lrs: list[float]
    losses: list[float]
    """Mean training loss of every step."""
    reading: RangeReading
    exploded: bool
    """It ended before its last step."""
    page: Path


def lr_range_test(
    home: Home,
    spec: ResolvedStudy[BaseRecipe],
    *,
    low: float,
    high: float,
    steps: int,
    out: Path | None,
    options: GroupOptions,
    lines: Lines,
    on_step: Callable[[int], None],
) -> RangeTest:
    """Train ``steps`` steps with growing LRs, read the curve off, write it as one HTML file.

    ``out``: where; in the home if None. UserError if the range is none, the page cannot be written,
    or the loss is lost at the very first step.
    """
    if not (math.isfinite(high) and 0 < low < high):
        raise UserError(
            f"`low` {low:g} `high` {high:g}: the LR grows from low to high; as in "
            "`low` 1e-5 `high` 10"
        )
    page = out or home.root / f"lr-range-{task_slug(spec.task)}-{spec.preset}.html"
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"`out` {out}: its folder does not exist; make it or name another")
    with open_workers(home, spec, options) as workers, interruptible():
        order = dict(workers.order("lr-range"))
        plan = LRRangePlan(**order, low=low, high=high, steps=steps)
        lines.line(
            f"LR range test of {task_slug(spec.task)}: {steps} steps, LR {low:g} to {high:g}"
        )
        done = workers.run(plan, Callbacks(on_line=lines.line, on_progress=on_step))
    lrs, losses = done.result["lrs"], done.result["losses"]
    if not losses:
        raise UserError(f"`low` {low:g}: the loss is lost at the first step; start lower")
    reading = read_off(lrs, losses)
    figure = lr_range_figure(
        lrs, losses, reading=reading, title=f"LR range test of {task_slug(spec.task)}"
    )
    try:
        page.write_text(figure_page(figure), encoding="utf-8")
    except OSError as error:
        if disk_trouble(error):
            raise
        raise UserError(f"`out` {page}: {error.strerror}; name another file") from error
    return RangeTest(
        task=task_slug(spec.task),
        lrs=lrs,
        losses=losses,
        reading=reading,
        exploded=len(lrs) < steps,
        page=page,
    )
