"""The optimizers a recipe may name, and how LRs are written into them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from knee_tune.config.recipe import Optimizer
from knee_tune.errors import UserError
from knee_tune.schedules import Cosine, Knee, KneeLR, Schedule
from knee_tune.tasks.tabular.recipe import DigitsRecipe
from knee_tune.tasks.tabular.task import DigitsTask
from knee_tune.training import optimizer as optimizers
from knee_tune.training.optimizer import (
    build_optimizer,
    optimizer_of,
    step_each,
    take_up,
    write_lr,
    write_lrs,
)

OF_TORCH = ("sgd", "adam", "adamw", "radam", "nadam", "adafactor", "muon")
OF_TIMM = ("lamb", "lion")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, number: int, lr: float) -> None:
    """Train one step on words that depend on its number."""
    words = torch.randint(5, (8,), generator=torch.Generator().manual_seed(number))
    write_lr(optimizer, lr)
    optimizer.zero_grad()
    (model(words).squeeze(1) - words.sin()).square().mean().backward()
    optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def needs_timm(name: str) -> None:
    if name in OF_TIMM:
        pytest.importorskip("timm", reason="needs the extra 'optimizers'")


@pytest.mark.parametrize("decayed", ["all", "matrices"])
@pytest.mark.parametrize("name", [*OF_TORCH, *OF_TIMM])
def test_it_learns_and_goes_on_from_its_state_bit_for_bit(name: str, decayed: Any) -> None:
    needs_timm(name)
    spec = Optimizer(name=name, weight_decay=0.01, weight_decay_on=decayed)  # type: ignore[arg-type]
    model = net()
    optimizer = build_optimizer(spec, model)
    before = weights(model)
    for number in range(1, 4):
        step(model, optimizer, number=number, lr=0.1 / number)
    assert not any(map(torch.equal, before, weights(model)))

    resumed = net()
    resumed.load_state_dict(model.state_dict())
    again = build_optimizer(spec, resumed)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    for number in range(4, 7):
        step(model, optimizer, number=number, lr=0.1 / number)
        step(resumed, again, number=number, lr=0.1 / number)
    assert all(map(torch.equal, weights(model), weights(resumed)))


@pytest.mark.parametrize("name", [*OF_TORCH, *OF_TIMM])
def test_at_lr_0_nothing_moves(name: str) -> None:
    needs_timm(name)
    model = net()
    before = weights(model)
    spec = Optimizer(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    step(model, build_optimizer(spec, model), number=1, lr=0.0)
    assert all(map(torch.equal, before, weights(model)))


def test_lamb_is_the_formula() -> None:
    """You et al. 2020, algorithm 2, in float64."""
    needs_timm("lamb")
    weight = nn.Parameter(torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4))
    bias = nn.Parameter(torch.linspace(0.5, 1, 4, dtype=torch.float64))
    layer = nn.ParameterList([weight, bias])
    spec = Optimizer(name="lamb", eps=1e-6, weight_decay=0.1, betas=(0.9, 0.99))
    optimizer = build_optimizer(spec, layer)
    expected = weights(layer)
    m = [torch.zeros_like(each) for each in expected]
    v = [torch.zeros_like(each) for each in expected]
    for t in range(1, 6):
        write_lr(optimizer, lr := 0.05 / t)
        for i, parameter in enumerate(layer):
            gradient = (parameter.detach() * t).cos() * 20  # no clipping but the loop's
            parameter.grad = gradient
            m[i] = 0.9 * m[i] + 0.1 * gradient
            v[i] = 0.99 * v[i] + 0.01 * gradient**2
            ratio = m[i] / (1 - 0.9**t) / ((v[i] / (1 - 0.99**t)).sqrt() + 1e-6)
            update = ratio + 0.1 * expected[i]
            expected[i] = expected[i] - lr * expected[i].norm() / update.norm() * update
        optimizer.step()
    for parameter, wanted in zip(layer, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-9, atol=1e-9)


def test_muon_takes_the_matrices_and_adamw_the_rest() -> None:
    optimizer = build_optimizer(Optimizer(name="muon"), net())
    shapes = {
        group["part"]: [tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups
    }
    assert shapes == {"muon": [(6, 4), (1, 6)], "adamw": [(5, 4), (6,), (6,), (6,), (1,)]}


def test_biases_and_norms_can_be_left_without_weight_decay() -> None:
    spec = Optimizer(name="adamw", weight_decay=0.1, weight_decay_on="matrices")
    decays = {
        tuple(p.shape): group["weight_decay"]
        for group in build_optimizer(spec, net()).param_groups
        for p in group["params"]
    }
    assert decays == {(5, 4): 0.1, (6, 4): 0.1, (6,): 0.0, (1, 6): 0.1, (1,): 0.0}


def test_a_recipe_says_the_same_as_before_unless_that_is_chosen() -> None:
    """What it says is part of a run's identity."""
    plain = Optimizer(name="sgd").model_dump(mode="json")
    assert plain.keys() == {"name", "momentum", "betas", "eps", "weight_decay"}
    chosen = Optimizer(name="sgd", weight_decay_on="matrices")
    assert Optimizer.model_validate(chosen.model_dump(mode="json")) == chosen


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(optimizers, "import_module", missing)
    with pytest.raises(UserError, match="timm is not installed; pip install 'knee-tune") as error:
        build_optimizer(Optimizer(name="lamb"), net())
    assert "\n" not in str(error.value)


class WithGroups(DigitsTask):
    """Its first layer learns at a tenth of the LR, the others half as fast as asked."""

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        first, *others = model.parameters()
        return torch.optim.SGD(
            [{"params": [first], "lr": 0.02}, {"params": others, "lr_scale": 0.5}], lr=0.2
        )


def test_a_task_may_have_an_optimizer_with_groups_of_its_own(tmp_path: Path) -> None:
    task = WithGroups(DigitsRecipe(), data_dir=tmp_path, seed=1)
    optimizer = optimizer_of(task, task.build_model())
    write_lr(optimizer, 3.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 1.5])
    write_lr(optimizer, 1.0)  # the schedule's, not what it was made with, nor the last one
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.5])


def grouped(**second: float) -> torch.optim.Optimizer:
    """An optimizer of two groups, of which the second has its own settings."""
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [{"params": [one]}, {"params": [two], **second}]
    return torch.optim.SGD(groups, lr=0.1)


def written(optimizer: torch.optim.Optimizer, schedule: Schedule) -> list[list[float]]:
    """The LRs of every step, by group."""
    take_up(optimizer)
    steps = []
    for step in range(1, schedule.total_steps + 1):
        write_lrs(optimizer, schedule, step)
        steps.append([group["lr"] for group in optimizer.param_groups])
    return steps


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0])
def test_a_group_may_have_a_shorter_decay_as_kneelr_writes_it(scale: float) -> None:
    knee = Knee(seed_lr=0.1, total_steps=12, explore_steps=3, warmup_steps=1, decay="1-sqrt")
    optimizer = grouped(decay_scale=scale)
    scheduler = KneeLR(optimizer, total_steps=12, explore_steps=3, warmup_steps=1, decay="1-sqrt")
    expected = []
    for _ in range(12):
        expected.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    ours = written(grouped(decay_scale=scale), knee)
    assert ours == expected
    assert ours[:4] == written(grouped(), knee)[:4], "a trunk knows nothing of it"
    assert [lrs[0] for lrs in ours] == [knee.lr(step) for step in range(1, 13)]


def test_a_baseline_has_one_decay_for_all_groups() -> None:
    cosine = Cosine(seed_lr=0.1, total_steps=9)
    assert written(grouped(decay_scale=0.5), cosine) == written(grouped(), cosine)


@pytest.mark.parametrize("scale", [2.0, 0.0, "half", float("nan")])
def test_no_group_decays_before_its_schedule(scale: Any) -> None:
    with pytest.raises(UserError, match=f"decay_scale={scale!r} of a parameter group: it must"):
        take_up(grouped(decay_scale=scale))
    later = grouped()
    take_up(later)
    later.param_groups[1]["decay_scale"] = scale
    with pytest.raises(UserError, match="trunks end where the first group decays"):
        write_lrs(later, Knee(seed_lr=0.1, total_steps=9, explore_steps=3), 1)


def test_stacked_models_step_with_their_own_lr_times_that_of_the_group() -> None:
    stacked = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 4))]
    groups: list[dict[str, Any]] = [
        {"params": [stacked[0]]},
        {"params": [stacked[1]], "lr_scale": 0.1},
    ]
    for each in stacked:
        each.grad = torch.ones_like(each)
    before = [torch.empty_like(each) for each in stacked]
    step_each(torch.optim.SGD(groups, lr=0.0), stacked, before, torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(stacked[0].detach()[:, 0], torch.tensor([-1.0, -5.0]))
    torch.testing.assert_close(stacked[1].detach()[:, 0], torch.tensor([-0.1, -0.5]))
