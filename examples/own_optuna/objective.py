"""An Optuna study and a training loop of one's own, whose trials share their explore phases.

python objective.py
"""

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import knee_tune
from knee_tune.pruners import KneePruner
from knee_tune.schedules import KneeLR

STEPS, EVALUATE_EVERY, BATCH, SEED = 300, 30, 32, 0
torch.set_num_threads(1)  # fastest for so small a network, and the bits of sums depend on it

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)


def batch_of(step: int) -> torch.Tensor:
    """Rows of step 1, 2, ...: drawn from seed and step alone, so a run may begin at any step."""
    drawn = torch.Generator().manual_seed(1_000_003 * SEED + step)
    return torch.randint(1200, (BATCH,), generator=drawn)


def objective(trial: optuna.Trial, cache: knee_tune.TrunkCache | None) -> float:
    """The loss of the digits that are held out, after one training."""
    knee = knee_tune.suggest_knee(
        trial, total_steps=STEPS, seed_lr=(0.01, 1.0), explore=(0.1, 0.9), step=0.2, per_decade=3
    )
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=knee.seed_lr, momentum=0.9)
    scheduler = KneeLR(optimizer, total_steps=STEPS, explore_steps=knee.explore_steps)

    key = {"width": 64, "batch": BATCH, "seed": SEED}  # what else decides the training
    reported: dict[int, float] = {}
    found = cache.nearest(knee, key=key) if cache else None
    first = found.step + 1 if found else 1
    trial.set_user_attr("first_step", first)
    if found:
        model.load_state_dict(found.state["model"])
        optimizer.load_state_dict(found.state["optimizer"])
        scheduler.load_state_dict(found.state["scheduler"])
        reported = found.state["reported"]
    for step, loss in reported.items():  # as if they were trained here
        tell(trial, step, loss)

    for step in range(first, STEPS + 1):
        rows = batch_of(step)
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % EVALUATE_EVERY == 0:
            with torch.no_grad():
                reported[step] = F.cross_entropy(model(images[1200:]), labels[1200:]).item()
            tell(trial, step, reported[step])
            if cache and step <= knee.knee_step:  # before the decay: others may branch here
                parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
                state = {name: part.state_dict() for name, part in parts.items()}
                cache.keep(knee, step, state | {"reported": reported}, key=key)
    return reported[STEPS]


def tell(trial: optuna.Trial, step: int, loss: float) -> None:
    """Report a loss; the trial ends here if KneePruner says so."""
    trial.report(loss, step)
    if trial.should_prune():
        raise optuna.TrialPruned


if __name__ == "__main__":
    study = optuna.create_study(pruner=KneePruner())
    cache = knee_tune.TrunkCache("trunks", limit=10**9)
    study.optimize(lambda trial: objective(trial, cache), n_trials=30)
