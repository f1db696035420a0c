"""A search over shapes of the decay: trunks serve all of them, everybody says which is which."""

from pathlib import Path
from typing import Any

import pytest

from knee_tune.commands.confirmation import chosen
from knee_tune.errors import UserError
from knee_tune.plans.planner import knee_schedule
from knee_tune.report.tables import trials_table
from knee_tune.stats.ridge import ridge_of
from knee_tune.study.pruners import _describe
from knee_tune.study.study import open_study, study_record
from tests.integration.workbench import BUDGET, FACTS, Workbench

SHAPES = ("linear", "1-sqrt", "cosine")
FRACTIONS = (0.4, 0.8)
SEED_LRS = (0.02, 0.05)


def settings(**more: Any) -> tuple[str, ...]:
    return (
        f"space.seed_lr.values={list(SEED_LRS)}",
        f"space.explore_fraction.values={list(FRACTIONS)}",
        f"space.decay.values={list(SHAPES)}".replace("'", ""),
        *(f"{name}={value}" for name, value in more.items()),
    )


def test_a_grid_over_shapes_trains_every_trunk_once(tmp_path: Path) -> None:
    """Per seed LR and random seed max f + S x sum(1 - f) budgets, not S times those of one."""
    bench = Workbench(tmp_path, trunks=True, sampler="grid", settings=settings())
    bench.drive(trials=None)
    record = bench.record
    assert sorted(trial.point for trial in record.trials) == sorted(
        (lr, f, shape) for lr in SEED_LRS for f in FRACTIONS for shape in SHAPES
    )
    each = max(FRACTIONS) + len(SHAPES) * sum(1 - f for f in FRACTIONS)
    assert record.steps.trained == pytest.approx(len(SEED_LRS) * each * BUDGET)

    best = record.best
    assert best is not None
    assert best.decay in SHAPES
    assert record.winner is not None
    assert record.winner.setting.endswith(f"{best.decay} decay")
    told = record.best_as_json()
    assert told is not None
    assert told["decay"] == best.decay
    ridge = ridge_of(record, resamples=0)
    assert ridge is not None
    assert ridge.recommended is not None
    assert ridge.surface.decay == ridge.recommended.decay == best.decay
    assert ridge.surface.cell(best.point) is not None
    assert trials_table(record).splitlines()[0].endswith(",decay")

    known = bench.study.get_trials()
    for trial in known:
        described = _describe(trial)
        assert described is not None
        assert described.phases == (knee_schedule(bench.recipe, FACTS, **trial.params),)
    candidates = chosen(record, count=1, default=(0.05, 0.5, "linear"))
    assert [each.decay for each in candidates] == [best.decay, "linear"]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_every_sampler_tries_every_shape(sampler: str, tmp_path: Path) -> None:
    bench = Workbench(tmp_path, trunks=True, epochs=1, sampler=sampler, settings=settings())
    bench.drive(trials=None)
    points = [trial.point for trial in bench.record.trials]
    assert points[0] == (0.05, 0.5, "linear")  # the paper's default
    assert len(set(points)) == len(points) == 2 * 3 * 3


def test_what_shapes_are_searched_stays(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, settings=settings())
    other = bench.spec.model_copy(
        update={"space": bench.spec.space.model_copy(update={"decay": None})}
    )
    with pytest.raises(UserError, match=r"it was made with space.decay=.*; choose another"):
        open_study(bench.storage, other, data_fingerprint="data")


def test_without_shapes_a_study_looks_as_it_always_did(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    spec = bench.study.user_attrs["spec"]
    assert "decay" not in spec["space"]
    assert not spec["recipe"].keys() & {"decay", "final", "decay_power"}
    assert [trial.params for trial in bench.study.get_trials()] == [{}]
    assert list(bench.axes) == ["seed_lr", "explore_fraction"]
    assert study_record(bench.study).trials == ()
