"""From files and options to one study, and what is said about mistakes in them."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from knee_tune.config.recipe import Metric, Optimizer, Recipe, Spec
from knee_tune.config.resolve import layer_of, overrides_of, resolve_study
from knee_tune.config.strict_yaml import Document, read_document
from knee_tune.config.study import Confirm, ResolvedStudy
from knee_tune.errors import UserError

SPACE = """\
task: toy
description: a toy
default_preset: full
space:
  seed_lr: {low: 0.01, high: 1.0, per_decade: 1}
  explore_fraction: {low: 0.0, high: 0.8, step: 0.4}
presets:
  full:
    description: everything
    trials: 9
  tiny:
    description: little
    recipe:
      epochs: 2
      model: {width: 4}
    space:
      explore_fraction: {values: [0.25, 0.75]}
"""

STUDY = """\
name: my-study
task: toy
preset: tiny
recipe:
  model: {depth: 5}
space:
  seed_lr: {values: [0.2, 0.3]}
trials: 3
pruner: none
"""


class Size(Spec):
    width: int = 8
    depth: int = 1


class ToyRecipe(Recipe):
    metrics: ClassVar[tuple[Metric, ...]] = (Metric(name="loss", direction="minimize"),)
    watched: ClassVar[str] = "loss"

    epochs: int = Field(default=10, gt=0)
    seed_lr: float = 0.1
    optimizer: Optimizer = Optimizer(name="sgd", momentum=0.8)
    model: Size = Size()
    objective: str = "loss"


class Files:
    """Writes the two files and resolves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.space = SPACE
        self.study: str | None = None

    def document(self, label: str, text: str) -> Document:
        path = self.folder / Path(label).name
        path.write_text(text, encoding="utf-8")
        return read_document(path, label)

    def resolve(self, **options: Any) -> ResolvedStudy[ToyRecipe]:
        study = resolve_study(
            space_file=self.document("search_spaces/toy.yaml", self.space),
            study_file=self.document("studies/my.yaml", self.study) if self.study else None,
            recipe_type={"toy": ToyRecipe}.__getitem__,
            **options,
        )
        assert isinstance(study.typed_recipe, ToyRecipe)
        return study

    def mistake(self, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            self.resolve(**options)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_the_default_preset(files: Files) -> None:
    study = files.resolve()
    assert study.typed_recipe == ToyRecipe()
    assert study.name == "knee-toy-10ep"
    assert (study.preset, study.trials, study.sampler) == ("full", 9, "gp")
    assert (study.goal, study.acting_pruner, study.replicates) == ("best", "none", 1)
    assert study.seed_lrs == (0.01, 0.1, 1.0)
    assert study.explore_fractions == (0.0, 0.4, 0.5, 0.8)
    assert ToyRecipe.model_validate(study.recipe) == study.typed_recipe


def test_a_preset_is_laid_over_the_recipes_defaults(files: Files) -> None:
    study = files.resolve(preset="tiny")
    assert study.name == "knee-toy-tiny"
    assert (study.typed_recipe.epochs, study.typed_recipe.model) == (2, Size(width=4, depth=1))
    assert study.explore_fractions == (0.25, 0.5, 0.75)
    assert study.seed_lrs == (0.01, 0.1, 1.0)


def test_a_study_file_is_laid_over_its_preset(files: Files) -> None:
    files.study = STUDY
    study = files.resolve()
    assert (study.name, study.preset, study.trials, study.pruner) == ("my-study", "tiny", 3, "none")
    assert study.typed_recipe.model == Size(width=4, depth=5)
    assert study.seed_lrs == (0.1, 0.2, 0.3)


def test_set_is_laid_over_the_study_file_and_flags_over_everything(files: Files) -> None:
    files.study = STUDY
    study = files.resolve(
        settings=["recipe.model.depth=6", "trials=4", "sampler=tpe", "seed=7"],
        trials=5,
        name="other",
        nproc=2,
    )
    assert study.typed_recipe.model == Size(width=4, depth=6)
    assert (study.name, study.trials, study.sampler) == ("other", 5, "tpe")
    assert (study.seed, study.nproc) == (7, 2)


def test_flags_of_a_search_reach_the_study(files: Files) -> None:
    study = files.resolve(goal="ridge", replicates=3, confirm="2:5", pruner="none")
    assert (study.goal, study.replicate_seeds) == ("ridge", (1, 2, 3))
    assert study.confirm == Confirm(candidates=2, seeds=5)


def test_a_grid_is_exactly_the_search_spaces(files: Files) -> None:
    files.space = files.space.replace("low: 0.01", "low: 0.2").replace("high: 1.0", "high: 2.0")
    study = files.resolve(sampler="grid")
    assert (study.seed_lrs, study.explore_fractions) == ((1.0,), (0.0, 0.4, 0.8))
    study = files.resolve(sampler="gp")
    assert (study.seed_lrs, study.explore_fractions) == ((0.1, 1.0), (0.0, 0.4, 0.5, 0.8))
    assert study.typed_recipe.seed_lr == 0.1


def test_a_grid_has_all_its_points_unless_trials_are_asked_for(files: Files) -> None:
    assert files.resolve(preset="full").trials == 9
    whole = files.resolve(preset="full", settings=["space.seed_lr.low=0.1"], sampler="grid")
    assert (whole.trials, whole.size, whole.limit) == (6, 6, None)
    for options in ({"trials": 4}, {"settings": ["trials=4"]}):
        part = files.resolve(sampler="grid", **options)
        assert part.trials == part.limit == 4
    files.study = STUDY  # which says 3
    assert files.resolve(sampler="grid").limit == 3


def test_a_ridge_is_not_pruned_unless_one_insists_and_then_refused(files: Files) -> None:
    assert files.resolve(goal="ridge").acting_pruner == "none"
    says = "pruning would bias the ridge: use none with goal ridge"
    for pruner in ("knee", "median", "percentile", "hyperband"):
        assert files.mistake(goal="ridge", pruner=pruner) == f"`pruner` {pruner}: {says}"
    files.study = STUDY.replace("pruner: none", "pruner: median\ngoal: ridge")
    assert files.mistake() == f'studies/my.yaml: pruner: {says} (value "median", line 9)'


def test_a_preset_asked_for_replaces_the_study_files(files: Files) -> None:
    files.study = STUDY
    study = files.resolve(preset="full")
    assert study.preset == "full"
    assert study.typed_recipe.model == Size(width=8, depth=5)


def test_set_reaches_into_the_recipes_own_defaults(files: Files) -> None:
    study = files.resolve(settings=["recipe.optimizer.weight_decay=1e-3"])
    assert study.typed_recipe.optimizer == Optimizer(name="sgd", momentum=0.8, weight_decay=0.001)


def test_the_forms_of_a_grid_are_never_mixed(files: Files) -> None:
    study = files.resolve(settings=["space.seed_lr.values=[0.05, 0.1]"])
    assert study.seed_lrs == (0.05, 0.1)
    files.study = STUDY
    study = files.resolve(settings=["space.seed_lr.low=0.1", "space.seed_lr.high=100"])
    assert study.seed_lrs[-1] == 100
    study = files.resolve(preset="full", settings=["space.explore_fraction.high=0.4"])
    assert study.explore_fractions == (0.0, 0.4, 0.5)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"settings": ["recipe.epochs=4"]}, "knee-toy-4ep"),
        ({"preset": "tiny", "settings": ["recipe.epochs=4"]}, "knee-toy-tiny-4ep"),
        ({"preset": "tiny", "settings": ["recipe.model.depth=2"]}, "knee-toy-tiny"),
        ({"name": "mine"}, "mine"),
    ],
)
def test_a_study_is_named_by_its_budget(files: Files, options: Any, name: str) -> None:
    assert files.resolve(**options).name == name


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "high: 1.0",
            "hihg: 1.0",
            "search_spaces/toy.yaml: space.seed_lr.hihg: unknown key (value 1.0, line 5); "
            "did you mean 'high'? allowed: high, low, per_decade, values",
        ),
        (
            "epochs: 2",
            "epoch: 2",
            "search_spaces/toy.yaml: presets.tiny.recipe.epoch: unknown key (value 2, line 14); "
            "did you mean 'epochs'? allowed: accumulate, amp, clip_norm, ",
        ),
        (
            "width: 4",
            "width: wide",
            "search_spaces/toy.yaml: presets.tiny.recipe.model.width: must be a valid integer "
            '(value "wide", line 15)',
        ),
        (
            "epochs: 2",
            "epochs: '2'",
            "search_spaces/toy.yaml: presets.tiny.recipe.epochs: must be a valid integer "
            '(value "2", line 14)',
        ),
        (
            "values: [0.25, 0.75]",
            "values: [0.25, 1.75]",
            "search_spaces/toy.yaml: presets.tiny.space.explore_fraction.values.1: "
            "must be less than 1 (value 1.75, line 17)",
        ),
        (
            "low: 0.01",
            "low: 2",
            "search_spaces/toy.yaml: space.seed_lr: low must be less than high, "
            "got low=2, high=1 (line 5)",
        ),
        (
            "default_preset: full",
            "default_preset: ful",
            "search_spaces/toy.yaml: default_preset: task toy has no such preset "
            "(value \"ful\", line 3); did you mean 'full'? allowed: full, tiny",
        ),
        (
            "description: a toy\n",
            "",
            "search_spaces/toy.yaml: description: missing, and it has no default",
        ),
        ("recipe:\n      epochs: 2\n      model: {width: 4}", "recipe: 2", "must be a mapping"),
        ("presets:\n", "presets: 3\nthings:\n", "search_spaces/toy.yaml: things: unknown key"),
    ],
)
def test_mistakes_in_a_search_space(files: Files, before: str, after: str, message: str) -> None:
    assert before in files.space
    files.space = files.space.replace(before, after)
    assert message in files.mistake()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "pruner: none",
            "pruner: medain",
            "studies/my.yaml: pruner: not one of the allowed values "
            "(value \"medain\", line 9); did you mean 'median'? "
            "allowed: knee, median, percentile, hyperband, none",
        ),
        (
            "preset: tiny",
            "preset: tinny",
            'studies/my.yaml: preset: task toy has no such preset (value "tinny", line 3); '
            "did you mean 'tiny'? allowed: full, tiny",
        ),
        ("preset: tiny", "preset: [tiny]", "studies/my.yaml: preset: task toy has no such preset"),
        (
            "depth: 5",
            "dept: 5",
            "studies/my.yaml: recipe.model.dept: unknown key (value 5, line 5); "
            "did you mean 'depth'? allowed: depth, width",
        ),
        ("name: my-study", "name: my/study", "studies/my.yaml: name: must match pattern"),
        ("trials: 3", "trail: 3", "trail: unknown key (value 3, line 8); did you mean 'trials'?"),
        ("task: toy", "task: digits", "studies/my.yaml: task: the search space is of task toy"),
        (
            "space:\n  seed_lr: {values: [0.2, 0.3]}",
            "space: 3",
            "studies/my.yaml: space: must be a mapping of keys to values (value 3, line 6)",
        ),
    ],
)
def test_mistakes_in_a_study_file(files: Files, before: str, after: str, message: str) -> None:
    assert before in STUDY
    files.study = STUDY.replace(before, after)
    assert message in files.mistake()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"settings": ["recipe.epoch=4"]},
            "`settings` recipe.epoch=4: unknown key; did you mean 'epochs'? allowed: accumulate, ",
        ),
        (
            {"settings": ["recipe.epochs=0"]},
            "`settings` recipe.epochs=0: must be greater than 0",
        ),
        (
            {"settings": ["recipe.epochs"]},
            "`settings` recipe.epochs: expected FIELD=VALUE",
        ),
        ({"settings": ["recipe..epochs=1"]}, "`settings` recipe..epochs=1: expected FIELD=VALUE"),
        (
            {"settings": ["recipe.epochs=[1"]},
            "`settings` recipe.epochs=[1: the value is no YAML: ",
        ),
        ({"settings": ["recipe=1"]}, "`settings` recipe=1: must be a mapping of keys to values"),
        (
            {"settings": ["recipe.epochs.x=1"]},
            "`settings` recipe.epochs.x=1: recipe.epochs: must be a valid integer",
        ),
        (
            {"settings": ["trials=1", "trials.x=1"]},
            "`settings` trials.x=1: trials was already set to a single value",
        ),
        (
            {"settings": ["recipe.epochs=3", "space.seed_lr.low=2", "trials=1"]},
            "`settings` space.seed_lr.low=2: space.seed_lr: low must be less than high",
        ),
        (
            {"settings": ["space.seed_lr.low=4", "space.seed_lr.high=5"]},
            "`settings` space.seed_lr.high=5: space.seed_lr: no point of the grid lies between",
        ),
        ({"settings": ["task=digits"]}, "`settings` task=digits: the search space is of task toy"),
        ({"sampler": "tp"}, "`sampler` tp: not one of the allowed values; did you mean 'tpe'?"),
        ({"goal": "rigde"}, "`goal` rigde: not one of the allowed values; did you mean 'ridge'?"),
        ({"replicates": 0}, "`replicates` 0: must be greater than 0"),
        ({"confirm": "3"}, "`confirm` 3: must be CANDIDATES:SEEDS, as in 3:5"),
        ({"trials": 0}, "`trials` 0: must be greater than 0"),
        ({"total_runs": 5}, "`total_runs` 5: must be greater than or equal to 6"),
        (
            {"total_runs": 8, "total_steps": 900},
            "`total_steps` 900: total_runs says the same in whole runs: leave one of them out",
        ),
        (
            {"total_runs": 8, "sampler": "grid"},
            "`total_runs` 8: a grid trains every point and races none: leave sampler=grid out",
        ),
        (
            {"total_steps": 800, "confirm": "3:5"},
            "`total_steps` 800: the race confirms the winner: leave confirm out",
        ),
        (
            {"total_runs": 8, "replicates": 3},
            "`total_runs` 8: a race decides who gets more random seeds: leave replicates out",
        ),
        ({"preset": "tin"}, "`preset` tin: task toy has no such preset; did you mean 'tiny'?"),
        (
            {"settings": ["recipe.objective=lost"]},
            "`settings` recipe.objective=lost: recipe: objective must be one of loss",
        ),
    ],
)
def test_mistakes_in_options(files: Files, options: dict[str, Any], message: str) -> None:
    assert files.mistake(**options).startswith(message)


def test_a_misspelled_key_comes_first_and_the_rest_is_counted(files: Files) -> None:
    options = ["trials=0", "recipe.epochs=0", "recipe.epoch=4"]
    message = files.mistake(settings=options)
    assert message.startswith("`settings` recipe.epoch=4: unknown key")
    assert message.endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("option", "set_to"),
    [
        ({"seed_lr": "1e-4:1e-2"}, {"space": {"seed_lr": {"low": 1e-4, "high": 1e-2}}}),
        ({"seed_lr": "0.1:1:4"}, {"space": {"seed_lr": {"low": 0.1, "high": 1, "per_decade": 4}}}),
        ({"seed_lr": "0.1,0.2"}, {"space": {"seed_lr": {"values": [0.1, 0.2]}}}),
        (
            {"explore": "0.1:0.9"},
            {"space": {"explore_fraction": {"low": 0.1, "high": 0.9, "step": 0.1}}},
        ),
        ({"steps": 9}, {"recipe": {"steps": 9}}),
        ({"maximize": "score"}, {"recipe": {"objective": "score", "direction": "maximize"}}),
    ],
)
def test_an_option_may_set_what_lies_deeper(option: dict[str, Any], set_to: dict[str, Any]) -> None:
    assert layer_of(overrides_of((), option)) == set_to


@pytest.mark.parametrize("text", ["low:high", "1:2:3:4", "", "0.1,"])
def test_a_span_is_numbers(text: str) -> None:
    with pytest.raises(UserError, match="expected LOW:HIGH"):
        overrides_of((), {"explore": text})
