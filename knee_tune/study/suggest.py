"""A Knee schedule as parameters of one's own Optuna study."""

from collections.abc import Sequence
from typing import cast

import optuna

from knee_tune.config.recipe import DEFAULT_PER_DECADE, ExploreFractionSpace, SeedLRSpace
from knee_tune.schedules import DECAYS, Decay, Knee
from knee_tune.schedules.schedule import fitted_knee
from knee_tune.study.pruners import KneePruner
from knee_tune.study.samplers import Axis

Bounds = tuple[float, float]


def suggest_knee(
    trial: optuna.Trial | optuna.trial.FixedTrial,
    *,
    total_steps: int,
    seed_lr: Bounds,
    explore: Bounds,
    per_decade: int = DEFAULT_PER_DECADE,
    step: float = 0.1,
    warmup_steps: int = 0,
    decay: Decay | Sequence[Decay] = "linear",
    final: float = 0.0,
    replicates: int = 1,
) -> Knee:
    """Suggest a trial's schedule of ``total_steps`` and describe it to ``KneePruner``.

    The parameters are ``seed_lr``, of ``per_decade`` points a factor of ten from the lower bound
    on, and ``explore_fraction``, in steps of ``step`` from the lower bound on. LRs recur, so that
    trials can share trunks: what is stored is what Optuna's sampler said, and what the schedule has
    is the nearest point. ``suggest_knee`` of ``optuna.trial.FixedTrial(study.best_params)``, asked
    for the same, is the best trial's schedule. Of several shapes of the ``decay`` the parameter
    ``decay`` is one. Warmup is in steps; where both do not fit, the explore phase gives way.
    ``replicates`` as in ``KneePruner.describe``. ValueError for bounds that make no sense.
    """
    for name, (low, high), lowest in (("seed_lr", seed_lr, 1e-12), ("explore", explore, 0.0)):
        if not lowest <= low < high:
            raise ValueError(f"{name} must be (low, high) with low < high, got ({low}, {high})")
    shapes = (decay,) if isinstance(decay, str) else tuple(decay)
    if not shapes or not {*shapes} <= {*DECAYS}:
        raise ValueError(f"decay must be of {', '.join(DECAYS)}, got {decay!r}")
    lrs = SeedLRSpace(low=seed_lr[0], high=seed_lr[1], per_decade=per_decade).points(seed_lr[0])
    fractions = ExploreFractionSpace(low=explore[0], high=explore[1], step=step).points()
    lr_axis = Axis(lrs, log=True)
    said = trial.suggest_float("seed_lr", lrs[0], lrs[-1], log=True)
    fraction = trial.suggest_float("explore_fraction", fractions[0], fractions[-1], step=step)
    shape = shapes[0]
    if len(shapes) > 1:
        shape = cast(Decay, trial.suggest_categorical("decay", shapes))
    knee = fitted_knee(
        seed_lr=min(lrs, key=lambda lr: lr_axis.distance(lr, said)),
        total_steps=total_steps,
        explore_steps=round(fraction * total_steps),
        warmup_steps=warmup_steps,
        decay=shape,
        final=final,
    )
    KneePruner.describe(trial, knee, replicates=replicates)
    return knee
