"""Studies at a scale of their budget, and what a study that compares may ask for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from knee_tune.commands.opened import resolve_asked
from knee_tune.config.recipe import Recipe
from knee_tune.config.study import SEARCHING, ResolvedStudy
from knee_tune.errors import UserError

SEARCH = """\
name: my-search
task: digits
recipe: {epochs: 25, warmup_steps: 101}
"""

TABLE = """\
name: my-table
task: digits
replicates: 2
compare:
  table: Table 9
  section: 5.3.2
  rows:
    - {schedule: step, epochs: 200, seed_lr: 0.1, boundaries: [100, 150], metrics: {}}
    - {schedule: knee, epochs: 150, seed_lr: 0.1, explore_epochs: 100, metrics: {}}
    - {schedule: cosine, label: half a cosine, epochs: 50, seed_lr: 0.2, metrics: {}}
"""


class Studies:
    """Study files of a working folder."""

    def write(self, text: str, name: str = "mine") -> None:
        Path("studies").mkdir(exist_ok=True)
        Path(f"studies/{name}.yaml").write_text(text)

    def resolve(self, study: str = "mine", **options: Any) -> ResolvedStudy[Recipe]:
        return resolve_asked(study=study, **options)

    def mistake(self, text: str, **options: Any) -> str:
        self.write(text)
        with pytest.raises(UserError) as error:
            self.resolve(**options)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studies:
    monkeypatch.chdir(tmp_path)
    return Studies()


def test_a_scaled_search_has_fewer_epochs_and_warmup_steps_and_another_name(
    studies: Studies,
) -> None:
    studies.write(SEARCH)
    spec = studies.resolve(scale=0.2)
    assert (spec.typed_recipe.epochs, spec.typed_recipe.warmup_steps) == (5, 20)
    assert (spec.recipe["epochs"], spec.recipe["warmup_steps"]) == (5, 20)
    assert (spec.name, spec.scale) == ("my-search-scale0.2", 0.2)
    assert studies.resolve().name == "my-search"


def test_an_epoch_is_the_least_there_is(studies: Studies) -> None:
    studies.write(SEARCH)
    assert studies.resolve(scale=0.001).typed_recipe.epochs == 1


def test_a_task_without_a_study_file_is_named_by_its_whole_budget_and_the_scale() -> None:
    spec = resolve_asked(task="digits", scale=0.2)
    usual = resolve_asked(task="digits")
    assert spec.typed_recipe.epochs == round(usual.typed_recipe.epochs * 0.2)
    assert spec.name == f"{usual.name}-scale0.2"


def test_a_name_asked_for_stays(studies: Studies) -> None:
    studies.write(SEARCH)
    assert studies.resolve(scale=0.2, name="other").name == "other"


def test_the_scale_of_a_study_file_is_part_of_its_own_name(studies: Studies) -> None:
    studies.write(f"{SEARCH}scale: 0.4\n")
    spec = studies.resolve()
    assert (spec.name, spec.typed_recipe.epochs) == ("my-search", 10)
    assert studies.resolve(scale=0.4).name == "my-search"
    spec = studies.resolve(scale=1.0)
    assert (spec.name, spec.typed_recipe.epochs) == ("my-search-scale1", 25)


def test_a_table_stays_the_published_one_and_its_longest_row_is_the_budget(
    studies: Studies,
) -> None:
    studies.write(TABLE)
    spec = studies.resolve(scale=0.1)
    assert spec.compare is not None
    assert [row.epochs for row in spec.compare.rows] == [200, 150, 50]
    assert (spec.name, spec.scale, spec.typed_recipe.epochs) == ("my-table-scale0.1", 0.1, 20)
    assert (spec.acting_pruner, spec.tries_default, spec.replicate_seeds) == ("none", False, (1, 2))


def test_what_a_comparison_was_resolved_to_is_itself_a_study_file(studies: Studies) -> None:
    studies.write(TABLE)
    spec = studies.resolve(scale=0.1)
    settings = spec.model_dump(mode="json", exclude_none=True, exclude=set(SEARCHING))
    studies.write(yaml.safe_dump(settings), name="again")
    again = studies.resolve("again")
    assert again == spec


def test_rows_have_words_for_people(studies: Studies) -> None:
    studies.write(TABLE)
    table = studies.resolve().compare
    assert table is not None
    assert [row.shown for row in table.rows] == [
        "step 0.1, boundaries 100, 150 of 200 epochs",
        "knee 0.1, explore 100 of 150 epochs",
        "half a cosine",
    ]
    assert table.rows[2].setting == "cosine 0.2, 50 epochs"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[100, 150]", "[150, 100]", "boundaries must ascend and lie below epochs=200"),
        ("[100, 150]", "[100, 200]", "boundaries must ascend and lie below epochs=200"),
        ("explore_epochs: 100", "explore_epochs: 151", "must not exceed epochs=150"),
        ("schedule: knee", "schedule: linear", "explore_epochs: only knee has them"),
        ("schedule: step", "schedule: constant", "boundaries: only step has them"),
        (
            "explore_epochs: 100, ",
            "",
            "compare: row 2 (knee 0.1, 150 epochs) has no explore_epochs: it cannot be trained",
        ),
        ("boundaries: [100, 150], ", "", "row 1 (step 0.1, 200 epochs) has no boundaries"),
        ("seed_lr: 0.2, ", "", "compare: row 3 (half a cosine) has no seed_lr"),
        ("replicates: 2", "trials: 2", "searches nothing; leave it out"),
        ("replicates: 2", "confirm: '1:2'", "searches nothing; leave it out"),
        ("replicates: 2", "analyses: [{name: fisher}, {name: fisher}]", "one is named twice"),
    ],
)
def test_mistakes_in_a_table(studies: Studies, before: str, after: str, message: str) -> None:
    assert before in TABLE
    assert message in studies.mistake(TABLE.replace(before, after))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 3}, "`trials` 3: this study trains the rows of its table and searches nothing"),
        ({"pruner": "median"}, "`pruner` median: this study trains the rows of its table"),
        ({"settings": ("recipe.epochs=3",)}, "which have their own budgets (`scale`)"),
        ({"scale": 0.0}, "`scale` 0.0: must be greater than 0"),
    ],
)
def test_mistakes_in_options_beside_a_table(
    studies: Studies, options: dict[str, Any], message: str
) -> None:
    assert message in studies.mistake(TABLE, **options)


def test_analyses_need_runs_to_be_made_of(studies: Studies) -> None:
    said = studies.mistake(f"{SEARCH}analyses: [{{name: sharpness}}]\n")
    assert "studies/mine.yaml: analyses: they are made of the runs of compare" in said
