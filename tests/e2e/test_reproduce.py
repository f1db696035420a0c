"""The paper's tables from the command line, at a size that takes seconds."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import complains, knee_tune, knee_tune_here

TABLE_16 = (
    *("reproduce", "table16", "--task", "digits", "--seeds", "3", "--tracking-uri", "none"),
    *("--set", "recipe.epochs=2"),
    *("--set", "space.seed_lr={values: [0.005, 0.025, 0.128]}"),
    *("--set", "space.explore_fraction={values: [0.0, 0.3, 0.6, 0.9]}"),
)

TABLE_15 = (
    *("reproduce", "table15", "--task", "iwslt", "--preset", "demo", "--seeds", "2"),
    *("--tracking-uri", "none", "--nproc", "1", "--set", "recipe.epochs=1"),
    *("--set", "recipe.tokens_per_step=4000", "--set", "recipe.valid_pairs=40"),
    *("--set", "recipe.beam=1", "--set", "space.explore_fraction={values: [0.0, 0.8]}"),
    *("--set", "recipe.model={encoder_layers: 1, decoder_layers: 1, embed_dim: 16, ffn_dim: 32}"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduced") / "home"


@pytest.fixture(scope="module")
def table16(home: Path) -> dict[str, Any]:
    """What the first command says of a small Table 16."""
    said: dict[str, Any] = json.loads(knee_tune(*TABLE_16, "--json", "--home", home).stdout)
    return said


def test_it_says_what_the_table_says_and_how_sure(table16: dict[str, Any]) -> None:
    assert [each["seed_lr"] for each in table16["optimal"]] == [0.005, 0.025, 0.128]
    for each in table16["optimal"]:
        assert each["explore_fraction"] in (0.0, 0.3, 0.6, 0.9)
        assert 0.0 <= each["low"] <= each["high"] <= 0.9
    assert -1 <= table16["spearman"]["low"] <= table16["spearman"]["high"] <= 1
    assert 0 <= table16["crossover_p"] <= 1
    assert table16["verdict"] in ("inverse relation", "no inverse relation", "undecided")


def test_it_says_what_it_cost(table16: dict[str, Any]) -> None:
    assert table16["seconds"] > 0
    assert table16["steps"]["independent"] == 3 * 4 * 3 * 100  # points x seeds x steps
    longest_knee = 3 * 3 * 90  # the trunks up to it are trained once
    assert longest_knee < table16["steps"]["trained"] < table16["steps"]["independent"]


def test_there_is_a_report_to_read(table16: dict[str, Any], home: Path) -> None:
    report = Path(table16["report"])
    assert report.parent == home / "reports"
    assert "<html" in report.read_text()


def test_the_same_command_again_just_reports(table16: dict[str, Any], home: Path) -> None:
    text = knee_tune_here(*TABLE_16, "--home", home).stdout
    assert "12 of 12 trials done" in text.replace("\n", " ")
    assert "Table 16 on digits: 12 of 12 points, 3 seeds each" in text
    assert "use seed LR " in text
    assert "crossover test: p = " in text
    assert f"verdict: {table16['verdict']}" in text
    assert f"steps trained: {table16['steps']['trained']:,} of 3,600" in text
    assert f"report: {table16['report']}" in text


def test_one_by_one_is_a_study_of_its_own(table16: dict[str, Any], home: Path) -> None:
    less = ("--set", "space.explore_fraction={values: [0.0]}", "--seeds", "2", "--no-fuse")
    other = json.loads(knee_tune_here(*TABLE_16, *less, "--json", "--home", home).stdout)
    assert table16["study"] == "table16-digits-3-seeds"
    assert other["study"] == "table16-digits-2-seeds-one-by-one"
    assert other["spearman"] is None


def test_table_15_shows_every_metric_against_the_explore_epochs(tmp_path: Path) -> None:
    pytest.importorskip("fairseq", reason="needs the translation extra")
    text = knee_tune_here(*TABLE_15, "--home", tmp_path).stdout
    lines = text[text.index("Table 15 on iwslt: 2 of 2 points, 2 seeds each") :].splitlines()
    _, header, *rows = lines[:4]
    assert header.startswith("explore epochs")
    assert {"valid_ppl", "valid_bleu"} <= set(header.split())
    assert [row.split()[:2] for row in rows] == [["0", "0%"], ["0.8", "80%"]]
    assert all(row.count(" ± ") == 4 for row in rows)
    assert "verdict" not in text


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (("table17", "--task", "digits"), "there are table16 --task digits"),
        (("table16", "--task", "digit"), "table16 --task digits-clean"),
        (("table15", "--task", "iwslt", "--preset", "quick"), "table15 --task iwslt --preset demo"),
        (("table99", "--task", "digit"), "the tasks are bert, breast-cancer"),
    ],
)
def test_what_cannot_be_reproduced_gets_one_line(
    asked: tuple[str, ...], there: str, tmp_path: Path
) -> None:
    why = f"reproduce {' '.join(asked)}: there is no such design"
    complains("reproduce", *asked, "--home", tmp_path / "home", said=(why, there))
    assert not list(tmp_path.iterdir())
