"""``knee-tune report`` on a real study, and its page in a real browser."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.browser import Browser, find_browser
from tests.command_line import complains, knee_tune, knee_tune_here

STUDY = (
    *("run", "--task", "digits", "--preset", "quick", "--study-name", "small"),
    *("--sampler", "grid", "--replicates", "2", "--pruner", "none", "--tracking-uri", "none"),
    *("--set", "recipe.epochs=2", "--set", "space.seed_lr={values: [0.02, 0.05, 0.1]}"),
    *("--set", "space.explore_fraction={values: [0.0, 0.5, 0.9]}"),
)

OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
"""No name leads anywhere: what the page needs is in it."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a grid of nine points, two random seeds each."""
    home = tmp_path_factory.mktemp("reported")
    knee_tune_here(*STUDY, "--home", home)
    return home


@pytest.fixture(scope="module")
def page(home: Path) -> Path:
    """The study's report."""
    done = knee_tune("report", "small", "--home", home)
    path = home / "reports" / "small.html"
    assert done.stdout == f"report: {path}\n"
    return path


@pytest.fixture(scope="module")
def numbers(home: Path) -> dict[str, Any]:
    """The same report as JSON: to print, nothing else goes to the output."""
    done = knee_tune_here("report", "--format", "json", "--out", "-", "--home", home)
    numbers: dict[str, Any] = json.loads(done.stdout)
    return numbers


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return find_browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def dom(browser: Browser, page: Path) -> str:
    """The page as it is shown by day."""
    return browser.page(page.as_uri(), OFFLINE)


def test_the_page_draws_its_figures_and_says_what_to_use(dom: str, numbers: dict[str, Any]) -> None:
    drawn = dom.partition("<main>")[2].partition("<footer>")[0]
    figures = re.findall(r'data-figure="(\w+)"', drawn)
    assert {"surface", "ridge", "slices", "curves", "steps", "importance"} <= set(figures)
    # Plotly draws a figure in layers: the first is its main one, a legend or hover box another.
    for name in figures:
        place = drawn.partition(f'data-figure="{name}"')[2]
        assert 'class="main-svg"' in place.partition("data-figure")[0], f"{name} is not drawn"
    assert drawn.count('class="hm"') == 1
    best = numbers["recommended"]
    said = f"Use seed LR {best['seed_lr']:g}, explore {best['explore_fraction']:.0%}."
    assert said in drawn
    assert not re.findall(r'\b(?:src|href)="(?!#|data:)', drawn)


def test_figures_are_dressed_for_the_dark(browser: Browser, dom: str, page: Path) -> None:
    dark = browser.page(page.as_uri(), OFFLINE, "--blink-settings=preferredColorScheme=0")
    assert "fill: rgb(51, 56, 62)" in dom
    assert "fill: rgb(51, 56, 62)" not in dark
    assert "fill: rgb(213, 215, 218)" in dark


CHOOSES = """
<script>
  const choice = document.getElementById("setting");
  const shown = () => Array.from(document.querySelectorAll(".setting:not([hidden])"));
  const seen = [shown().map((each) => each.id)];
  const copied = [];
  Object.defineProperty(navigator, "clipboard", {
    value: { writeText: async (text) => { copied.push(text); } },
  });
  choice.value = "setting-hf";
  choice.dispatchEvent(new Event("change"));
  seen.push(shown().map((each) => each.id));
  shown()[0].querySelector("button").click();
  document.querySelector("button").click();
  setTimeout(() => { document.title = JSON.stringify({ seen, copied }); }, 100);
</script>
"""
"""What somebody does who wants the answer as a setting of Hugging Face's Trainer."""


def test_a_setting_is_chosen_and_copied(
    home: Path, browser: Browser, page: Path, tmp_path: Path
) -> None:
    visited = tmp_path / "visited.html"
    visited.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{CHOOSES}</body>"))
    done = browser.page(visited.as_uri(), OFFLINE)
    (title,) = re.findall("<title>({.*})</title>", done)
    told = json.loads(unescape(title))
    assert told["seen"] == [["setting-torch"], ["setting-hf"]]
    printed = knee_tune_here("best", "--as", "hf", "--home", home)
    assert told["copied"][0] == printed.stdout.rstrip("\n")
    assert told["copied"][1].startswith("small (digits)\nUse seed LR ")
    assert done.count(">Copied.</span>") == 2
    assert printed.stderr.rstrip("\n") in unescape(done)


def test_the_numbers_as_json(home: Path, numbers: dict[str, Any]) -> None:
    assert [each["seed_lr"] for each in numbers["optimal"]] == [0.02, 0.05, 0.1]
    assert all(each["low"] <= each["high"] for each in numbers["optimal"])
    assert {"value", "low", "high"} <= numbers["spearman"].keys()
    assert numbers["verdict"] in ("inverse relation", "no inverse relation", "undecided")
    assert numbers["steps"]["independent"] == 9 * 2 * 100
    assert numbers["importances"]["evaluator"] == "fANOVA"
    assert set(numbers["importances"]["dashboard"]) == {"seed_lr", "explore_fraction"}
    assert numbers["environment"]["device"] == "cpu"
    (replay, *_) = numbers["replay"]
    assert f"--home {home}" in replay["text"]


def test_its_settings_describe_the_same_study(home: Path, tmp_path: Path) -> None:
    """The study file in the report, run again in the same home, finds nothing left to train."""
    text = knee_tune_here("report", "--format", "md", "--out", "-", "--home", home).stdout
    (settings,) = re.findall(r"```\n(name: small\n.*?)```", text, flags=re.DOTALL)
    (file := tmp_path / "study.yaml").write_text(settings, encoding="utf-8")
    again = knee_tune_here("run", "--study", file, "--home", home, "--tracking-uri", "none")
    assert "9 of 9 trials done" in again.stdout


def test_a_report_goes_where_it_is_told_to(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "it.md"
    knee_tune_here("report", "--format", "md", "--out", path, "--home", home)
    assert path.read_text(encoding="utf-8").startswith("# small\n")
    assert [file.name for file in path.parent.iterdir()] == ["it.md"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nosuch",), "study nosuch: not in this storage; there are: small"),
        (("--out", "/proc/report.html"), "report /proc/report.html: cannot be written"),
        (("--open", "--out", "-"), "--open: needs a file"),
    ],
)
def test_mistakes_get_one_line(home: Path, arguments: tuple[str, ...], said: str) -> None:
    complains("report", *arguments, "--home", home, said=(said,))


def test_a_study_that_has_completed_nothing_has_no_report(home: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    optuna.copy_study(
        from_study_name="small",
        from_storage=f"sqlite:///{home}/optuna.db",
        to_storage=storage,
    )
    study = optuna.load_study(study_name="small", storage=storage)
    empty = optuna.create_study(study_name="empty", storage=storage, direction="maximize")
    for name, value in study.user_attrs.items():
        empty.set_user_attr(name, value)
    why = "knee-tune: study empty: no trial is complete yet"
    complains("report", "empty", "--home", tmp_path, said=(why,))
