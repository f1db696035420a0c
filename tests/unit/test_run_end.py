"""A study that is done is done, whatever becomes of its model in the registry."""

import errno
import os

import pytest

from knee_tune.commands import run
from knee_tune.errors import MachineError, UserError
from knee_tune.study.patience import StorageGoneError


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said when registering ends with this error."""

    def register(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "_register", register)
    registered, why = run._try_to_register(None, None, "")  # type: ignore[arg-type]
    assert registered is None
    return why


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("--tracking-uri x: no"), "not registered: --tracking-uri x: no"),
        (MachineError("it does not answer"), "not registered: it does not answer"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x"),
            "not registered: /tmp/x: No space left on device",
        ),
        (KeyError("x"), "not registered (KeyError: 'x'); knee-tune register shows where"),
    ],
)
def test_why_a_model_is_not_registered(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fail_with(error, monkeypatch) == said


def test_a_storage_that_is_gone_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageGoneError):
        fail_with(StorageGoneError("`storage` x: away"), monkeypatch)
