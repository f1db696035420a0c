"""The collector of cycles rests while a study is read, and is left as it was."""

import gc

import pytest

from knee_tune.study.collector import uncollected


@uncollected()
def read(*, damaged: bool) -> bool:
    if damaged:
        raise ValueError("damaged")
    return gc.isenabled()


def test_it_rests_and_works_again_also_after_an_error() -> None:
    assert not read(damaged=False)
    assert gc.isenabled()
    with pytest.raises(ValueError, match="damaged"):
        read(damaged=True)
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        read(damaged=False)
        assert not gc.isenabled()
    finally:
        gc.enable()
