"""The study of a training script: what it says to ``join``, under what the command line says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knee_tune.commands.home import Home
from knee_tune.commands.workers import GroupOptions, Looked, look_at
from knee_tune.config.resolve import layer_of, overrides_of, resolve_study
from knee_tune.config.strict_yaml import Document
from knee_tune.config.study import ResolvedStudy
from knee_tune.errors import UserError
from knee_tune.plans.plan import SCRIPT
from knee_tune.scripts.recipe import Joined, ScriptRecipe, subject_of

DECADE = 10.0
"""A seed LR is looked for within this factor of the script's own, either way."""


@contextmanager
def look_at_script(
    home: Home,
    script: Path,
    arguments: Sequence[str],
    options: GroupOptions,
    *,
    settings: Sequence[str] = (),
    **fields: Any,
) -> Iterator[tuple[ResolvedStudy[ScriptRecipe], Looked]]:
    """Run the script up to ``join``, for its study and what that is trained with.

    ``settings`` and ``fields`` as :func:`~knee_tune.config.resolve.resolve_study` reads them; they
    win over what the script says. UserError if it says too little, or cannot be trained.
    """
    if not script.is_file():
        raise UserError(
            f"{script}: no such script; name a file as in `knee-tune run train.py`, or a task with "
            "`task`"
        )
    if options.amp is not None or options.compile:
        raise UserError("`amp`, `compile`: a script decides itself how it computes; leave them out")
    said: dict[str, object] = {"script": str(script.absolute()), "arguments": [*arguments]}
    asked = layer_of(overrides_of(settings, fields)).get("recipe", {})
    with look_at(
        home, SCRIPT, {**said, **asked}, options, logs=f"knee-{subject_of(script)}"
    ) as looked:
        spec = resolve_script(
            said, Joined.model_validate(looked.joined), settings=settings, **fields
        )
        if spec.nproc != options.nproc:
            raise UserError("`settings` nproc: of a script name it with `nproc`")
        yield spec, looked


def resolve_script(
    said: dict[str, object], joined: Joined, *, settings: Sequence[str] = (), **fields: Any
) -> ResolvedStudy[ScriptRecipe]:
    """The study of a script: ``said`` of its file and arguments, and what it said to ``join``."""
    asked = layer_of(overrides_of(settings, fields)).get("recipe", {})
    lr = float(asked.get("seed_lr", joined.seed_lr))
    document = Document(
        label=f"{Path(str(said['script'])).name}, join",
        data={
            "task": SCRIPT,
            "description": "a training script",
            "default_preset": SCRIPT,
            "space": {
                "seed_lr": {"low": lr / DECADE, "high": lr * DECADE},
                "explore_fraction": {"low": 0.0, "high": 0.9, "step": 0.1},
            },
            "presets": {
                SCRIPT: {
                    "description": "as the script says",
                    "recipe": {**said, **joined.settings(asked.get("steps"))},
                }
            },
        },
        lines={},
    )
    return resolve_study(
        space_file=document, recipe_type=lambda _: ScriptRecipe, settings=settings, **fields
    )
