"""The figures of a study: plotly figures as dicts, by name, in the order of the report."""

from typing import Any

from knee_tune.reporting.metric_figures import metrics_figure
from knee_tune.reporting.run_figures import (
    confirmation_figure,
    curves_of_study,
    importance_figure,
    steps_figure,
)
from knee_tune.reporting.seed_figures import seeds_of_study
from knee_tune.reporting.surface_figures import (
    crossover_figure,
    ridge_figure,
    slices_figure,
    surface_figure,
)
from knee_tune.specs.importances import Importances
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.ridge import Ridge


def study_figures(
    record: StudyRecord, ridge: Ridge | None, *, importances: Importances | None = None
) -> dict[str, dict[str, Any]]:
    """Those that have something to show, ready for ``plotly.graph_objects.Figure``.

    Names: surface, ridge, crossover, slices, seeds, metrics, curves, steps, importance,
    confirmation.
    """
    figures = {
        "surface": surface_figure(ridge.surface, winner=record.winner) if ridge else None,
        "ridge": ridge_figure(ridge, record.spec.reference) if ridge else None,
        "crossover": crossover_figure(ridge) if ridge else None,
        "slices": slices_figure(ridge) if ridge else None,
        "seeds": seeds_of_study(record),
        "metrics": metrics_figure(record),
        "curves": curves_of_study(record),
        "steps": steps_figure(record.steps),
        "importance": importance_figure(importances) if importances else None,
        "confirmation": confirmation_figure(record.confirmation) if record.confirmation else None,
    }
    return {name: figure for name, figure in figures.items() if figure is not None}
