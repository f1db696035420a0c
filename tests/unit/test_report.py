"""The report of a study: what it says first, what it draws, what it leaves out, what it escapes."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects as go
import pytest

from knee_tune.commands.report import setting_to_use
from knee_tune.config.recipe import ExploreFractionSpace, SearchSpace, SeedLRSpace
from knee_tune.config.study import ReferenceRow, ReferenceTable, StudySpec
from knee_tune.errors import UserError
from knee_tune.records.findings import (
    Candidate,
    Confirmation,
    Crossover,
    Importances,
    Optimum,
    Recommendation,
    Ridge,
    Surface,
)
from knee_tune.records.study import BaselineRecord, StudyRecord, TrialRecord
from knee_tune.records.values import Estimate, Evaluation, RunRecord, StepCount
from knee_tune.report.answer import winner_knee
from knee_tune.report.document import ReportContext, Table, as_html, as_markdown, script_json
from knee_tune.report.report import StudyReport, build_report, study_figures
from knee_tune.schedules import Knee

LRS = (1.5e-4, 3e-4, 6e-4)
FRACTIONS = (0.0, 0.5, 0.9)
EVIL = "</script><img src=x onerror=alert(1)>|`*_"

PAPER = ReferenceTable(
    table="Table 16",
    section="5.5",
    page=27,
    rows=tuple(
        ReferenceRow(
            schedule="knee",
            epochs=150,
            seed_lr=lr,
            explore_epochs=explore,
            metrics={"test_accuracy": 95.0},
        )
        for lr, explore in ((1e-4, 120), (4e-4, 60))
    ),
)


def spec(**changes: Any) -> StudySpec:
    settings: dict[str, Any] = {
        "name": "ridge-of-a-toy",
        "task": "toy",
        "preset": "full",
        "recipe": {"seed_lr": 3e-4, "epochs": 10, "warmup_steps": 5},
        "space": SearchSpace(
            seed_lr=SeedLRSpace(values=LRS), explore_fraction=ExploreFractionSpace(values=FRACTIONS)
        ),
        "replicates": 3,
    }
    return StudySpec.model_validate(settings | changes)


def value(lr: float, fraction: float) -> float:
    """Highest where the explore fraction is 0.9 at the smallest seed LR, 0 at the largest."""
    return 90.0 - 5 * abs(fraction - 0.45 * (2 - LRS.index(lr)))


def trial(number: int, lr: float, fraction: float, **facts: Any) -> TrialRecord:
    """A complete trial of 3 x 100 steps, evaluated every 50."""
    usual: dict[str, Any] = {
        "state": "complete",
        "value": value(lr, fraction),
        "metrics": {"valid_accuracy": value(lr, fraction), "valid_loss": 1.0},
        "curve": tuple(
            Evaluation(step=step, metrics={"valid_accuracy": 0.8 * step}) for step in (50, 100)
        ),
        "steps": StepCount(trained=300),
        "budget": 300,
        "seed": 1,
    }
    return TrialRecord(
        number=number, key=f"t{number}", seed_lr=lr, explore_fraction=fraction, **usual | facts
    )


def record(**facts: Any) -> StudyRecord:
    points = [(lr, fraction) for lr in LRS for fraction in FRACTIONS]
    usual: dict[str, Any] = {
        "name": "ridge-of-a-toy",
        "task": "toy",
        "metric": "valid_accuracy",
        "direction": "maximize",
        "trials": tuple(trial(n, *point) for n, point in enumerate(points)),
        "spec": spec(reference=(PAPER,)),
    }
    return StudyRecord(**usual | facts)


def ridge(**facts: Any) -> Ridge:
    """What :func:`record` comes to; the point (6e-4, 0.9) has no mean."""
    best = (0.9, 0.5, 0.0)
    means = tuple(
        tuple(None if (lr, f) == (6e-4, 0.9) else value(lr, f) for f in FRACTIONS) for lr in LRS
    )
    usual: dict[str, Any] = {
        "surface": Surface(
            metric="valid_accuracy",
            direction="maximize",
            seed_lrs=LRS,
            explore_fractions=FRACTIONS,
            means=means,
            errors=tuple(tuple(None if m is None else 0.25 for m in row) for row in means),
            seeds=3,
        ),
        "optimal": tuple(
            Optimum(
                seed_lr=lr,
                raw=Estimate(value=f, low=max(0, f - 0.2), high=f),
                gp=Estimate(value=f),
                cubic=None,
                metric=Estimate(value=value(lr, f)),
            )
            for lr, f in zip(LRS, best, strict=True)
        ),
        "spearman": Estimate(value=-0.96, low=-0.99, high=-0.8),
        "crossover": Crossover(
            p=0.0004,
            lowest=(1e-4,),
            highest=(1e-3,),
            low_lrs=Estimate(value=1.5, low=1, high=2),
            high_lrs=Estimate(value=-2, low=-3, high=-1),
        ),
        "verdict": "inverse relation",
        "recommended": Recommendation(
            seed_lr=LRS[0],
            explore_fraction=0.9,
            metric="valid_accuracy",
            expected=Estimate(value=89.7, low=89, high=90.4),
            default=Estimate(value=89.7, low=89, high=90.4),
            difference=Estimate(value=0.5, low=-0.2, high=1.2),
        ),
    }
    return Ridge(**usual | facts)


def confirmation(*, confirmed: bool) -> Confirmation:
    def candidate(lr: float, fraction: float, mean: float, *, default: bool) -> Candidate:
        around = Estimate(value=mean, low=mean - 1, high=mean + 1, level=0.95)
        return Candidate(
            seed_lr=lr,
            explore_fraction=fraction,
            trial=None,
            default=default,
            runs=tuple(RunRecord(seed=seed, value=mean) for seed in (11, 12)),
            mean=around,
            difference=None if default else Estimate(value=3, low=2, high=4, level=0.95),
        )

    return Confirmation(
        metric="valid_accuracy",
        direction="maximize",
        candidates=(
            candidate(6e-4, 0.0, 92.0, default=False),
            candidate(1.5e-4, 0.9, 88.5, default=False),
            candidate(3e-4, 0.5, 89.0, default=True),
        ),
        comparisons=2,
        winner=0,
        confirmed=confirmed,
        words="confirmed: better" if confirmed else "not confirmed: includes zero",
    )


IMPORTANCES = Importances(
    evaluator="fANOVA",
    measures="a part",
    values={"seed_lr": 0.7, "explore_fraction": 0.3},
    trials=9,
)


def report(of: StudyRecord | None = None, on: Ridge | None = None, **context: Any) -> StudyReport:
    built = build_report(of or record(), on, context=ReportContext(written=0.0, **context))
    assert isinstance(built, StudyReport)
    return built


def figures(of: StudyRecord | None = None, on: Ridge | None = None) -> dict[str, go.Figure]:
    """As plotly understands them: a name that it does not know raises."""
    made = study_figures(of or record(), on, importances=IMPORTANCES)
    return {name: go.Figure(figure) for name, figure in made.items()}


# Figures


def test_figures_that_make_sense_are_drawn() -> None:
    assert set(figures(on=ridge())) == {
        *("surface", "ridge", "crossover", "slices", "metrics", "curves", "steps", "importance")
    }
    assert set(figures()) == {"metrics", "curves", "steps", "importance"}


def test_nothing_is_drawn_of_a_study_without_trials() -> None:
    assert study_figures(record(trials=()), None) == {}


def test_heat_map_axes_are_categories() -> None:
    """As numbers, labels such as 0.00015 would be drawn on a distorted line."""
    surface = figures(on=ridge())["surface"]
    assert (surface.layout.xaxis.type, surface.layout.yaxis.type) == ("category", "category")
    assert list(surface.data[0].y) == ["0.00015", "0.0003", "0.0006"]
    assert list(surface.data[0].x) == ["0%", "50%", "90%"]


def test_heat_map_cells_have_standard_errors_and_holes_are_empty() -> None:
    cells = figures(on=ridge())["surface"].data[0].text
    assert cells[1][1] == "<b>89.75</b><br>±0.25"  # the best of its row
    assert cells[1][0] == "87.75<br>±0.25"
    assert cells[2][2] == ""


def test_the_recommended_cell_is_framed() -> None:
    (frame,) = figures(on=ridge())["surface"].layout.shapes
    assert frame.x0 < 2 < frame.x1  # of column 2, 90 %
    assert frame.y0 < 0 < frame.y1  # and of row 0, 1.5e-4
    confirmed = record(confirmation=confirmation(confirmed=True))
    (frame,) = figures(confirmed, ridge())["surface"].layout.shapes
    assert frame.x0 < 0 < frame.x1
    assert frame.y0 < 2 < frame.y1


def test_one_diverged_point_does_not_take_all_colours() -> None:
    means = ((0.1, 90.0, 91.0), (90.5, 91.5, 92.0), (91.2, 90.2, 91.8))
    surface = ridge().surface.model_copy(update={"means": means})
    drawn = figures(on=ridge(surface=surface))["surface"].data[0]
    assert (drawn.zmin, drawn.zmax) == (90.0, 92.0)
    assert drawn.text[0][0].startswith("0.1000")


def test_what_is_far_out_is_drawn_at_the_edge_and_told_and_in_the_table() -> None:
    means = ((20.0, 90.0, 91.0), (90.5, 91.5, 92.0), (91.2, 90.2, 91.8))
    surface = ridge().surface.model_copy(update={"means": means})
    drawn = figures(on=ridge(surface=surface))["slices"]
    worst = drawn.data[0]
    assert worst.customdata[0] == 20.0
    assert 80 < drawn.layout.yaxis.range[0] < worst.y[0] < 90
    assert worst.marker.symbol == ("triangle-down", "circle", "circle")
    section = next(s for s in report(on=ridge(surface=surface)).sections if s.key == "surface")
    assert section.words[1].startswith("1 far-out value (20.00) is drawn")
    assert section.tables[0].rows[0][1] == "20.00 ± 0.25"


def test_the_ridge_is_on_a_log_axis_beside_the_papers_points() -> None:
    drawn = figures(on=ridge())["ridge"]
    assert drawn.layout.xaxis.type == "log"
    names = [line.name for line in drawn.data]
    assert names == ["best fraction tried", "Gaussian process", "the paper, Table 16"]  # no cubic
    raw, gp, paper = drawn.data
    assert raw.x == LRS  # what was tried stands where it was tried
    assert gp.x[0] < LRS[0]
    assert list(raw.y) == [90, 50, 0]
    assert list(raw.error_y.arrayminus) == pytest.approx([20, 20, 0])
    assert list(paper.x) == [1e-4, 4e-4]
    assert list(paper.y) == [80, 40]


def test_a_table_at_one_seed_lr_is_no_ridge_of_the_paper() -> None:
    rows = tuple(row.model_copy(update={"seed_lr": 3e-4}) for row in PAPER.rows)
    single = spec(reference=(PAPER.model_copy(update={"rows": rows}),))
    names = [line.name for line in figures(record(spec=single), ridge())["ridge"].data]
    assert "the paper, Table 16" not in names


def test_curves_are_of_the_recommended_seed_lr_with_their_knees() -> None:
    drawn = figures(on=ridge())["curves"]
    knees = {line.x[0]: line.y[0] for line in drawn.data if line.mode == "markers"}
    assert set(knees) == {5, 55, 95}  # warmup 5 and 0 %, 50 %, 90 % of 100; 90 gives way to 95
    assert knees[55] == pytest.approx(0.8 * 55)  # on the curve, between two evaluations
    assert knees[5] is None  # before the first one


def test_random_seeds_are_shown_where_there_are_enough_to_scatter() -> None:
    def scattered(seeds: int) -> StudyRecord:
        runs = [RunRecord(seed=seed, state="complete", value=80.0 + seed) for seed in range(5)]
        trials = tuple(
            trial(n, 3e-4, f, replicates=tuple(runs[:seeds])) for n, f in enumerate(FRACTIONS)
        )
        return record(trials=trials, spec=spec(replicates=seeds))

    drawn = figures(scattered(5), ridge())["seeds"]
    assert [line.name for line in drawn.data[::2]] == [
        *("explore 0%", "explore 50%", "explore 90%")
    ]
    assert list(drawn.data[0].x) == [80, 81, 82, 83, 84]
    assert list(drawn.data[1].x) == [82]  # the mean
    assert "seeds" in [section.key for section in report(scattered(5), ridge()).sections]
    assert "seeds" not in figures(scattered(4), ridge())
    assert "seeds" not in [section.key for section in report(scattered(4), ridge()).sections]


def test_the_papers_explore_epochs_are_shown_as_a_share_of_its_budget() -> None:
    (paper,) = [each for each in report(on=ridge()).sections if each.key == "paper"]
    assert paper.tables[0].columns[1:5] == ("epochs", "seed LR", "explore epochs", "explore")
    assert paper.tables[0].rows[0][1:5] == ("150", "0.0001", "120", "80%")


def test_the_steps_add_up_to_those_of_independent_trials() -> None:
    shared = tuple(
        trial(n, 3e-4, f, steps=StepCount(trained=100, reused=200)) for n, f in enumerate(FRACTIONS)
    )
    bar = figures(record(trials=shared))["steps"]
    assert {line.name: line.x[0] for line in bar.data} == {
        "trained": 300,
        "from trunks": 600,
    }


# What the report says


def test_json_has_the_numbers_and_no_figures() -> None:
    dumped = json.loads(report(on=ridge()).model_dump_json())
    assert dumped["optimal"][0] | {"gp": 0, "cubic": 0, "metric": 0} == {
        "seed_lr": 1.5e-4,
        "explore_fraction": 0.9,
        "low": pytest.approx(0.7),
        "high": 0.9,
        "gp": 0,
        "cubic": 0,
        "metric": 0,
    }
    assert dumped["spearman"]["value"] == -0.96
    assert dumped["crossover_p"] == 0.0004
    assert dumped["verdict"] == "inverse relation"
    assert dumped["steps"]["trained"] == dumped["steps"]["independent"] == 2700
    assert not {"figures", "sections", "tiles"} & dumped.keys()


def test_the_answer_comes_first() -> None:
    found = report(on=ridge())
    assert found.sections[0].key == "answer"
    assert found.sections[0].words[0] == "Use seed LR 0.00015, explore 90%."
    assert [tile.value for tile in found.tiles] == [
        "0.00015",
        "90%",
        "89.70",
        "+0.50",
        "not tried",
    ]


def test_it_says_how_its_numbers_are_measured() -> None:
    measures = {"bits_per_byte": f"over every byte {EVIL}"}
    found = report(record(measures=measures), ridge())
    (table,) = found.sections[0].tables
    assert table.rows == (("Bits per byte", measures["bits_per_byte"]),)
    assert EVIL not in as_html(found)
    assert "over every byte" in as_markdown(found)
    assert not report(record()).sections[0].tables


def test_a_difference_has_its_unit_and_says_whether_it_is_good() -> None:
    tile = report(on=ridge()).tiles[3]
    assert (tile.value, tile.unit) == ("+0.50", "points")
    assert tile.note == "better, but it may be chance; 95% interval -0.20 to +1.20"
    assert "is +0.50 [-0.20, +1.20] points, which" in report(on=ridge()).answer_text


def test_a_column_with_nothing_in_it_is_left_out() -> None:
    table = Table(caption="", columns=("a", "b", "c"), rows=(("1", "–", "–"), ("2", "–", "3")))
    assert (table.columns, table.rows) == (("a", "c"), (("1", "–"), ("2", "3")))


def test_an_interval_with_zero_in_it_is_called_chance() -> None:
    words = " ".join(report(on=ridge()).sections[0].words)
    assert "may be chance: the interval includes zero" in words


def test_a_recommended_point_on_the_edge_is_said_to_be_there() -> None:
    words = " ".join(report().sections[0].words)  # the best trial, at the smallest seed LR
    assert "on the edge of the search space (smallest seed LR)" in words
    assert "--set 'space.seed_lr.values=[7.5e-05, 0.00015, 0.0003, 0.0006]'" in words
    inner = record(trials=tuple(each for each in record().trials if each.seed_lr == LRS[1]))
    assert "edge" not in " ".join(report(inner, ridge()).sections[0].words)


def test_a_ridge_with_pruned_trials_is_to_be_taken_with_care() -> None:
    pruned = trial(9, 3e-4, 0.7, state="pruned", value=None, reason="pruned at step 50")
    found = report(record(trials=(*record().trials, pruned)), ridge())
    words = " ".join(next(each for each in found.sections if each.key == "ridge").words)
    assert "1 trial was pruned" in words


def test_what_fresh_seeds_have_confirmed_is_recommended() -> None:
    found = report(record(confirmation=confirmation(confirmed=True)), ridge()).recommended
    assert (found.seed_lr, found.explore_fraction, found.confirmed) == (6e-4, 0.0, "yes")
    assert found.expected.value == 92
    assert found.difference is not None
    assert found.difference.low == 2


def test_what_fresh_seeds_have_not_confirmed_is_said() -> None:
    found = report(record(confirmation=confirmation(confirmed=False)), ridge())
    assert found.recommended.seed_lr == 1.5e-4  # the best of the search
    assert found.recommended.confirmed == "no"
    assert any("not confirmed" in words for words in found.sections[0].words)


def test_a_study_without_a_ridge_recommends_its_best_trial() -> None:
    found = report()
    assert found.recommended.setting == "seed LR 0.00015, explore 90%"
    assert found.verdict is None
    assert [section.key for section in found.sections] == [
        *("answer", "metrics", "curves", "steps", "paper", "trials", "again")
    ]


def test_a_report_of_thousands_of_trials_stays_a_page() -> None:
    many = tuple(trial(number, LRS[number % 3], 0.0001 * number) for number in range(3000))
    found = report(record(trials=many))
    rows = [len(table.rows) for section in found.sections for table in section.tables]
    assert max(rows) <= 200
    (trials,) = (section for section in found.sections if section.key == "trials")
    assert "Below are 100 of 3,000, the best 50 and the newest 50" in trials.words[0]
    assert "the command that lists every one is at the end" in trials.words[0]


def test_importance_names_what_the_dashboard_shows_instead() -> None:
    theirs = IMPORTANCES.model_copy(update={"dashboard": {"seed_lr": 0.5, "explore_fraction": 0.5}})
    (section,) = (s for s in report(importances=theirs).sections if s.key == "importance")
    ours, dashboards = section.words
    assert ours.startswith("By fANOVA, from 9 complete trials: seed LR 70%, explore fraction 30%")
    assert "Optuna Dashboard's chart of hyperparameter importance is PED-ANOVA's" in dashboards
    assert "seed LR 50%, explore fraction 50%" in dashboards


def test_a_budget_without_room_for_longer_exploring_is_said() -> None:
    """Warmup is 5 of 100 steps."""
    only = record(trials=(trial(0, 3e-4, 0.95),))
    words = " ".join(report(only).sections[0].words)
    assert "any longer explore fraction is the same schedule" in words
    assert "same schedule" not in " ".join(report().sections[0].words)


def test_a_study_without_a_complete_trial_has_no_report() -> None:
    with pytest.raises(ValueError, match="no trial is complete"):
        report(record(trials=(trial(0, 3e-4, 0.5, state="failed", value=None),)))


def test_what_is_missing_is_said_in_a_line() -> None:
    assert any(line.startswith("Fresh random seeds: none") for line in report().left_out)
    found = report(
        record(
            confirmation=confirmation(confirmed=True),
            baselines=(
                BaselineRecord(schedule="cosine", seed=1, seed_lr=3e-4, state="complete", value=88),
            ),
        ),
        ridge(),
        importances=IMPORTANCES,
        test={4: {"test_accuracy": 87.5}},
    )
    assert found.left_out == ("Audit of pruning: no trial was pruned.",)
    assert {"baselines", "confirmation", "importance", "test"} <= {s.key for s in found.sections}


def test_every_table_of_metrics_names_its_split() -> None:
    found = report(record(confirmation=confirmation(confirmed=True)), ridge())
    captions = [
        table.caption
        for section in found.sections
        for table in section.tables
        if section.key not in ("paper", "again")
    ]
    assert len(captions) == 5
    assert all("alidation" in caption for caption in captions)


def test_the_importance_evaluator_is_named() -> None:
    (words,) = next(
        section.words
        for section in report(importances=IMPORTANCES).sections
        if section.key == "importance"
    )
    assert "By fANOVA, from 9 complete trials: seed LR 70%, explore fraction 30%" in words


def test_columns_of_numbers_are_set_to_the_right() -> None:
    table = Table(caption="", columns=("a", "b"), rows=(("-1.5 [0, 1]", "cosine"), ("–", "4")))
    assert table.numeric == (True, False)


# As HTML and Markdown


class Page(HTMLParser):
    """Tags, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = Page(as_html(report(on=ridge())))
    assert not [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "data") and value and not value.startswith("#")
    ]
    assert page.count("h1") == 1
    assert page.count("h2") == len(report(on=ridge()).sections) + 1
    assert "Use seed LR 0.00015, explore 90%." in page.text


def test_a_table_is_looked_at_once_and_not_for_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 100 x 100 points took minutes."""
    looked = list[Table]()

    def look(table: Table) -> tuple[bool, ...]:
        looked.append(table)
        return (True,) * len(table.columns)

    monkeypatch.setattr(Table, "numeric", property(look))
    found = report(on=ridge())
    as_html(found)
    assert len(looked) == sum(len(section.tables) for section in found.sections) > 0


def test_the_page_holds_the_library_that_draws_once() -> None:
    page = as_html(report(on=ridge()))
    assert len(re.findall(r"\* plotly\.js \(cartesian - minified\) v\d", page)) == 1
    assert "Licensed under the MIT license" in page
    assert len(page.encode()) < 2_000_000


def buttons(found: StudyReport) -> list[dict[str, str | None]]:
    return [attrs for tag, attrs in Page(as_html(found)).tags if tag == "button"]


def test_the_answer_can_be_copied_as_plain_text() -> None:
    button = buttons(report(on=ridge()))[0]
    assert (button["data-text"] or "").startswith(
        "ridge-of-a-toy (toy)\nUse seed LR 0.00015, explore 90%.\nExpect "
    )


def test_the_answer_is_there_as_a_setting_of_every_project() -> None:
    trained = {"seed_lr": 3e-4, "epochs": 10, "warmup_steps": 5, "optimizer": {"name": "radam"}}
    found = report(record(spec=spec(recipe=trained)))
    copied = [button["data-text"] for button in buttons(found)[1:]]
    assert copied == [setting.text for setting in found.settings.values()]
    assert len(copied) == 8
    assert "learning_rate=0.00015,\nmax_steps=100,\nwarmup_steps=5," in found.settings["hf"].text
    assert found.settings["megatron"].note.endswith(
        "Found with radam; an LR is good for its own optimizer."
    )
    assert "settings" not in found.model_dump()
    markdown = as_markdown(found)
    for setting in found.settings.values():
        assert f"```\n{setting.text.rstrip()}\n```" in markdown
    assert markdown.index("### As a setting") < markdown.index(found.sections[1].title)


def test_a_project_that_cannot_write_the_decay_says_so() -> None:
    recipe = {"seed_lr": 3e-4, "epochs": 10, "decay": "power", "decay_power": 3.0}
    found = record(spec=spec(recipe=recipe))
    shown = report(found).settings
    assert shown["hf"].text == ""
    assert shown["hf"].note.startswith("Hugging Face Trainer (TrainingArguments): it has no decay")
    assert len(buttons(report(found))) == 1 + 4  # ours can: torch, lightning, yaml, json
    with pytest.raises(UserError, match=r"`as` hf: it has no decay 'power' but linear, "):
        setting_to_use(found, "hf")


def test_a_setting_is_of_the_winner_of_fresh_seeds_even_if_no_trial_is() -> None:
    """The point (6e-4, 0.0) was pruned in the search, and confirmed."""
    pruned = trial(6, 6e-4, 0.0, state="pruned", value=None)
    found = record(
        trials=(*(each for each in record().trials if each.point != pruned.point), pruned),
        confirmation=confirmation(confirmed=True),
    )
    assert winner_knee(found) == Knee(
        seed_lr=6e-4, total_steps=100, warmup_steps=5, explore_steps=0
    )


def test_a_page_without_the_steps_of_its_trials_has_no_setting() -> None:
    early = tuple(each.model_copy(update={"budget": 0}) for each in record().trials)
    assert report(record(trials=early)).settings == {}


def test_names_and_texts_cannot_become_markup() -> None:
    hostile = record(
        name=EVIL,
        trials=(*record().trials, trial(9, 3e-4, 0.7, state="failed", value=None, reason=EVIL)),
        spec=spec(description=EVIL),
    )
    text = as_html(report(hostile, ridge(), environment={EVIL: EVIL}))
    page = Page(text)
    assert page.count("img") == 0
    assert page.text.count(EVIL) >= 4  # it is shown as it is
    assert text.count("</script>") == 4


def test_json_in_a_script_cannot_end_it() -> None:
    written = script_json({"title": "</script><!--\u2028&"})
    assert not re.search("[<>&\u2028]", written)
    assert json.loads(written) == {"title": "</script><!--\u2028&"}


def test_markdown_tables_hold_hostile_cells() -> None:
    text = as_markdown(report(record(name=EVIL), ridge()))
    assert "<img" not in text.replace("\\<", "")
    for lines in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}
        assert len(widths) == 1


def test_the_report_says_which_trials_are_of_which_code() -> None:
    alike = record()
    (listed,) = [section for section in report(alike).sections if section.key == "trials"]
    assert not any("code" in words for words in listed.words)

    trials = tuple(each.model_copy(update={"code": "new"}) for each in alike.trials[4:])
    mixed = record(trials=alike.trials[:4] + trials)
    (listed,) = [section for section in report(mixed).sections if section.key == "trials"]
    assert listed.words[-1].endswith(": trials 0-3 by code not noted; trials 4-8 by new.")
