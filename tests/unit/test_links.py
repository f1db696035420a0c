"""What people are told to open or to type: nobody's password is in it."""

from pathlib import Path

import pytest

from knee_tune.commands.home import Home, Places
from knee_tune.tracking.store import model_url, run_link, ui_command

SERVER = "http://ann:secret@mlflow:5000"
DATABASE = "postgresql://ann:secret@host/db"


@pytest.mark.parametrize(
    "shown",
    [
        run_link(SERVER, experiment_id="1", run_id="2").url,
        model_url(SERVER, name="m", version=1),
        ui_command(SERVER),
        ui_command(DATABASE),
        Places(home=Home(Path("home")), storage_url=DATABASE, tracking_uri=SERVER).command(
            "register", "study", tracking=True
        ),
    ],
)
def test_a_password_is_not_shown(shown: str) -> None:
    assert "secret" not in shown
    assert "ann@" in shown
