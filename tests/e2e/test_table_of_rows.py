"""A table whose rows are trained, from the command line: a study of the working folder."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import complains, drive_here, knee_tune_here

TABLE = """\
name: table1-digits
task: digits
replicates: 2
compare:
  table: Table 1
  section: "3"
  rows:
    - schedule: step
      epochs: 20
      seed_lr: 0.05
      boundaries: [5, 12]
      metrics: {test_accuracy: 94.81}
    - schedule: step
      label: longer explore
      epochs: 20
      seed_lr: 0.05
      boundaries: [10, 15]
      metrics: {test_accuracy: 95.10}
      std: {test_accuracy: 0.14}
    - {schedule: cosine, epochs: 20, seed_lr: 0.05, metrics: {test_accuracy: 95.23}}
"""

REPRODUCE = ("reproduce", "table1", "--task", "digits", "--scale", "0.1", "--tracking-uri", "none")

STUDY = "table1-digits-scale0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "studies").mkdir()
    (folder / "studies" / "table1-digits.yaml").write_text(TABLE)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    """What the first command says, as JSON."""
    with chdir(folder):
        result: dict[str, Any] = json.loads(drive_here(*REPRODUCE, "--json").stdout)
    return result


def test_every_row_has_the_papers_numbers_and_ours(said: dict[str, Any]) -> None:
    assert (said["study"], said["verdict"], said["optimal"]) == (STUDY, None, [])
    first, longer, cosine = said["rows"]
    assert first["label"] == first["setting"] == "step 0.05, boundaries 5, 12 of 20 epochs"
    assert (longer["label"], cosine["setting"]) == ("longer explore", "cosine 0.05, 20 epochs")
    assert longer["paper"] == {"test_accuracy": {"mean": 95.1, "std": 0.14}}
    for row in said["rows"]:
        ours = row["ours"]["test_accuracy"]
        assert ours["n"] == 2
        assert ours["low"] <= ours["mean"] <= ours["high"]
        assert row["failed"] == {}


def test_rows_of_one_seed_lr_shared_their_trunk(said: dict[str, Any]) -> None:
    independent = 3 * 2 * 2 * 50  # rows, seeds, epochs, steps
    shared = 2 * 25  # half an epoch: where the first row's LR falls
    assert said["steps"] == {"trained": independent - shared, "independent": independent}


def test_its_status_is_the_table_and_its_cost(
    said: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    text = knee_tune_here("status", STUDY).stdout
    assert "Table 1 on digits at 0.1 times the epochs: 6 of 6 runs, 3 rows with 2" in text
    assert "95.1 ± 0.14" in text
    assert "steps trained: 550 of 600" in text
    assert (folder / said["report"]).is_file()


@pytest.mark.usefixtures("said")
def test_what_needs_a_search_gets_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    why = (
        f"study {STUDY}: it compares schedules and searches nothing, so it has no "
        f"trials; see knee-tune status {STUDY}"
    )
    complains("best", STUDY, said=(why,))


SUMMARISED = """\
name: table9-cifar10
task: digits
compare:
  table: Table 9
  section: 5.3.2
  rows:
    - {schedule: step, epochs: 200, seed_lr: 0.05, boundaries: [100], metrics: {}}
    - {schedule: knee, epochs: 200, seed_lr: 0.05, explore_epochs: 100, metrics: {}}
"""


def test_a_summary_shows_what_its_studies_found_and_how_to_train_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "studies" / "table9-cifar10.yaml").write_text(SUMMARISED)
    home = ("--scale", "0.005", "--home", "summarised")
    assert "not run" in knee_tune_here("reproduce", "table5", *home).stdout
    assert not (folder / "summarised").exists()

    knee_tune_here("run", "--study", "table9-cifar10", *home, "--tracking-uri", "none")
    said = json.loads(knee_tune_here("reproduce", "table5", *home, "--json").stdout)
    (cifar10,) = [row for row in said["rows"] if row["experiment"] == "CIFAR-10"]
    knee, half, baseline, *others = cifar10["cells"]
    assert (knee["paper"], knee["ours"]["n"], knee["ours"]["epochs"]) == (95.26, 1, 1)
    assert knee["ours"] == half["ours"] != baseline["ours"]
    assert {cell["ours"] for cell in others} == {None}
    assert (
        "reproduce table17 --task cifar10 --scale 0.005 --home summarised" in others[0]["command"]
    )


def test_a_summary_trains_nothing() -> None:
    complains(
        "reproduce",
        "table5",
        "--seeds",
        "3",
        said=("--seeds is for a training; say on which --task",),
    )
    complains("reproduce", "table16", said=("on which task? --task may be", "digits"))
