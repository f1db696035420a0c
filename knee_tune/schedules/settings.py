"""A Knee schedule as other projects write it down: exact names and values, ready to paste.

Read from the sources of transformers 5.24, torchtitan 0.2.2, Megatron-LM (August 2026) and nanotron
(April 2026). None of them writes a power decay, and most have the LR of an update one step late:
torch's ``LambdaLR`` counts from 0.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import yaml

from knee_tune.schedules.decays import DECAYS, DEFAULT_POWER, Decay, fraction_at
from knee_tune.schedules.schedule import Knee, Phased

Format = Literal["torch", "hf", "torchtitan", "megatron", "nanotron", "lightning", "yaml", "json"]


class Setting(NamedTuple):
    """What to paste into a project of that title, and what to know of it."""

    title: str
    text: str
    note: str = ""


class _Project(NamedTuple):
    title: str
    decays: Mapping[Decay, str]
    """Its names of the decays that it has."""
    write: Callable[[Knee, str], tuple[str, str]]
    """Text and note, from a schedule and the project's name of its decay."""


def setting(knee: Knee | Phased, form: Format) -> Setting:
    """``knee`` as the project ``form`` writes it.

    ValueError if it has no such decay: what it has, which of them is nearest, and who has it.
    """
    project = PROJECTS[form]
    if isinstance(knee, Phased):
        raise ValueError(
            f"the schedule has {len(knee.phases)} phases, and a setting is of one Knee; write each "
            "phase by hand"
        )
    if not _decay_steps(knee):  # then nothing is said by how it would decay
        knee = replace(knee, decay="linear", final=0.0, decay_power=DEFAULT_POWER)
    if knee.decay not in project.decays:
        others = [name for name, each in PROJECTS.items() if knee.decay in each.decays]
        raise ValueError(
            f"it has no decay {knee.decay!r} but {_listed(project.decays)} (the nearest is "
            f"{_nearest(knee, project.decays)}); {_listed(others)} have it"
        )
    return Setting(project.title, *project.write(knee, project.decays[knee.decay]))


def _nearest(knee: Knee, decays: Iterable[Decay]) -> Decay:
    """The decay whose LRs are never far from those of ``knee``: the least largest difference."""

    def distance(decay: Decay) -> float:
        return max(
            abs(
                fraction_at(step / 100, decay=knee.decay, power=knee.decay_power)
                - fraction_at(step / 100, decay=decay)
            )
            for step in range(101)
        )

    return min(decays, key=distance)


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"


def _decay_steps(knee: Knee) -> int:
    return knee.total_steps - knee.knee_step


def _final_lr(knee: Knee) -> float:
    """The LR that the decay ends at."""
    return knee.seed_lr * knee.final


def _late(knee: Knee, *, first: float | None, where: str = "") -> str:
    """How a schedule differs that is one step late: the LRs of its first and its last update.

    ``first`` is the LR of its first update, unless that is no other than in ``knee``.
    """
    differs = []
    if knee.warmup_steps and first is not None:
        differs.append(f"the first update has LR {first:.3g} instead of {knee.lr(1):.3g}")
    if _decay_steps(knee):
        before, last = knee.lr(max(1, knee.total_steps - 1)), knee.lr(knee.total_steps)
        differs.append(f"the last update has LR {before:.3g} instead of {last:.3g}")
    return f"Its schedule is one step later{where}: {', '.join(differs)}." if differs else ""


def _arguments(values: Mapping[str, Any], indent: str = "") -> str:
    """Keyword arguments of Python, a line each; their values look as they do in JSON."""
    return "\n".join(f"{indent}{name}={json.dumps(value)}," for name, value in values.items())


def _flags(values: Mapping[str, Any]) -> str:
    """Flags of a shell's command, a line each."""
    return " \\\n".join(f"--{name} {value}" for name, value in values.items())


def _knee_arguments(knee: Knee) -> dict[str, Any]:
    """What :class:`Knee` is made of, and so its torch scheduler too, but for the seed LR."""
    steps = {name: getattr(knee, name) for name in ("total_steps", "warmup_steps", "explore_steps")}
    power = {"decay_power": knee.decay_power} if knee.decay == "power" else {}
    return {**steps, "decay": knee.decay, "final": knee.final, **power}


def _as_torch(knee: Knee, decay: str) -> tuple[str, str]:
    text = (
        "from knee_tune.schedules import KneeLR\n\n"
        f"optimizer = YourOptimizer(model.parameters(), lr={knee.seed_lr!r})\n"
        f"scheduler = KneeLR(\n    optimizer,\n{_arguments(_knee_arguments(knee), '    ')}\n)"
    )
    return text, "Call scheduler.step() after every update, not every epoch."


def _as_lightning(knee: Knee, decay: str) -> tuple[str, str]:
    inner = " " * 8
    text = (
        "from knee_tune.schedules import KneeLR\n\n\n"
        "def configure_optimizers(self):\n"
        f"    optimizer = YourOptimizer(self.parameters(), lr={knee.seed_lr!r})\n"
        f"    scheduler = KneeLR(\n{inner}optimizer,\n"
        f"{_arguments(_knee_arguments(knee), inner)}\n    )\n"
        '    return {"optimizer": optimizer, '
        '"lr_scheduler": {"scheduler": scheduler, "interval": "step"}}'
    )
    return text, f"A method of the module; train it with Trainer(max_steps={knee.total_steps})."


def _as_hf(knee: Knee, decay: str) -> tuple[str, str]:
    values = {
        "learning_rate": knee.seed_lr,
        "max_steps": knee.total_steps,
        "warmup_steps": knee.warmup_steps,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_decay_steps": _decay_steps(knee),
            "decay_type": decay,
            "min_lr_ratio": knee.final,
        },
    }
    # Its warmup starts at the final LR.
    return _arguments(values), _late(knee, first=_final_lr(knee))


def _as_torchtitan(knee: Knee, decay: str) -> tuple[str, str]:
    values = {
        "training.steps": knee.total_steps,
        "optimizer.lr": knee.seed_lr,
        "lr_scheduler.warmup_steps": knee.warmup_steps,
        "lr_scheduler.decay_ratio": _decay_steps(knee) / knee.total_steps,
        "lr_scheduler.decay_type": decay,
        "lr_scheduler.min_lr_factor": knee.final,
    }
    names = (
        "After 0.2.2 the LR is set in the Python configuration, as in default_adamw(lr=...); "
        "before 0.2.0 min_lr_factor is called lr_min."
    )
    late = _late(knee, first=None, where=" in the decay")
    return _flags(values), f"{late} {names}".strip()


def _as_megatron(knee: Knee, decay: str) -> tuple[str, str]:
    values = {
        "train-iters": knee.total_steps,
        "lr": knee.seed_lr,
        "min-lr": _final_lr(knee),
        "lr-decay-style": "WSD",
        "lr-decay-iters": knee.total_steps,
        "lr-warmup-iters": knee.warmup_steps,
        "lr-wsd-decay-iters": _decay_steps(knee),
        "lr-wsd-decay-style": decay,
    }
    return _flags(values), _late(knee, first=0.0)


def _as_nanotron(knee: Knee, decay: str) -> tuple[str, str]:
    scheduler = {
        "learning_rate": knee.seed_lr,
        "lr_warmup_steps": knee.warmup_steps,
        # A linear warmup of no steps would begin with an update at LR 0.
        "lr_warmup_style": "linear" if knee.warmup_steps else "constant",
        "lr_decay_style": decay,
        "lr_decay_starting_step": knee.knee_step,
        # Without a step of decay it multiplies the LR by itself; one after the end is never made.
        "lr_decay_steps": max(1, _decay_steps(knee)),
        "min_decay_lr": _final_lr(knee),
    }
    values = {
        "tokens": {"train_steps": knee.total_steps},
        "optimizer": {"learning_rate_scheduler": scheduler},
    }
    return _as_yaml_text(values), _late(knee, first=0.0)


def _as_yaml_text(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False).rstrip()


def _plain(knee: Knee) -> tuple[dict[str, Any], str]:
    fall = f"falls over the {_decay_steps(knee):,} steps after step {knee.knee_step:,}"
    return (
        {"seed_lr": knee.seed_lr, **_knee_arguments(knee)},
        "The arguments of knee_tune.schedules.Knee. The LR "
        + (f"{fall}." if _decay_steps(knee) else "never falls."),
    )


def _as_yaml(knee: Knee, decay: str) -> tuple[str, str]:
    values, note = _plain(knee)
    return _as_yaml_text(values), note


def _as_json(knee: Knee, decay: str) -> tuple[str, str]:
    values, note = _plain(knee)
    return json.dumps(values, indent=2), note


_EVERY: Mapping[Decay, str] = {decay: decay for decay in DECAYS}
_THREE: Mapping[Decay, str] = {"linear": "linear", "cosine": "cosine", "1-sqrt": "1-sqrt"}

PROJECTS: Mapping[Format, _Project] = {
    "torch": _Project("PyTorch", _EVERY, _as_torch),
    "hf": _Project("Hugging Face Trainer (TrainingArguments)", _THREE, _as_hf),
    "torchtitan": _Project("torchtitan", {**_THREE, "1-sqrt": "sqrt"}, _as_torchtitan),
    "megatron": _Project(
        "Megatron-LM",
        {**_THREE, "1-sqrt": "minus_sqrt", "exponential": "exponential"},
        _as_megatron,
    ),
    "nanotron": _Project("nanotron", _THREE, _as_nanotron),
    "lightning": _Project("Lightning", _EVERY, _as_lightning),
    "yaml": _Project("YAML", _EVERY, _as_yaml),
    "json": _Project("JSON", _EVERY, _as_json),
}
"""Every format, in the order in which they are offered."""
