"""A wheel built from the repository, installed elsewhere, is complete."""

import configparser
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import knee_tune

pytest.importorskip("hatchling", reason="the build backend comes with the extra 'dev'")


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python = sys.executable
    run(python, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=repository)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*install, "--target", target, wheel, cwd=target)
    return target


def test_it_carries_the_package_the_command_and_the_licence(wheel: Path) -> None:
    version = knee_tune.__version__
    info = f"knee_tune-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert {"knee_tune/cli.py", "knee_tune/cli/__init__.py"} & names
    assert "knee_tune/py.typed" in names
    assert "knee_tune/tasks/translation/demo.tsv.bz2" in names
    parts = ("report.html", "page.css", "page.js", "plotly/plotly-cartesian.min.js")
    pages = {f"knee_tune/report/page/{name}" for name in (*parts, "plotly/LICENSE")}
    assert pages <= names
    assert f"{info}/licenses/LICENSE" in names
    assert scripts["console_scripts"]["knee-tune"] == "knee_tune.cli:main"
    assert not [name for name in names if not re.match(r"knee_tune[/-]", name)]


def test_installed_elsewhere_it_finds_its_search_spaces_and_studies(
    installed: Path, repository: Path, tmp_path: Path
) -> None:
    program = (
        "import knee_tune\n"
        "from knee_tune.config.strict_yaml import available\n"
        "print(knee_tune.__file__)\n"
        "for kind in ('search_spaces', 'studies'):\n"
        "    for name, path in available(kind).items():\n"
        "        print(kind, name, path)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where, *found = run(sys.executable, "-c", program, cwd=tmp_path, env=environment).splitlines()
    assert Path(where).is_relative_to(installed), "the checkout was imported, not the wheel"
    expected = {
        f"{kind} {file.stem} {installed / 'knee_tune' / kind / file.name}"
        for kind in ("search_spaces", "studies")
        for file in (repository / kind).glob("*.yaml")
    }
    assert set(found) == expected
    assert {line.split()[1] for line in found} >= {"digits", "iwslt"}


def test_the_constraints_pin_everything_that_is_asked_for(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert [spec.operator for spec in pin.specifier] == ["=="], line
            assert pin.url is None, line
            pins.setdefault(pin.name, []).append(pin)
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    asked = chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in map(Requirement, asked):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not pinned: make constraints"
        for pin in pins[name]:
            (version,) = (spec.version for spec in pin.specifier)
            assert requirement.specifier.contains(version), f"{pin} against {requirement}"
