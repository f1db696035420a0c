"""Where ``--stop-when-flat`` ends a search, and what is lost against going on.

    python -m benchmarks.flat [--searches 12] [--trials 30] [--worth 0.3 0.1 0.03]

Searches with ``gp`` on the surfaces of ``benchmarks.warm_start``. For each share of the noise
between random seeds that a whole run has to be expected to improve: trials until the search ends,
and the regret then, without luck, against that after all its trials.
"""

import argparse
import warnings

import numpy as np
import optuna
import torch
from optuna.exceptions import ExperimentalWarning

from benchmarks.warm_start import AXES, FRACTIONS, LUCK, SEED_LRS, regrets, surface
from knee_tune.stats.estimates import Floats
from knee_tune.study.flat import outlook_of
from knee_tune.study.samplers import make_sampler


def one(seed: int, *, trials: int) -> tuple[Floats, Floats, Floats]:
    """Of one search, after each trial: regret, expected improvement over the noise, the noise."""
    rng = np.random.default_rng([seed, 99])
    centre = SEED_LRS[int(rng.integers(1, 8))]
    seen, truth = surface(rng.uniform(2, 6), level=93.8, rng=rng)
    sampler = make_sampler("gp", seed=seed, axes=AXES, start="bracket", centre=centre)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    found: list[tuple[float, float]] = []
    for _ in range(trials):
        trial = study.ask()
        lr, fraction = (axis.suggest(trial, name) for name, axis in AXES.items())
        study.tell(trial, seen[SEED_LRS.index(lr), FRACTIONS.index(fraction)])
        outlook = outlook_of(study, AXES)
        found.append(
            (np.inf, np.nan)
            if outlook is None
            else (outlook.improvement / outlook.noise, outlook.noise)
        )
    ratios, noises = np.array(found).T
    return regrets(study, truth), ratios, noises


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--searches", type=int, default=12)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--worth", type=float, nargs="+", default=[0.3, 0.1, 0.05, 0.03])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    searches = [one(seed, trials=chosen.trials) for seed in range(chosen.searches)]
    full = np.mean([regret[-1] for regret, _, _ in searches])
    print(f"regret after {chosen.trials} trials: {full:.3f}; noise {LUCK}, estimated as", end=" ")
    print(np.round([np.nanmedian(noises) for _, _, noises in searches], 2))
    for worth in chosen.worth:
        ends = [
            int(np.append(np.flatnonzero(ratios < worth), chosen.trials - 1)[0])
            for _, ratios, _ in searches
        ]
        lost = np.array([regret[end] for end, (regret, _, _) in zip(ends, searches, strict=True)])
        error = lost.std(ddof=1) / np.sqrt(len(lost))
        print(
            f"{worth:.2f} of the noise: {np.mean(ends) + 1:.1f} trials ({min(ends) + 1} to "
            f"{max(ends) + 1}), regret {lost.mean():.3f} ({error:.3f})"
        )


if __name__ == "__main__":
    main()
