"""The studies that repeat the paper's tables: their designs, and the paper's own rows in them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from knee_tune.app.request import StudyRequest
from knee_tune.specs.files import available
from knee_tune.specs.study import ReferenceTable, StudySpec

TABLE_16 = [name for name in available("studies") if name.startswith("table16-")]
TABLE_15 = [name for name in available("studies") if name.startswith("table15-")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def spec_of(name: str) -> StudySpec:
    return StudyRequest(study=name).resolve()[0]


def papers_table(shared: Path, number: int) -> Iterator[tuple[float, ...]]:
    """The rows of a table as they stand in the paper's text."""
    text = (shared / "paper" / "wide-minima-density-hypothesis.txt").read_text()
    table = text[text.index(f"\nTable {number}: ") :].split("|---", 1)[1]
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            return
        yield tuple(float(cell) for cell in re.findall(r"[\d.]+", line))


def reference(name: str, table: str) -> ReferenceTable:
    (found,) = [each for each in spec_of(name).reference if each.table == table]
    return found


def test_there_is_a_study_for_every_table() -> None:
    assert {"table16-digits", "table16-digits-clean", "table16-breast-cancer"} == set(TABLE_16)
    assert {"table15-iwslt", "table15-iwslt-sample", "table15-iwslt-demo"} == set(TABLE_15)


@pytest.mark.parametrize("name", ["table16-digits", "table16-breast-cancer"])
def test_table_16_is_a_whole_grid_with_twenty_seeds(name: str) -> None:
    spec = spec_of(name)
    assert spec.recipe["epochs"] == 30
    assert spec.seed_lrs == pytest.approx([0.005 * 1.5**i for i in range(9)], rel=0.005)
    assert spec.explore_fractions == (*(tenth / 10 for tenth in range(10)), 0.95)
    assert (spec.trials, len(spec.replicate_seeds)) == (99, 20)
    assert spec.limit is None
    assert spec.acting_pruner == "none"


def test_the_control_is_digits_without_noise_and_shifts_where_training_is_stable() -> None:
    digits, clean = spec_of("table16-digits"), spec_of("table16-digits-clean")
    assert clean.seed_lrs == digits.seed_lrs
    assert clean.explore_fractions == digits.explore_fractions
    assert (clean.limit, clean.replicate_seeds) == (None, digits.replicate_seeds)
    assert clean.recipe == digits.recipe | {"label_noise": 0.0, "shift": 0}
    assert (digits.recipe["label_noise"], digits.recipe["shift"]) == (0.2, 1)


def test_the_second_data_set_has_the_design_of_digits_untouched() -> None:
    digits, other = spec_of("table16-digits"), spec_of("table16-breast-cancer")
    assert digits.space == other.space
    assert other.recipe == {name: value for name, value in digits.recipe.items() if name != "shift"}


@pytest.mark.parametrize("name", TABLE_15)
def test_table_15_varies_the_explore_epochs_at_the_recipes_own_seed_lr(name: str) -> None:
    spec = spec_of(name)
    assert spec.seed_lrs == (spec.recipe["seed_lr"],)
    rows = reference(name, "Table 15").rows
    assert spec.explore_fractions == tuple((row.explore_epochs or 0) / 50 for row in rows)
    assert (spec.trials, len(spec.replicate_seeds)) == (7, 3)
    assert spec.limit is None
    assert spec.recipe["objective"] == "ppl"


def test_table_15_has_the_papers_size_unless_a_preset_says_otherwise() -> None:
    full = spec_of("table15-iwslt")
    assert (full.preset, full.recipe["epochs"], full.seed_lrs) == ("paper", 50, (3e-4,))
    for preset in ("sample", "demo"):
        assert spec_of(f"table15-iwslt-{preset}").preset == preset


@pytest.mark.parametrize("name", [*TABLE_16, "digits-default"])
def test_rows_of_table_16_are_the_papers(name: str, shared: Path) -> None:
    table = reference(name, "Table 16")
    assert (table.section, table.runs) == ("5.5", 3)
    assert {(row.schedule, row.epochs) for row in table.rows} == {("knee", 150)}
    assert [
        (row.seed_lr, row.metrics["test_accuracy"], row.explore_epochs) for row in table.rows
    ] == list(papers_table(shared, 16))


@pytest.mark.parametrize("name", [*TABLE_15, "iwslt-full-budget"])
def test_rows_of_table_15_are_the_papers(name: str, shared: Path) -> None:
    table = reference(name, "Table 15")
    assert (table.section, table.runs) == ("5.4", 3)
    assert {(row.schedule, row.epochs, row.seed_lr) for row in table.rows} == {("knee", 50, 3e-4)}
    assert [
        (row.explore_epochs, row.metrics["test_bleu"], row.metrics["train_ppl"])
        for row in table.rows
    ] == list(papers_table(shared, 15))
