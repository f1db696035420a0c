"""What ``knee-tune check`` says of two runs, and what it finds that nobody saves."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from knee_tune.scripts.differences import PARTS, Difference, first_difference
from knee_tune.scripts.watched import digest, forgotten

EMPTY: dict[str, dict[str, str]] = {part: {} for part in PARTS}


def run(*, ranks: int = 1, **last: dict[str, str]) -> list[dict[int, dict[str, dict[str, str]]]]:
    """Two steps; ``last`` is what the highest rank has at the end of the second one."""
    every = [{1: EMPTY, 2: EMPTY} for _ in range(ranks)]
    every[-1] = {1: EMPTY, 2: EMPTY | last}
    return every


def found(
    one: dict[str, dict[str, str]], other: dict[str, dict[str, str]], *, of_task: bool = False
) -> Difference | None:
    runs = run(ranks=2, **one), run(ranks=2, **other)
    return first_difference(*runs, steps=range(1, 3), of_task=of_task)


def test_the_same_bits_are_no_difference() -> None:
    assert found({"model": {"weight": "a"}}, {"model": {"weight": "a"}}) is None


def test_what_comes_first_is_named_with_its_step_and_rank() -> None:
    difference = found(
        {"inputs": {"forward 1": "a"}, "model": {"weight": "a"}},
        {"inputs": {"forward 1": "b"}, "model": {"weight": "b"}},
    )
    assert difference is not None
    assert (difference.step, difference.rank, difference.what) == (2, 1, "another batch")


def test_what_was_reported_is_told_as_numbers() -> None:
    difference = found({"reported": {"valid_loss": "0.5"}}, {"reported": {"valid_loss": "0.6"}})
    assert difference is not None
    assert difference.what == "valid_loss was reported as 0.5 and as 0.6"


def test_what_only_one_run_has_made_by_now_tells_nothing() -> None:
    assert found({"forgotten": {"ema (EMA)": "a"}}, {}) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("self.ema (EMA)", "give join state={'ema': self.ema}"),
        ("object 1 (GradScaler)", "give join state={...: ...}"),
        ("rng (numpy.random.Generator)", "replace rng (numpy.random.Generator) by a torch"),
    ],
)
def test_what_nobody_saves_is_the_advice(name: str, said: str) -> None:
    difference = found(
        {"model": {"weight": "a"}, "forgotten": {name: "a"}},
        {"model": {"weight": "b"}, "forgotten": {name: "b"}},
    )
    assert difference is not None
    assert said in difference.advice(restarted=True, ranks=1)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("of_task", [False, True])
def test_every_difference_has_an_advice(part: str, restarted: bool, of_task: bool) -> None:
    difference = found({part: {"one": "a"}}, {part: {"one": "b"}}, of_task=of_task)
    assert difference is not None
    said = difference.what + difference.advice(restarted=restarted, ranks=3)
    assert not of_task or part == "generators" or "join" not in said  # a task notes no generators


class Holder:
    """A script's trainer."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu")


def test_objects_have_the_names_of_the_scripts_variables() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper, head = nn.Sequential(model), model[:1]
    ema = torch.optim.swa_utils.AveragedModel(model)
    trainer, rng, saved = Holder(), np.random.default_rng(1), torch.Generator()
    names = forgotten([*locals().items()], model, [optimizer, saved])
    mine = {name for name in names if not name.startswith(("object", "self", "request"))}
    assert {
        "ema (AveragedModel)",
        "trainer.scaler (GradScaler)",
        "rng (numpy.random.Generator)",
    } <= mine
    assert not {name for name in mine if name.startswith(("wrapper", "head", "model", "saved"))}
    assert all(each is not None for each in (ema, wrapper, head, trainer, rng))


def test_what_is_within_something_saved_is_saved() -> None:
    trainer = Holder()
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(1, 1))
    own = {"average": average, "trainer": trainer}
    assert not [
        name
        for name in forgotten(own.items(), nn.Linear(1, 1), [average, trainer])
        if name.startswith(("average", "trainer"))
    ]


def test_what_has_no_name_is_found_all_the_same() -> None:
    def hidden() -> Any:
        scaler = torch.amp.GradScaler("cpu")
        return lambda: scaler

    keeps = hidden()
    names = forgotten([], nn.Linear(1, 1), [])
    assert any(value is keeps() for value in names.values())
    assert all(name.startswith("object ") for name in names)


def test_a_digest_is_of_the_bits() -> None:
    ones = torch.ones(2, dtype=torch.bfloat16)
    assert digest(ones) == digest(ones.clone()) != digest(ones.float())
    assert digest({"a": [ones, 1]}) != digest({"a": [ones, 2]})
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))
    assert digest(object()) == digest(object()), "its address does not count"
