"""Which cluster Ray is to join: what is wrong with that is said before Ray is started."""

import sys

import pytest

from knee_tune.errors import UserError
from knee_tune.workers.ray_runner import RayRunner


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "ray://127.0.0.1:1", "ray://127.0.0.1:1/x", "127.0.0.1", "h:x", "[::1]:1", ""],
)
def test_an_address_where_nobody_answers_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"^`ray_address` .*: nobody answers there .*; give auto"):
        RayRunner("any:job", cluster=address)


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"`runner` ray: .*; pip install 'knee-tune\[ray\]'"):
        RayRunner("any:job")
