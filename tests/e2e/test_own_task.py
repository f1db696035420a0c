"""A task in a file of one's own, with a helper beside it: from the search to the model elsewhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import waiting
from tests.command_line import REPOSITORY, drive_here, environment, knee_tune

NET = """
from torch import nn

def net(width):
    return nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, 3))
"""

LOAD = """
import json, sys
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/knee-tune-wine@candidate")
print(json.dumps(model.predict(numpy.zeros((3, 13), dtype="float32"))))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example, its network in another file."""
    folder = tmp_path / "mine"
    folder.mkdir()
    source = (REPOSITORY / "examples" / "own_task" / "my_task.py").read_text()
    inline = "nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, 3))"
    assert inline in source
    source = source.replace(inline, "my_net.net(width)")
    (folder / "my_task.py").write_text(
        source.replace("import knee_tune\n", "import knee_tune\nimport my_net\n")
    )
    (folder / "my_net.py").write_text(NET)
    return folder


def test_it_is_searched_reported_replayed_registered_and_loaded_elsewhere(
    folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    asked = ("run", "--task", f"{folder}/my_task.py:Wine", "--nproc", "2", "--sampler", "random")
    asked = (*asked, "--set", "recipe.epochs=4", "--set", "recipe.width=8")
    done = knee_tune(*asked, "--home", home, "--trials", "2")
    assert "knee-wine-4ep: 2 complete" in done.stdout
    assert "registered knee-tune-wine version 1 as candidate" in done.stdout

    assert "same, bit for bit" in knee_tune("replay", "--home", home).stdout
    best = json.loads(drive_here("best", "--json", "--home", home).stdout)
    drive_here("status", "--home", home)
    report = json.loads(
        drive_here("report", "--format", "json", "--out", "-", "--home", home).stdout
    )
    assert report["task"] == "wine"

    # torchrun, too, finds the file; and the same run is the same whoever starts its ranks.
    other = tmp_path / "other-home"
    knee_tune(
        *(*asked, "--home", other, "--trials", "2", "--runner", "torchrun"),
        *("--tracking-uri", "none", "--no-register"),
    )
    again = json.loads(drive_here("best", "--json", "--home", other).stdout)
    assert again["value"] == best["value"]

    shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, f"sqlite:///{home}/mlflow.db"],
        cwd=elsewhere,
        env=environment(PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=waiting.COMMAND,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    (answers,) = loaded.stdout.splitlines()
    assert len(json.loads(answers)) == 3
