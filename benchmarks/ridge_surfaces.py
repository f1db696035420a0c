"""Surfaces whose optimum is known, with noise: what the ridge's statistics are tried on.

Noise has three parts: a seed's luck at all points, a trunk's at all fractions of a seed LR, and a
run's own.
"""

from dataclasses import dataclass

import numpy as np

from knee_tune.stats.estimates import Floats
from knee_tune.stats.surface import Scores

SEED_LRS: Floats = np.geomspace(0.005, 0.128, 9)
FRACTIONS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
PLACES = np.linspace(0, 1, len(SEED_LRS))
"""Of the seed LRs on a log scale."""

SEED_NOISE, TRUNK_NOISE, RUN_NOISE = 0.3, 0.3, 0.5
"""Standard deviations, in percentage points of accuracy."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A surface without noise."""

    optima: Floats
    """(seed LRs): the best fraction, also between those tried."""
    accuracies: Floats
    """(seed LRs, fractions), in percent."""

    def scores(self, seeds: int, rng: np.random.Generator) -> Scores:
        """What a study of all its points would measure."""
        rows, columns = self.accuracies.shape
        noise = (
            rng.normal(0, SEED_NOISE, (seeds, 1, 1))
            + rng.normal(0, TRUNK_NOISE, (seeds, rows, 1))
            + rng.normal(0, RUN_NOISE, (seeds, rows, columns))
        )
        return Scores(
            metric="valid_accuracy",
            direction="maximize",
            seeds=tuple(range(seeds)),
            seed_lrs=SEED_LRS,
            fractions=FRACTIONS,
            values=self.accuracies + noise,
        )


def inverse_relation(rng: np.random.Generator) -> Truth:
    """A random surface whose best fraction falls with the seed LR.

    How far, where and how steeply it falls is random; so is the fall on either side of it: a skewed
    parabola, or a fold that is sharp at the top and straight further down.
    """
    fall = 1 / (1 + np.exp(rng.uniform(4, 14) * (PLACES - rng.uniform(0.3, 0.7))))
    optima = np.clip(rng.uniform(0.8, 1.05) * fall - rng.uniform(0, 0.1), 0.0, FRACTIONS[-1])
    away = FRACTIONS - optima[:, None]
    if rng.random() < 0.5:
        loss = rng.uniform(2, 8) * away**2 * (1 + rng.uniform(-0.4, 0.4) * away)
    else:
        loss = rng.uniform(2, 8) * 0.25 * (np.sqrt(1 + (away / 0.25) ** 2) - 1)
    return _truth(optima, loss)


def flat() -> Truth:
    """The fraction makes no difference."""
    return _truth(np.full(len(SEED_LRS), np.nan), np.zeros((len(SEED_LRS), len(FRACTIONS))))


def same_everywhere() -> Truth:
    """Half of the budget is best at every seed LR."""
    optima = np.full(len(SEED_LRS), 0.5)
    return _truth(optima, 4 * (FRACTIONS - optima[:, None]) ** 2)


def always_long() -> Truth:
    """The longest exploring wins at every seed LR, as on digits without noise and shifts."""
    optima = np.full(len(SEED_LRS), FRACTIONS[-1])
    return _truth(optima, 2 * (optima[:, None] - FRACTIONS))


def fading() -> Truth:
    """Long exploring wins at low seed LRs, and at the highest third nothing makes a difference.

    The hardest case without an inverse relation: the test's error is its nominal 5 %.
    """
    optima = np.full(len(SEED_LRS), FRACTIONS[-1])
    slope = np.clip(3 * (1 - 1.6 * PLACES), 0.0, None)
    return _truth(optima, slope[:, None] * (optima[:, None] - FRACTIONS))


def _truth(optima: Floats, loss: Floats) -> Truth:
    return Truth(optima=optima, accuracies=93 - 6 * (PLACES[:, None] - 0.6) ** 2 - loss)
