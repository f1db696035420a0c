"""Where search spaces and studies are looked up, and that those we ship are right."""

from pathlib import Path

import pytest

from knee_tune.config import strict_yaml
from knee_tune.config.recipe import Recipe
from knee_tune.config.resolve import read_space, resolve_study
from knee_tune.config.strict_yaml import available, find, read_files
from knee_tune.errors import UserError
from knee_tune.tasks.registry import TASKS, task_entry


def recipe_type(task: str) -> type[Recipe]:
    return task_entry(task).recipe_type()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("elsewhere")
def test_every_task_has_a_search_space() -> None:
    assert available("search_spaces").keys() == TASKS.keys()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.usefixtures("elsewhere")
def test_shipped_search_spaces_are_valid(task: str) -> None:
    space_file, _ = read_files(task=task, study=None)
    space = read_space(space_file, recipe_type)
    assert space.task == task
    for preset in space.presets:
        study = resolve_study(space_file=space_file, recipe_type=recipe_type, preset=preset)
        assert study.typed_recipe.seed_lr in study.seed_lrs
        assert 0.5 in study.explore_fractions
        assert study.trials <= study.size
        assert study.subject == (study.typed_recipe.subject or task)


@pytest.mark.parametrize("name", strict_yaml.available("studies"))
@pytest.mark.usefixtures("elsewhere")
def test_shipped_studies_are_valid(name: str) -> None:
    space_file, study_file = read_files(task=None, study=name)
    study = resolve_study(space_file=space_file, study_file=study_file, recipe_type=recipe_type)
    assert study.name == name
    assert study.acting_pruner == "none"


def test_a_study_of_no_task_is_named_with_its_file(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("task: digitz")
    with pytest.raises(UserError, match=r"^mine\.yaml: task digitz: .*did you mean 'digits'"):
        read_files(task=None, study="mine.yaml")


@pytest.mark.usefixtures("elsewhere")
def test_the_papers_rows_say_what_the_paper_says() -> None:
    space_file, study_file = read_files(task="iwslt", study="iwslt-full-budget")
    study = resolve_study(space_file=space_file, study_file=study_file, recipe_type=recipe_type)
    best = study.reference[0].rows[0]
    assert (best.schedule, best.explore_epochs, best.metrics["test_bleu"]) == ("knee", 40, 35.53)
    assert (study.typed_recipe.epochs, study.typed_recipe.seed_lr) == (best.epochs, best.seed_lr)


def test_the_working_folder_wins_over_the_package(elsewhere: Path) -> None:
    packaged = find("studies", "digits-default")
    own = elsewhere / "studies" / "digits-default.yaml"
    own.parent.mkdir()
    own.write_text("task: digits\nname: mine\n")
    assert packaged.is_absolute()
    assert find("studies", "digits-default").resolve() == own
    _, study_file = read_files(task=None, study="digits-default")
    assert study_file is not None
    assert study_file.label == "studies/digits-default.yaml"
    assert study_file.data["name"] == "mine"


def test_a_path_is_taken_as_it_is(elsewhere: Path) -> None:
    path = elsewhere / "mine.yml"
    path.write_text("task: digits\n")
    assert read_files(task=None, study=str(path))[1] is not None
    with pytest.raises(UserError, match=r"^study other\.yaml: no such file$"):
        read_files(task=None, study="other.yaml")


def test_an_installed_package_brings_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a wheel the folders lie inside the package; in a source checkout beside it."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "packaged.yaml").touch()
    monkeypatch.setattr(strict_yaml, "_PACKAGE", tmp_path)
    assert "packaged" in available("studies")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("task", "study", "message"),
    [
        ("digit", None, "task digit: not known; did you mean 'digits'? known: bert, "),
        (None, "iwslt-ful-budget", "study iwslt-ful-budget: not known; did you mean 'iwslt-full"),
        ("iwslt", "digits-default", "digits-default.yaml is a study of task digits"),
        (None, None, "give `task` or `study`"),
    ],
)
def test_what_is_not_found(task: str | None, study: str | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_files(task=task, study=study)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_file_names_its_task(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match=r"^mine\.yaml: task: missing"):
        read_files(task="digits", study="mine.yaml")
