"""The answer as a setting of other projects: their own formulas, fed with it, give our LRs."""

import json
import math
import shlex
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
import yaml

from knee_tune.cli.look import Setting as Offered
from knee_tune.schedules import Decay, Knee, learning_rates
from knee_tune.schedules.settings import PROJECTS, Format, setting

LR = 0.1 + 0.2  # 0.30000000000000004: every digit counts

Theirs = Callable[[int], float]
"""The LR of a project at its own step, 0..total_steps - 1."""

PHASES = {
    "all phases": (20, 4, 9),
    "no warmup": (20, 0, 12),
    "no explore": (20, 4, 0),
    "one step of decay": (20, 4, 15),
    "no decay": (20, 4, 16),
    "nothing but explore": (20, 0, 20),
    "a seventh": (700, 30, 571),
}


def knees() -> Iterator[Any]:
    for name, (total, warmup, explore) in PHASES.items():
        for final in (0.0, 0.1):
            yield pytest.param(
                {
                    "seed_lr": LR,
                    "total_steps": total,
                    "warmup_steps": warmup,
                    "explore_steps": explore,
                    "final": final,
                },
                id=f"{name}, final {final}",
            )


def flags(text: str) -> dict[str, str]:
    """What a shell makes of a command's flags."""
    words = shlex.split(text.replace("\\\n", " "))
    return {
        name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }


def number(text: Any) -> float:
    """As an option that is a float reads it."""
    return float(text)


def left(decay: str, progress: float) -> float:
    """What is left of the way down, by every project's name of a decay."""
    match decay:
        case "linear":
            return 1 - progress
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "1-sqrt" | "sqrt" | "minus_sqrt":
            return 1 - math.sqrt(progress)
        case "exponential":
            return 2 * math.pow(0.5, progress) - 1
    raise AssertionError(f"no project knows {decay}")


def hf(text: str) -> Theirs:
    """``get_wsd_schedule`` of transformers; its warmup starts at the final LR."""
    arguments = eval(f"dict({text})")
    kwargs = arguments["lr_scheduler_kwargs"]
    warmup, decay = arguments["warmup_steps"], kwargs["num_decay_steps"]
    stable = arguments["max_steps"] - warmup - decay
    low = kwargs["min_lr_ratio"]
    assert arguments["lr_scheduler_type"] == "warmup_stable_decay"

    def lr(step: int) -> float:
        if step < warmup:
            share = step / warmup
        elif step < warmup + stable:
            share = 1.0
        else:
            share = left(kwargs["decay_type"], (step - warmup - stable) / decay)
        return number(arguments["learning_rate"] * (low + (1 - low) * share))

    return lr


def torchtitan(text: str) -> Theirs:
    """``linear_warmup_stable_decay``: a stable step is put in, so that the last LR is not 0."""
    values = flags(text)
    of = {name.removeprefix("lr_scheduler."): value for name, value in values.items()}
    total, warmup = int(values["training.steps"]), int(of["warmup_steps"])
    decay = round(total * number(of["decay_ratio"]))
    begin, low = total + 1 - decay, number(of["min_lr_factor"])

    def lr(step: int) -> float:
        if step < warmup:
            factor = (step + 1) / warmup
        elif step < begin:
            factor = 1.0
        else:
            factor = low + (1 - low) * left(of["decay_type"], (step + 1 - begin) / decay)
        return number(values["optimizer.lr"]) * factor

    return lr


def megatron(text: str) -> Theirs:
    """``OptimizerParamScheduler.get_lr``, counted in iterations."""
    values = flags(text)
    high, low = number(values["lr"]), number(values["min-lr"])
    warmup, end = int(values["lr-warmup-iters"]), int(values["lr-decay-iters"])
    decay, total = int(values["lr-wsd-decay-iters"]), int(values["train-iters"])
    assert values["lr-decay-style"] == "WSD"
    assert warmup < end == total
    assert low <= high

    def lr(step: int) -> float:
        if warmup > 0 and step <= warmup:
            return high * step / warmup
        if step <= end - decay:
            return high
        share = left(values["lr-wsd-decay-style"], (step - (end - decay)) / decay)
        return low + (high - low) * share

    return lr


def nanotron(text: str) -> Theirs:
    """``lr_scheduler_builder``, with what it does to a schedule without warmup and decay."""
    values = yaml.safe_load(text)
    of = values["optimizer"]["learning_rate_scheduler"]
    high, low = float(of["learning_rate"]), float(of["min_decay_lr"])
    begin, warmup = int(of["lr_decay_starting_step"]), int(of["lr_warmup_steps"])
    assert values["tokens"]["train_steps"] >= begin

    def lr(step: int) -> float:
        if warmup == 0 and of["lr_decay_steps"] == 0:
            return high * high
        if step <= warmup:
            return high * step / max(warmup, 1) if of["lr_warmup_style"] == "linear" else high
        if step < begin:
            return high
        if step < begin + of["lr_decay_steps"]:
            share = left(of["lr_decay_style"], (step - begin) / of["lr_decay_steps"])
            return low + (high - low) * share
        return low

    return lr


READ: dict[Format, Callable[[str], Theirs]] = {
    "hf": hf,
    "torchtitan": torchtitan,
    "megatron": megatron,
    "nanotron": nanotron,
}


def lr_before(knee: Knee, step: int) -> float:
    """The LR of the update before ``step``; before the first one, where a warmup starts."""
    if step > 1:
        return knee.lr(step - 1)
    return 0.0 if knee.warmup_steps else knee.seed_lr


@pytest.mark.parametrize("arguments", knees())
@pytest.mark.parametrize("form", READ)
def test_a_project_has_our_lrs_one_step_later(form: Format, arguments: dict[str, Any]) -> None:
    for decay in PROJECTS[form].decays:
        knee = Knee(**arguments, decay=decay)
        text = setting(knee, form).text
        theirs = READ[form](text)
        for step in range(1, knee.total_steps + 1):
            ours = lr_before(knee, step)
            if step <= knee.warmup_steps and form == "torchtitan":
                ours = knee.lr(step)  # its warmup is not late
            if step <= knee.warmup_steps and form == "hf" and knee.knee_step < knee.total_steps:
                ours = knee.final * LR + (1 - knee.final) * ours
            assert theirs(step - 1) == pytest.approx(ours, rel=1e-12, abs=1e-15), (decay, step)
        assert repr(LR) in text


def test_the_note_tells_the_lrs_that_differ() -> None:
    knee = Knee(seed_lr=0.01, total_steps=100, warmup_steps=10, explore_steps=40)
    late = "the last update has LR 0.0002 instead of 0."
    assert setting(knee, "megatron").note == (
        f"Its schedule is one step later: the first update has LR 0 instead of 0.001, {late}"
    )
    assert setting(knee, "torchtitan").note.startswith(
        f"Its schedule is one step later in the decay: {late}"
    )
    constant = Knee(seed_lr=0.01, total_steps=100, explore_steps=100)
    assert setting(constant, "hf").note == ""


@pytest.mark.parametrize("decay", get_args(Decay))
def test_our_own_forms_are_the_schedule_itself(decay: Decay) -> None:
    power: dict[str, Any] = {"decay_power": 1.5} if decay == "power" else {}
    knee = Knee(
        seed_lr=LR, total_steps=20, warmup_steps=3, explore_steps=7, decay=decay, final=0.1, **power
    )
    assert Knee(**yaml.safe_load(setting(knee, "yaml").text)) == knee
    assert Knee(**json.loads(setting(knee, "json").text)) == knee

    model = torch.nn.Linear(1, 1)
    pasted: dict[str, Any] = {"YourOptimizer": torch.optim.SGD, "model": model}
    exec(setting(knee, "torch").text, pasted)
    assert driven(pasted["optimizer"], pasted["scheduler"], 20) == learning_rates(knee)

    exec(setting(knee, "lightning").text, pasted)
    answer = pasted["configure_optimizers"](model)
    assert answer["lr_scheduler"]["interval"] == "step"
    scheduler = answer["lr_scheduler"]["scheduler"]
    assert driven(answer["optimizer"], scheduler, 20) == learning_rates(knee)


def driven(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int
) -> list[float]:
    """The LR of every update of a loop."""
    lrs = []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


@pytest.mark.parametrize(
    ("form", "decay", "said"),
    [
        ("hf", "exponential", "linear); torch, megatron, lightning, yaml and json have it"),
        ("torchtitan", "power", "1-sqrt); torch, lightning, yaml and json have it"),
    ],
)
def test_a_project_without_the_decay_refuses_and_names_who_has_it(
    form: Format, decay: Decay, said: str
) -> None:
    knee = Knee(seed_lr=0.1, total_steps=10, explore_steps=5, decay=decay)
    with pytest.raises(ValueError, match="it has no decay") as refused:
        setting(knee, form)
    assert str(refused.value).endswith(
        f"no decay '{decay}' but linear, cosine and 1-sqrt (the nearest is {said}"
    )


def test_every_format_is_offered() -> None:
    assert list(PROJECTS) == list(get_args(Format)) == list(get_args(Offered))


@pytest.mark.parametrize("decay", PROJECTS["hf"].decays)
def test_transformers_itself_has_these_lrs(decay: Decay) -> None:
    optimization = pytest.importorskip(
        "transformers.optimization", reason="transformers is missing: only its formula is compared"
    )
    knee = Knee(seed_lr=LR, total_steps=20, warmup_steps=4, explore_steps=6, decay=decay, final=0.1)
    text = setting(knee, "hf").text
    arguments = eval(f"dict({text})")
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=arguments["learning_rate"])
    scheduler = optimization.get_scheduler(
        arguments["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=arguments["warmup_steps"],
        num_training_steps=arguments["max_steps"],
        scheduler_specific_kwargs=arguments["lr_scheduler_kwargs"],
    )
    lrs = driven(optimizer, scheduler, knee.total_steps)
    assert lrs == pytest.approx([hf(text)(step) for step in range(20)], rel=1e-12)
