"""A table trained row by row: its statistics by value, and what its report says in every format."""

import json
from math import sqrt
from typing import Any

import plotly.graph_objects as go
import pytest
from scipy import stats

from knee_tune.config.study import ReferenceRow
from knee_tune.records.study import StudyRecord
from knee_tune.report.answer import comparison_words, study_note
from knee_tune.report.document import ReportContext, as_html, as_markdown
from knee_tune.report.report import ComparisonReport, build_report, study_figures
from knee_tune.report.sections import beside_section
from knee_tune.report.tables import compared_table
from knee_tune.stats.comparison import comparison_of, explored_in, slope, two_sided_p
from knee_tune.stats.estimates import mean_estimate
from tests.comparisons import EXPLORED, compared, schedules, series, stepped

EVIL = "</script><img src=x onerror=alert(1)>|`*_"

SLOPES = {1: 0.2, 2: 0.3, 3: 0.4}
"""Points of test accuracy per 10 explore epochs, by random seed."""


def rising(row: int, seed: int) -> dict[str, float]:
    """Every random seed has its own level and its own slope; sharpness has no slope at all."""
    explored = EXPLORED[row]
    return {
        "valid_accuracy": 90.0 + row,
        "test_accuracy": 80.0 + seed + SLOPES[seed] * explored / 10,
        "train_loss": 0.01,
        "sharpness": 5.0 + (0.1 * (seed - 2) if row else 0.0),
    }


def beside_baseline(row: int, seed: int) -> dict[str, float]:
    """Knee is one point above the baseline, give or take what the random seed brings."""
    above = (0.0, 1.0, 0.0)[row] + (0.0, 0.02 * seed, 0.3 * (seed - 2))[row]
    return {"test_accuracy": 90.0 + 0.5 * seed + above}


def words(record: StudyRecord) -> str:
    return " ".join(comparison_words(comparison_of(record)))


def report(record: StudyRecord, **context: Any) -> ComparisonReport:
    context_ = ReportContext(written=0.0, **context)
    built = build_report(record, comparison_of(record), context=context_)
    assert isinstance(built, ComparisonReport)
    return built


def without(row: int, seed: int) -> Any:
    """:func:`rising`, but one run diverged."""
    return lambda at, of: None if (at, of) == (row, seed) else rising(at, of)


# Statistics


def test_a_slope_is_told_per_ten_explore_epochs() -> None:
    assert slope((0, 50, 100), (1.0, 1.5, 2.0)) == pytest.approx(0.1)


def test_the_trend_is_the_mean_slope_over_random_seeds_with_its_t_interval() -> None:
    accuracy, sharpness = comparison_of(compared(series(), rising)).trends
    half = stats.t.ppf(0.975, 2) * 0.1 / sqrt(3)  # the slopes deviate by 0.1
    found = accuracy.slope
    assert (accuracy.metric, accuracy.expected, accuracy.seeds) == ("test_accuracy", "rises", 3)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert accuracy.p == pytest.approx(2 * stats.t.sf(0.3 / (0.1 / sqrt(3)), 2))
    assert accuracy.paper == pytest.approx(0.1)
    assert accuracy.told == "rises"
    assert (sharpness.metric, sharpness.expected) == ("sharpness", "falls")
    assert sharpness.paper == pytest.approx(-0.5)
    assert sharpness.told is None


def test_p_is_two_sided() -> None:
    slopes = [1.0, 2.0, 3.5]
    assert two_sided_p(slopes) == pytest.approx(stats.ttest_1samp(slopes, 0).pvalue)
    assert two_sided_p([-each for each in slopes]) == two_sided_p(slopes)
    assert (two_sided_p([-2.0, -2.0]), two_sided_p([0.0, 0.0])) == (0.0, 1.0)


@pytest.mark.parametrize("spread", [0.1, 0.5, 0.9, 1.1, 2.0])
def test_p_is_small_where_the_interval_excludes_zero_and_only_there(spread: float) -> None:
    slopes = [1 - spread, 1.0, 1 + spread]
    low = mean_estimate(slopes).low
    assert low is not None
    assert (two_sided_p(slopes) < 0.05) == (low > 0)


def test_a_random_seed_without_all_rows_has_no_slope() -> None:
    found = comparison_of(compared(series(), without(1, 3)))
    assert found.trends[0].seeds == 2
    assert found.trends[0].slope.value == pytest.approx(0.25)
    assert found.rows[1].missing == {3: "diverged at step 30: the loss is nan"}
    assert list(found.rows[1].metrics["test_accuracy"].values) == [1, 2]


def test_differences_are_seed_by_seed_and_hold_together() -> None:
    found = comparison_of(compared(schedules(), beside_baseline))
    assert found.rows[found.reference].label == "Baseline"
    assert found.rows[0].metrics["test_accuracy"].difference is None
    knee = found.rows[1].metrics["test_accuracy"].difference
    assert knee is not None
    assert knee.low is not None
    assert knee.value == pytest.approx(1.04)  # the random seeds' own levels have gone
    assert knee.level == pytest.approx(0.975)  # two differences
    assert knee.low == pytest.approx(1.04 - stats.t.ppf(1 - 0.05 / 4, 2) * 0.02 / sqrt(3))


def test_rows_have_means_deviations_and_the_papers_values() -> None:
    measured = comparison_of(compared(schedules(), beside_baseline)).rows[0].metrics
    found = measured["test_accuracy"]
    assert found.values == {1: 90.5, 2: 91.0, 3: 91.5}
    assert found.mean is not None
    assert found.mean.value == pytest.approx(91)
    assert found.std == pytest.approx(0.5)
    assert (found.paper, found.paper_std) == (95.1, 0.14)


def test_rows_are_judged_on_the_test_split_if_it_was_measured() -> None:
    assert comparison_of(compared(series(), rising)).metric == "test_accuracy"
    valid = compared(schedules(), lambda row, seed: {"valid_accuracy": 90.0 + row + seed})
    assert comparison_of(valid).metric == "valid_accuracy"


def test_the_papers_metrics_come_first() -> None:
    found = comparison_of(compared(series(), rising))
    assert found.metrics == ("test_accuracy", "sharpness", "train_loss", "valid_accuracy")
    assert found.papers_metrics == ("test_accuracy", "sharpness")


def test_explored_is_the_phase_that_rows_differ_in() -> None:
    first = explored_in(series().rows)
    assert first is not None
    assert (first.lr, first.epochs) == (0.1, EXPLORED)
    finer = explored_in(
        tuple(
            stepped(100).model_copy(update={"boundaries": (100, 100 + epochs)})
            for epochs in (10, 20, 50)
        )
    )
    assert finer is not None
    assert (finer.lr, finer.epochs) == (0.01, (10, 20, 50))
    knee = [
        ReferenceRow(schedule="knee", epochs=50, seed_lr=3e-4, explore_epochs=epochs, metrics={})
        for epochs in (5, 10, 40)
    ]
    later = explored_in(knee)
    assert later is not None
    assert (later.lr, later.epochs) == (3e-4, (5, 10, 40))
    assert explored_in([*knee[:2], knee[2].model_copy(update={"seed_lr": 1e-4})]) is None
    assert explored_in(schedules().rows) is None


def test_without_a_complete_run_there_is_nothing_to_report() -> None:
    with pytest.raises(ValueError, match="no row of a table is trained"):
        comparison_of(compared(series(), lambda row, seed: None))


# Words


def test_a_trend_is_said_as_people_say_it() -> None:
    said = words(compared(series(), rising))
    assert "Test accuracy rises by 0.30 [0.05, 0.55] points per 10 explore epochs at LR 0.1" in said
    assert "in the paper it rises by 0.1." in said
    assert "Sharpness: no trend can be told from 3 random seeds" in said
    assert "Fewer than 5 random seeds are good for a look, not for a claim." in said


def test_a_trend_the_other_way_is_said_to_be_one() -> None:
    falling = compared(series(), lambda row, seed: {"test_accuracy": 90 - row - 0.01 * row * seed})
    said = words(falling)
    assert "Test accuracy falls by 0.2040 [0.1990, 0.2090] points" in said
    assert "(p < 0.001, 3 random seeds), the other way" in said
    assert ", the other way than expected; in the paper it rises" in said


def test_it_says_whether_weights_were_selected() -> None:
    found = comparison_of(compared(series(), rising))
    assert "nothing was selected" in beside_section(found).words[0]
    best = found.model_copy(update={"keep": "best"})
    assert "best on the validation split were kept" in beside_section(best).words[0]


def test_one_random_seed_tells_no_chance() -> None:
    alone = compared(series(), rising, seeds=1)
    found = comparison_of(alone).trends[0]
    assert found.slope.value == pytest.approx(0.2)
    assert (found.slope.low, found.p) == (None, None)
    assert "one random seed, so nothing says how much of it is chance" in words(alone)
    assert any("one seed only" in line for line in report(alone).left_out)
    assert set(report(alone).figures) == {"beside", "steps"}


def test_a_scaled_budget_is_said() -> None:
    said = words(compared(series(), rising, scale=0.05))
    assert "at 5% of the paper's epochs (10 of 200 epochs; boundaries are scaled with them)" in said
    assert "at the paper's epochs." in words(compared(series(), rising))


def test_schedules_are_judged_against_the_baseline() -> None:
    said = words(compared(schedules(), beside_baseline))
    assert "Highest test accuracy: Knee, " in said
    assert "in the paper it is Knee, 95.26." in said
    assert "Knee against Baseline: +1.040 [" in said
    assert "] points, better beyond chance." in said
    assert "Knee (short budget) against Baseline: +0.0 [" in said
    assert "which may be chance: the interval includes zero" in said


def test_the_note_has_the_table() -> None:
    study = compared(schedules(), beside_baseline, description="what")
    said = study_note(study, comparison_of(study), links=("More.",))
    assert said.startswith("# compared\n\nwhat\n\nHighest test accuracy")
    assert "| Baseline | 95.10 | 91.0 [89.8, 92.2] |" in said
    assert said.endswith("More.")


# Figures and formats


def drawn(record: StudyRecord) -> dict[str, go.Figure]:
    """As plotly understands them: a name that it does not know raises."""
    made = study_figures(record, comparison_of(record))
    return {name: go.Figure(figure) for name, figure in made.items()}


def test_ours_and_the_papers_are_drawn_side_by_side() -> None:
    figures = drawn(compared(series(), rising))
    assert list(figures) == ["beside", "seeds_test_accuracy", "seeds_sharpness", "steps"]
    beside = figures["beside"]
    assert list(beside.data[1].x) == list(EXPLORED)
    assert list(beside.data[2].y) == [94, 94.5, 95]
    assert beside.layout.yaxis2.matches == "y"
    scaled = drawn(compared(series(), rising, scale=0.1))["beside"]
    assert scaled.layout.yaxis2.matches is None


def test_few_random_seeds_are_points_and_many_a_histogram_with_the_same_bins() -> None:
    few = drawn(compared(series(), rising))["seeds_test_accuracy"]
    assert {trace.type for trace in few.data} == {"scatter"}
    assert len(few.data[0].x) == 3
    many = compared(series(), lambda row, seed: {"test_accuracy": 90.0 + row + seed}, seeds=20)
    histograms = drawn(many)["seeds_test_accuracy"].data
    assert {trace.type for trace in histograms} == {"histogram"}
    assert all(max(trace.x) < trace.xbins.end for trace in histograms)  # else it is left out
    assert len({trace.xbins.size for trace in histograms}) == 1


def test_the_answer_comes_first_and_every_section_has_its_numbers() -> None:
    found = report(compared(series(), rising, scale=0.05))
    assert [section.key for section in found.sections] == [
        *("answer", "beside", "trend", "seeds", "others", "steps", "runs", "again")
    ]
    assert [tile.value for tile in found.tiles] == ["+0.3", "+0", "5%", "3"]
    beside = found.sections[1]
    assert beside.tables[0].rows[0] == (
        *("LR 0.1 for 0 epochs", "10 of 200", "94", "82.0 [79.5, 84.5]", "3", "–", "–"),
    )
    assert beside.tables[0].caption.startswith("Test accuracy")
    assert "450 of 1,800" not in " ".join(found.sections[5].words)
    assert "Steps trained: 1,350 of 1,800 that independent runs" in found.sections[5].words[1]


def test_json_has_all_numbers_and_no_figures() -> None:
    dumped = json.loads(report(compared(series(), rising)).model_dump_json())
    assert dumped["metric"] == "test_accuracy"
    assert dumped["comparison"]["trends"][0]["slope"]["value"] == pytest.approx(0.3)
    assert dumped["comparison"]["rows"][0]["metrics"]["sharpness"]["paper"] == 10
    assert dumped["comparison"]["rows"][2]["metrics"]["test_accuracy"]["values"]["1"] == 83
    assert not {"figures", "sections", "tiles"} & dumped.keys()


def test_html_and_markdown_hold_hostile_labels() -> None:
    table = series()
    rows = (table.rows[0].model_copy(update={"label": EVIL}), *table.rows[1:])
    record = compared(table.model_copy(update={"rows": rows}), without(0, 1))
    html, text = as_html(report(record)), as_markdown(report(record))
    assert "<img src=x" not in html
    assert html.count("</script>") == 4
    assert "A <strong>Knee</strong> schedule" not in html  # nothing was searched
    assert "<img" not in text.replace("\\<", "")
    assert "diverged at step 30" in text


def test_every_run_is_a_row_for_spreadsheets() -> None:
    lines = compared_table(compared(series(), without(1, 3))).splitlines()
    assert lines[0].startswith("row,label,seed,state,sharpness,test_accuracy,")
    assert len(lines) == 1 + 9
    assert "1,LR 0.1 for 50 epochs,3,pruned,,,,,150,50,5.0,diverged at step 30" in lines[6]
