"""README and docs/ are true: the site builds, links lead somewhere, what is shown can be typed."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from knee_tune.cli.commands import app
from knee_tune.study.storage import quiet_optuna

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

RUNNABLE = ("docs/how-to/own-loop.md",)
"""Pages whose Python needs nothing else. ``concepts/pruner.md`` has a test of its own."""


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of code in this language; "" is what people type and see."""
    text = page.read_text(encoding="utf-8")
    return [
        code
        for found, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if found == language
    ]


def commands() -> Iterator[tuple[str, str]]:
    """Every command line of ours that is shown, and its page."""
    for page in PAGES:
        for block in blocks(page, ""):
            for line in re.findall(r"^(?:\$ )?(knee-tune .*)$", block, re.MULTILINE):
                yield line, str(page.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a link or an anchor that leads nowhere fails the build."""
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed (the extra 'docs')")
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: warnings that are not logged are not counted, and the build is not strict.
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_reference_is_made_from_the_code(site: Path) -> None:
    reference = {page.stem: page.read_text() for page in (site / "reference").glob("*.html")}
    assert 'id="knee-tune-run"' in reference["command-line"]
    assert "--confirm" in reference["command-line"]
    assert "label_smoothing" in reference["yaml"]
    assert "KneeLR" in reference["python"]
    assert not [page for page in site.rglob("*.html") if "generated:" in page.read_text()]


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r'<(?:script|img)[^>]*src="https?:|<link[^>]*stylesheet[^>]*href="https?:')
    assert not [page for page in site.rglob("*.html") if loaded.search(page.read_text())]


@pytest.mark.parametrize("page", ["README.md", ".github/CONTRIBUTING.md"])
def test_links_of_pages_beside_the_site_lead_somewhere(page: str, site: Path) -> None:
    source = REPOSITORY / page
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", source.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        found = (source.parent / path).resolve()
        assert found.exists(), f"{page} links to {target}"
        if anchor:
            built = site / found.relative_to(REPOSITORY / "docs").with_suffix(".html")
            assert f'id="{anchor}"' in built.read_text(), f"{page} links to {target}"


@pytest.mark.parametrize(("line", "page"), commands())
def test_every_command_that_is_shown_is_understood(line: str, page: str) -> None:
    command: Any = typer.main.get_command(app)
    name, *arguments = shlex.split(line, comments=True)
    context = command.make_context(name, arguments)
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, arguments)
        assert command is not None, line
        context = command.make_context(name, list(arguments), parent=context)


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_python_that_is_shown_runs(page: str) -> None:
    with quiet_optuna():
        for code in blocks(REPOSITORY / page, "python"):
            exec(code, {})


def test_the_files_that_the_architecture_names_are_there() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+/\w+\.py)`", text))
    assert len(named) > 15
    assert not [name for name in named if not (REPOSITORY / "knee_tune" / name).is_file()]
