"""The report of a table that was trained, opened in a real browser."""

import random
import re
from pathlib import Path

import pytest

from knee_tune.report.document import ReportContext, as_html
from knee_tune.report.report import build_report
from knee_tune.stats.comparison import comparison_of
from tests.browser import find_browser
from tests.comparisons import EXPLORED, compared, series

OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
"""No name leads anywhere: what the page needs is in it."""

SEEDS = 20
"""Enough for histograms."""


@pytest.fixture(scope="module")
def dom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a made-up comparison at 5 % of the paper's epochs, drawn."""
    noise = random.Random(1)
    record = compared(
        series(),
        lambda row, seed: {
            "valid_accuracy": 60.0 + row,
            "test_accuracy": 60.0 + EXPLORED[row] / 50 + noise.gauss(0, 0.2),
            "sharpness": 10.0 - EXPLORED[row] / 20 + noise.gauss(0, 0.2),
        },
        seeds=SEEDS,
        scale=0.05,
    )
    report = build_report(record, comparison_of(record), context=ReportContext(written=0.0))
    folder = tmp_path_factory.mktemp("compared")
    page = folder / "compared.html"
    page.write_text(as_html(report), encoding="utf-8")
    return find_browser(folder / "browser").page(Path(page).as_uri(), OFFLINE)


def test_every_figure_is_drawn_and_the_finding_is_said(dom: str) -> None:
    shown = dom.partition("<main>")[2].partition("<footer>")[0]
    names = re.findall(r'data-figure="(\w+)"', shown)
    assert names == ["beside", "seeds_test_accuracy", "seeds_sharpness", "steps"]
    for name in names:
        place = shown.partition(f'data-figure="{name}"')[2].partition("data-figure")[0]
        assert 'class="main-svg"' in place, f"{name} is not drawn"
    assert re.search(r"Test accuracy rises by 0\.(19|20)", shown)  # 0.2, but for the noise
    assert re.search(r"Sharpness falls by 0\.(49|5)", shown)
    assert "5% of the paper's epochs (10 of 200 epochs" in shown.replace("&#39;", "'")


def test_histograms_have_a_panel_for_every_row(dom: str) -> None:
    place = dom.partition('data-figure="seeds_sharpness"')[2].partition("data-figure")[0]
    for epochs in EXPLORED:
        assert f"LR 0.1 for {epochs} epochs: " in place
    assert len(re.findall(r'class="trace bars"', place)) == len(EXPLORED)
