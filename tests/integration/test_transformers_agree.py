"""Our Transformer is fairseq's: with its weights the same scores, losses and translations."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("fairseq", reason="needs the translation extra")

from knee_tune.tasks.translation import fairseq_bridge as bridge
from knee_tune.tasks.translation.batches import Epochs
from knee_tune.tasks.translation.prepared import find_prepared
from knee_tune.tasks.translation.recipe import TranslationRecipe
from knee_tune.tasks.translation.task import TranslationTask
from knee_tune.workers.group import Group

SIZE = {"encoder_layers": 2, "decoder_layers": 2, "embed_dim": 16, "ffn_dim": 32, "heads": 2}
RECIPE: dict[str, Any] = {"data": "demo.de-en", "tokens_per_step": 1000, "max_len_b": 12}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    find_prepared(folder, "demo.de-en")
    return folder


def task(data: Path, family: str, **size: Any) -> TranslationTask:
    recipe = RECIPE | {"model": SIZE | size | {"family": family}}
    return TranslationTask(TranslationRecipe.model_validate(recipe), data_dir=data, seed=1)


def taught(ours: nn.Module, fairseqs: nn.Module) -> None:
    """Give ours the weights of fairseq's."""
    theirs = fairseqs.state_dict()

    def attention(name: str) -> dict[str, Tensor]:
        found = {}
        for kind in ("weight", "bias"):
            key, value = (theirs[f"{name}.{each}_proj.{kind}"] for each in "kv")
            found[f"query.{kind}"] = theirs[f"{name}.q_proj.{kind}"]
            found[f"memory.{kind}"] = torch.cat([key, value])
            found[f"output.{kind}"] = theirs[f"{name}.out_proj.{kind}"]
        return found

    weights = {
        "source.weight": theirs["encoder.embed_tokens.weight"],
        "target.weight": theirs["decoder.embed_tokens.weight"],
        "output.weight": theirs["decoder.output_projection.weight"],
    }
    for side in ("encoder", "decoder"):
        for number in range(2):
            name = f"{side}.layers.{number}"
            parts = {"attention": attention(f"{name}.self_attn")}
            norms = ["self_attn_layer_norm", "final_layer_norm"]
            if side == "decoder":
                parts["source_attention"] = attention(f"{name}.encoder_attn")
                norms.insert(1, "encoder_attn_layer_norm")
            for kind in ("weight", "bias"):
                for place, norm in enumerate(norms):
                    weights[f"{side}.{number}.norms.{place}.{kind}"] = theirs[
                        f"{name}.{norm}.{kind}"
                    ]
                for place, layer in ((0, "fc1"), (3, "fc2")):
                    part = f"{side}.{number}.feed_forward.{place}.{kind}"
                    weights[part] = theirs[f"{name}.{layer}.{kind}"]
            for part, found in parts.items():
                weights |= {f"{side}.{number}.{part}.{key}": each for key, each in found.items()}
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})


def train_a_little(trained: TranslationTask, model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for (batch,) in islice(trained.train_batches(0, Group()), 60):
        loss, tokens = trained.loss(model, batch)
        optimizer.zero_grad()
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.mark.parametrize("share", ["decoder", "none"])
def test_scores_losses_and_translations_are_fairseqs(share: str, data: Path) -> None:
    both = (
        task(data, "fairseq", share_embeddings=share),
        task(data, "torch", share_embeddings=share),
    )
    torch.manual_seed(5)  # of others some translate all sentences alike after so few steps
    models = [each.build_model().eval() for each in both]
    assert len({sum(weight.numel() for weight in model.parameters()) for model in models}) == 1
    train_a_little(both[0], models[0])  # of a fresh model all translations are alike
    taught(models[1], models[0])
    (batch,) = next(both[0].train_batches(0, Group()))
    with torch.no_grad():
        losses = [
            torch.stack(each._family.losses(model, batch.sample))
            for each, model in zip(both, models, strict=True)
        ]
        translations = [
            each._family.translate(model, batch.sample)
            for each, model in zip(both, models, strict=True)
        ]
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    assert len({len(each) for each in translations[0]}) > 1
    for theirs, ours in zip(*translations, strict=True):
        assert torch.equal(theirs, ours)


def test_weights_and_embeddings_start_alike(data: Path) -> None:
    """Of every matrix the mean square, to some percent."""
    spreads = []
    for family in ("fairseq", "torch"):
        torch.manual_seed(1)
        model = task(data, family, embed_dim=64, ffn_dim=128).build_model()
        if family == "fairseq":
            theirs, model = model, task(data, "torch", embed_dim=64, ffn_dim=128).build_model()
            taught(model, theirs)
        spreads.append({name: weight.square().mean() for name, weight in model.named_parameters()})
    for name, spread in spreads[0].items():
        assert spreads[1][name].item() == pytest.approx(spread.item(), rel=0.4, abs=1e-6), name


@pytest.mark.parametrize("max_tokens", [60, 333, 1000])
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_are_fairseqs(max_tokens: int, multiple: int, data: Path) -> None:
    ours = task(data, "torch")
    pairs, (folder, manifest) = ours._pairs("train"), ours._prepared
    theirs = bridge.load_task(folder, manifest.source, manifest.target, ours.recipe)
    theirs.load_dataset("train")
    longest = int(pairs.lengths.max())
    limit = max(max_tokens, longest)
    epochs = Epochs(pairs, max_tokens=limit, multiple=multiple, most=(20, 20), seed=7)
    iterator = theirs.get_batch_iterator(
        theirs.dataset("train"),
        max_tokens=limit,
        max_positions=(20, 20),
        ignore_invalid_inputs=True,
        required_batch_size_multiple=multiple,
        seed=7,
        num_shards=3,
        shard_id=2,
        disable_iterator_cache=True,
    )
    for epoch in (0, 3):
        expected = iterator.ordered_batches(epoch + 1, fix_batches_to_gpus=False, shuffle=True)
        shares = epochs.shares(epoch, Group(2, 3))
        assert [each.tolist() for each in shares] == [[*map(int, each)] for each in expected]
    for indices in epochs.batches[:3]:
        ours_batch = ours._collate(pairs, indices, Group()).sample
        dataset = theirs.dataset("train")
        collated = dataset.collater([dataset[index] for index in indices])
        for name in ("id", "target"):
            assert torch.equal(ours_batch[name], collated[name])
        assert ours_batch["ntokens"] == collated["ntokens"]
        for name, value in collated["net_input"].items():
            assert torch.equal(ours_batch["net_input"][name], value)
    text = theirs.target_dictionary.string(torch.from_numpy(np.array([3, 5, 6, 2])), "@@ ")
    assert ours._vocabularies[1].text([3, 5, 6, 2]) == text
