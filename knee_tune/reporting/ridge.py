"""The ridge of a study: the best explore fraction at every seed LR, and how sure that is."""

import numpy as np

from knee_tune.reporting.crossover import crossover_of
from knee_tune.reporting.optima import optima_of
from knee_tune.reporting.recommendation import recommendation_of
from knee_tune.reporting.ridge_words import verdict_of, words_of
from knee_tune.reporting.scores import scores_of, surface_of
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.ridge import Ridge

RESAMPLES = 1000


def ridge_of(record: StudyRecord, *, resamples: int = RESAMPLES) -> Ridge | None:
    """What the complete trials say; None without one. Without resamples it is quick: no intervals.

    The same record gives the same numbers: the bootstrap's random numbers are fixed.
    """
    scores = scores_of(record)
    if scores is None or record.best is None:
        return None
    optima = optima_of(scores, resamples=resamples, rng=np.random.default_rng(0))
    crossover = crossover_of(scores)
    return Ridge(
        surface=surface_of(scores),
        optimal=optima.by_seed_lr,
        spearman=optima.spearman,
        crossover=crossover,
        verdict=verdict_of(crossover, seeds=len(scores.seeds)),
        words=words_of(crossover, optima.by_seed_lr, seeds=len(scores.seeds)),
        recommended=recommendation_of(
            scores, best=record.best.point, default_lr=float(record.spec.recipe["seed_lr"])
        ),
    )
