"""The studies that repeat the paper's tables: their designs, and the paper's own rows in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import stdev

import pytest

from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.overview import SUMMARIES
from knee_tune.config.strict_yaml import available
from knee_tune.config.study import ReferenceTable, StudySpec

TABLE_16 = [name for name in available("studies") if name.startswith("table16-")]
TABLE_15 = [name for name in available("studies") if name.startswith("table15-")]
COMPARED = [name for name in available("studies") if re.match(r"table(?!15|16)\d+-", name)]
"""Studies that train every row of a table."""

NUMBER = re.compile(r"\d[\d.]*(?:e-\d)?")
"""In a cell of the paper's tables, also 8e-5."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def spec_of(name: str) -> StudySpec:
    return resolve_asked(study=name)


def papers_table(shared: Path, number: int) -> Iterator[tuple[float, ...]]:
    """The rows of a table as they stand in the paper's text."""
    text = (shared / "paper" / "wide-minima-density-hypothesis.txt").read_text()
    table = text[text.index(f"\nTable {number}: ") :].split("|---", 1)[1]
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            return
        yield tuple(float(number) for number in NUMBER.findall(line))


def reference(name: str, table: str) -> ReferenceTable:
    (found,) = [each for each in spec_of(name).reference if each.table == table]
    return found


def test_there_is_a_study_for_every_table() -> None:
    assert set(TABLE_16) == {
        *("table16-digits", "table16-digits-clean", "table16-breast-cancer"),
        *("table16-cifar10", "table16-cifar10-fast", "table16-cifar10-tiny"),
        *("table16-gpt", "table16-gpt-small"),
    }
    assert set(COMPARED) == {
        *(f"table{number}-cifar10" for number in (1, 2, 3, 4, 9, 17, 18)),
        *(f"table{number}-imagenet" for number in (5, 8, 19, 20)),
        *(f"table{number}-iwslt" for number in (5, 7, 12, 14, 23, 24)),
        *(f"table{number}-wmt14" for number in (5, 7, 11, 21, 22)),
        *("table1-cifar10-tiny", "table14-iwslt-demo"),
        *("table13-squad", "table25-squad"),
        *("table10-bert", "table26-bert"),
    }
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


# Tables whose rows are trained


def compared(name: str) -> ReferenceTable:
    table = spec_of(name).compare
    assert table is not None
    return table


def stepped(explore: int) -> tuple[float, tuple[int, ...]]:
    """Seed LR, boundaries: ``explore`` of 200 epochs at 0.1, then half at 0.01, half at 0.001."""
    rest = (200 - explore) // 2
    return (0.1, (explore, explore + rest)) if explore else (0.01, (rest,))


def numbers_of(table: ReferenceTable, *names: str) -> list[tuple[float, ...]]:
    """Means and standard deviations of every row, in the order of the paper's columns."""
    return [
        tuple(
            number
            for name in names
            for number in (row.metrics.get(name), row.std.get(name))
            if number is not None
        )
        for row in table.rows
    ]


@pytest.mark.parametrize("name", COMPARED)
def test_a_table_study_trains_as_many_seeds_as_the_paper_at_its_budget(name: str) -> None:
    spec, table = spec_of(name), compared(name)
    if spec.scale == 1:
        assert spec.recipe["epochs"] == max(row.epochs for row in table.rows)
        assert spec.replicates == (table.runs or 3)  # section 5.3.6 does not say


@pytest.mark.parametrize(
    ("name", "number", "metrics"),
    [
        ("table1-cifar10", 1, ("test_accuracy", "train_loss")),
        ("table3-cifar10", 3, ("sharpness",)),
        ("table4-cifar10", 4, ("fisher",)),
    ],
)
def test_tables_1_3_and_4_vary_the_epochs_at_the_high_lr(
    name: str, number: int, metrics: tuple[str, ...], shared: Path
) -> None:
    table = compared(name)
    paper = list(papers_table(shared, number))
    explored = [int(row[0]) for row in paper]
    assert [(row.seed_lr, row.boundaries) for row in table.rows] == list(map(stepped, explored))
    assert numbers_of(table, *metrics) == [row[1:] for row in paper]


def test_table_2_varies_the_epochs_at_the_finer_scale(shared: Path) -> None:
    table, paper = compared("table2-cifar10"), list(papers_table(shared, 2))
    assert [row.boundaries for row in table.rows] == [(100, 100 + int(row[0])) for row in paper]
    assert numbers_of(table, "test_accuracy", "train_loss", "sharpness") == [
        row[1:] for row in paper
    ]
    assert [analysis.name for analysis in spec_of("table2-cifar10").analyses] == ["sharpness"]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in COMPARED
        if re.match(r"table(8|9|\d\d)-", name) and not name.endswith(("-demo", "-bert"))
    ],
)
def test_schedules_have_the_papers_numbers(name: str, shared: Path) -> None:
    number = int(re.findall(r"\d+", name)[0])
    metrics = {
        "cifar10": ("test_accuracy", "train_loss"),
        "imagenet": ("test_accuracy", "test_top5", "train_loss"),
        "iwslt": ("test_bleu", "train_ppl", "valid_ppl"),
        "wmt14": ("test_bleu", "train_ppl", "valid_ppl"),
        "squad": ("test_em", "test_f1", "train_loss"),
    }[name.partition("-")[2]]
    table, paper = compared(name), list(papers_table(shared, number))
    if number in (8, 9, 11, 12, 13, 14):  # the last column is the budget
        assert [row.epochs for row in table.rows] == [row[-1] for row in paper]
        paper = [row[:-1] for row in paper]
    assert numbers_of(table, *metrics) == paper


def test_table_14_is_cutoff_as_its_authors_train_it() -> None:
    spec, rows = spec_of("table14-iwslt"), compared("table14-iwslt").rows
    assert [(row.schedule, row.seed_lr) for row in rows] == [
        ("inverse_sqrt", 7e-4),
        ("knee", 7e-4),
    ] * 2
    assert [row.explore_epochs for row in rows] == [None, 50, None, 35]
    assert (spec.recipe["warmup_steps"], spec.recipe["clip_norm"]) == (6000, None)
    assert (spec.recipe["beam"], spec.recipe["len_penalty"]) == (5, 0.5)
    assert spec.recipe["cutoff"] == {
        "kind": "token",
        "share": 0.05,
        "weight": 1,
        "consistency": "reference",
        "consistency_weight": 5,
    }


def test_table_14_in_small_has_its_design_and_its_numbers() -> None:
    whole, small = (spec_of(name) for name in ("table14-iwslt", "table14-iwslt-demo"))
    rows, small_rows = compared("table14-iwslt").rows, compared("table14-iwslt-demo").rows
    assert [row.metrics for row in rows] == [row.metrics for row in small_rows]
    assert [row.epochs for row in rows] == [10 * row.epochs for row in small_rows]
    for setting in ("cutoff", "keep"):
        assert small.recipe[setting] == whole.recipe[setting]


def test_wmt14_is_trained_as_the_paper_trains_it() -> None:
    for number in (11, 21, 22):
        spec = spec_of(f"table{number}-wmt14")
        assert spec.recipe["tokens_per_step"] == 30_000
        assert (spec.recipe["seed_lr"], spec.recipe["clip_norm"]) == (3e-4, 25)
        assert (spec.recipe["model"]["dropout"], spec.recipe["optimizer"]["name"]) == (0.1, "radam")
        rows = [row for row in compared(spec.name).rows if row.schedule == "knee"]
        knees = {row.epochs: row.explore_epochs for row in rows}
        assert knees.items() <= {(70, 50), (30, 25)}


def test_squad_is_fine_tuned_as_the_paper_says() -> None:
    """Section 5.3.5: Adam, 2 epochs at 3e-5, explore for one; A.5: one-cycle up to 1e-5."""
    for name in ("table13-squad", "table25-squad"):
        spec, rows = spec_of(name), compared(name).rows
        assert (spec.recipe["optimizer"]["name"], spec.recipe["warmup_steps"]) == ("adam", 0)
        assert (spec.recipe["batch_size"], spec.recipe["max_length"]) == (12, 384)
        assert {row.schedule: row.explore_epochs for row in rows}["knee"] == 1
        assert {row.seed_lr for row in rows if row.schedule != "one_cycle"} == {3e-5}
    assert {row.seed_lr for row in rows if row.schedule == "one_cycle"} == {1e-5}


def test_bert_is_pre_trained_as_the_paper_says(shared: Path) -> None:
    """Section 5.3.3: two phases, 10 % warmup and 50 % explore in each, linear decay beside it."""
    spec, rows = spec_of("table10-bert"), compared("table10-bert").rows
    phases = [(each["share"], each["warmup"], each["length"]) for each in spec.recipe["phases"]]
    assert phases == [(0.9, 0.1, 128), (0.1, 0.1, 512)]
    assert (spec.recipe["optimizer"]["name"], spec.recipe["batch_size"]) == ("lamb", 16384)
    paper = [
        tuple(number for number in row if number != 2019)  # the year of the baseline
        for row in papers_table(shared, 10)
    ]
    ours = numbers_of(compared("table10-bert"), "squad_f1", "train_loss")
    assert [(*row, each.epochs) for row, each in zip(ours, rows, strict=True)] == paper
    for row in (*rows, *compared("table26-bert").rows):
        assert row.explore_epochs == (row.epochs // 2 if row.schedule == "knee" else None)


def test_table_26_has_the_mean_of_three_trials(shared: Path) -> None:
    text = (shared / "paper" / "wide-minima-density-hypothesis.txt").read_text()
    table = [line for line in text[: text.index("Table 26: ")].splitlines() if line[:1] == "|"]
    trials = [[float(number) for number in NUMBER.findall(line)] for line in table[-3:]]
    rows = compared("table26-bert").rows
    for row, (*three, mean, _) in zip(rows, trials, strict=True):
        assert row.metrics["squad_f1"] == mean
        assert row.std["squad_f1"] == pytest.approx(stdev(three), abs=0.005)


def test_the_tables_in_small_have_the_rows_of_tables_1_and_3() -> None:
    small = compared("table1-cifar10-tiny").rows
    for number, metric in ((1, "test_accuracy"), (1, "train_loss"), (3, "sharpness")):
        for row in compared(f"table{number}-cifar10").rows:
            (same,) = [each for each in small if each.label == row.label]
            assert (same.seed_lr, same.boundaries) == (row.seed_lr, row.boundaries)
            assert same.metrics[metric] == row.metrics[metric]


@pytest.mark.parametrize("name", ["table16-cifar10", "table16-cifar10-fast"])
def test_table_16_on_cifar10_has_the_papers_seed_lrs_and_its_optima_among_its_fractions(
    name: str,
) -> None:
    spec, rows = spec_of(name), reference(name, "Table 16").rows
    assert spec.seed_lrs == tuple(row.seed_lr for row in rows)
    tried = {round(150 * fraction, 2) for fraction in spec.explore_fractions}
    assert {row.explore_epochs for row in rows} <= tried


def test_table_16_in_small_has_what_its_crossover_test_needs() -> None:
    spec = spec_of("table16-cifar10-tiny")
    assert (len(spec.seed_lrs), len(spec.explore_fractions)) == (9, 4)
    assert min(spec.explore_fractions) <= 0.3
    assert sum(0.6 <= fraction <= 0.9 for fraction in spec.explore_fractions) >= 2
    assert spec.limit is None


@pytest.mark.parametrize("table", SUMMARIES)
def test_every_cell_of_a_summary_is_a_row_of_one_study(table: str) -> None:
    for line in SUMMARIES[table]:
        for cell in line.cells:
            (row,) = [row for row in compared(cell.study).rows if cell.is_of(row)]
            published = row.metrics.get(line.metric)
            if table != "table7" and published is not None:
                # The paper itself has one-cycle on CIFAR-10 once as 94.08, once as 94.09.
                assert cell.paper == pytest.approx(published, abs=0.011)


@pytest.mark.parametrize("number", [5, 6, 7])
def test_summaries_have_the_papers_numbers(number: int, shared: Path) -> None:
    text = (shared / "paper" / "wide-minima-density-hypothesis.txt").read_text()
    text = text[text.index(f"\nTable {number}: ") :]
    for line in SUMMARIES[f"table{number}"]:
        name = line.experiment.removesuffix("'14").lower()
        (row,) = [each for each in text.splitlines()[:20] if each.lower().startswith(f"| {name}")][
            :1
        ]
        _, budget, *numbers = [cell.strip() for cell in row.strip("|").split("|")]
        assert budget in line.budget
        # Table 6 ends with what it saves, in hours of a GPU.
        given = [each for each in numbers if each != "-"]
        assert [float(each) for each in given[: len(line.cells)]] == [
            cell.paper for cell in line.cells
        ]
