"""Networks of the image tasks: what a recipe may choose, and what is built."""

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torchvision.models import get_model, list_models

from knee_tune.errors import UserError
from knee_tune.tasks.vision.models import build_network
from knee_tune.tasks.vision.recipe import NetworkChoice, SmallImageNetwork


def parameters(network: torch.nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def test_a_plain_name_is_a_choice() -> None:
    assert NetworkChoice.model_validate("vgg11") == NetworkChoice(name="vgg11")


def test_small_images_give_resnets_and_only_them_the_cifar_stem() -> None:
    assert SmallImageNetwork().stem == "cifar"
    assert SmallImageNetwork.model_validate("resnet50").stem == "cifar"
    assert SmallImageNetwork.model_validate("vgg11").stem == "imagenet"
    assert SmallImageNetwork.model_validate({"name": "resnet50", "stem": "imagenet"}).stem == (
        "imagenet"
    )
    assert NetworkChoice.model_validate("resnet50").stem == "imagenet"


def test_a_choice_survives_being_written_down() -> None:
    for choice in (SmallImageNetwork.model_validate("vgg11"), SmallImageNetwork(width=8)):
        assert SmallImageNetwork.model_validate(choice.model_dump()) == choice


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"name": "vgg11", "stem": "cifar"},
            "stem=cifar is for ResNets; vgg11 has its own: write model=vgg11",
        ),
        ({"name": "vgg11", "width": 8}, "width=8 is for ResNets; vgg11"),
        ({"name": "resnext50_32x4d", "width": 8}, "width=8 is for ResNets; resnext50_32x4d"),
        ({"name": 18}, "valid string"),
        (18, "valid dictionary"),
    ],
)
def test_impossible_choices_are_refused(choice: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkChoice.model_validate(choice)


def test_resnet18_with_the_cifar_stem_is_the_papers() -> None:
    network = build_network(SmallImageNetwork(), classes=10)
    assert parameters(network) == 11_173_962
    stages: list[tuple[int, ...]] = []
    for stage in range(1, 5):
        getattr(network, f"layer{stage}").register_forward_hook(
            lambda _module, _inputs, output: stages.append(tuple(output.shape[1:]))
        )
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert stages == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_staged_resnet_computes_what_torchvisions_does(name: str) -> None:
    choice = NetworkChoice(name=name, width=8)
    narrow = build_network(choice, classes=7)
    assert parameters(narrow) < 2_000_000
    published = get_model(name, num_classes=7)
    assert list(narrow.state_dict()) == list(published.state_dict())
    assert narrow(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_of_the_same_seed_a_published_resnet_is_the_published_one() -> None:
    torch.manual_seed(1)
    ours = build_network(NetworkChoice(name="resnet18"), classes=10).state_dict()
    torch.manual_seed(1)
    theirs = get_model("resnet18", num_classes=10).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("name", "side"),
    [("inception_v3", 75), ("googlenet", 32), ("vit_b_32", 64), ("squeezenet1_1", 32)],
)
def test_every_network_gives_class_scores_alone(name: str, side: int) -> None:
    with torch.device("meta"):
        network = build_network(NetworkChoice(name=name), classes=5, image_side=side)
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 5)


def test_a_network_that_cannot_be_tried_without_memory_is_taken_at_its_word() -> None:
    network = build_network(NetworkChoice(name="regnet_y_400mf"), classes=5, image_side=64)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UserError, match=r"recipe\.model\.name: .*resnet181; did you mean resnet1"):
        build_network(NetworkChoice(name="resnet181"), classes=10)


@pytest.mark.parametrize("name", ["alexnet", "vit_b_16", "maxvit_t"])
def test_images_that_a_network_cannot_take_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} cannot take images of 20 x 20 pixels") as caught:
        build_network(NetworkChoice(name=name), classes=10, image_side=20)
    assert "\n" not in str(caught.value)


def test_detection_and_segmentation_networks_are_none_to_choose() -> None:
    assert "fcn_resnet50" in list_models()
    with pytest.raises(UserError, match="no classification network fcn_resnet50"):
        build_network(NetworkChoice(name="fcn_resnet50"), classes=10)
    assert "resnet50" in list_models(module=torchvision.models)
