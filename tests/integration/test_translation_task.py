"""The translation task on the generated demo corpus: batches, metrics, serving, missing data."""

import logging
import math
import shutil
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("fairseq", reason="needs the translation extra")

from knee_tune.errors import UserError
from knee_tune.tasks.translation.prepare import prepare
from knee_tune.tasks.translation.prepared import find_prepared
from knee_tune.tasks.translation.recipe import TranslationRecipe
from knee_tune.tasks.translation.task import Batch, TranslationTask, tokenised_bleu
from knee_tune.tasks.translation.vocabulary import PAD
from knee_tune.workers.group import Group

SIZE = {"encoder_layers": 1, "decoder_layers": 1, "embed_dim": 16, "ffn_dim": 32, "heads": 2}
RECIPE: dict[str, Any] = {
    "data": "demo.de-en",
    "tokens_per_step": 1000,
    "beam": 2,
    "max_len_a": 1.0,
    "max_len_b": 5,
    "model": SIZE,
}


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    find_prepared(folder, "demo.de-en")
    return folder


def task(data_dir: Path, *, seed: int = 1, **changes: Any) -> TranslationTask:
    recipe = TranslationRecipe.model_validate(RECIPE | changes)
    return TranslationTask(recipe, data_dir=data_dir, seed=seed)


class Compiled(nn.Module):
    """Wraps a model as ``torch.compile`` does, which takes long."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model

    def forward(self, **inputs: Any) -> Any:
        return self._orig_mod(**inputs)


def pairs(batches: list[Batch]) -> list[list[int]]:
    """Which sentence pairs each micro-batch holds."""
    return [batch.sample["id"].tolist() for batch in batches if batch.counts]


def steps(of: TranslationTask, start: int, end: int, group: Group) -> list[list[list[int]]]:
    return [pairs(list(step)) for step in islice(of.train_batches(start, group), end - start)]


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_an_epoch_is_every_pair_once(ranks: int, accumulate: int, demo_data: Path) -> None:
    found = task(demo_data, tokens_per_step=1200, accumulate=accumulate)
    groups = [Group(rank, ranks) for rank in range(ranks)]
    length = found.steps_per_epoch(groups[0])

    epoch = [steps(found, 0, length, group) for group in groups]

    seen = [pair for rank in epoch for step in rank for batch in step for pair in batch]
    assert sorted(seen) == list(range(2000))
    # Every rank runs as many forward passes, or gradients would wait for ever.
    shapes = [[len(s) for s in islice(found.train_batches(0, g), length)] for g in groups]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 2)])
def test_starting_anywhere_gives_the_batches_of_the_uninterrupted_run(
    ranks: int, accumulate: int, demo_data: Path
) -> None:
    group = Group(ranks - 1, ranks)
    length = task(demo_data, accumulate=accumulate).steps_per_epoch(group)
    whole = steps(task(demo_data, accumulate=accumulate), 0, 2 * length + 3, group)

    for start in (1, length - 1, length, length + 1, 2 * length):
        resumed = steps(task(demo_data, accumulate=accumulate), start, 2 * length + 3, group)
        assert resumed == whole[start:]


def test_order_changes_with_the_epoch_and_the_seed(demo_data: Path) -> None:
    group = Group()
    length = task(demo_data).steps_per_epoch(group)
    two_epochs = steps(task(demo_data), 0, 2 * length, group)
    assert two_epochs[:length] != two_epochs[length:]
    assert two_epochs[:length] != steps(task(demo_data, seed=2), 0, length, group)


def test_a_step_holds_the_tokens_of_the_recipe(demo_data: Path) -> None:
    for ranks, accumulate in [(1, 1), (2, 2)]:
        found = task(demo_data, tokens_per_step=2000, accumulate=accumulate)
        per_micro_batch = 2000 // (ranks * accumulate)
        for step in islice(found.train_batches(0, Group(0, ranks)), 20):
            for batch in step:
                rows, columns = batch.sample["target"].shape
                width = max(columns, batch.sample["net_input"]["src_tokens"].shape[1])
                assert rows * width <= per_micro_batch


def test_the_loss_of_an_empty_share_is_nothing(demo_data: Path) -> None:
    found = task(demo_data)
    model = found.build_model()
    (batch,) = next(found.train_batches(0, Group()))

    loss, count = found.loss(model, Batch(batch.sample, batch.pair, counts=False))
    loss.backward()  # type: ignore[no-untyped-call]

    assert (loss.item(), count) == (0.0, 0.0)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_the_loss_reaches_the_model_inside_whatever_wraps_it(demo_data: Path) -> None:
    found = task(demo_data)
    model = found.build_model().eval()
    (batch,) = next(found.train_batches(0, Group()))
    bare, _ = found.loss(model, batch)

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model)
        assert found.loss(parallel, batch)[0] == bare
        assert found.loss(Compiled(parallel), batch)[0] == bare
    finally:
        dist.destroy_process_group()


CUT = {"kind": "token", "share": 0.4}


@pytest.mark.parametrize("kind", ["token", "span", "feature"])
def test_cutoff_is_learnt_from_both_halves(kind: str, demo_data: Path) -> None:
    """Of a fresh model, whose halves agree, it is about twice the plain loss, drawn by the step."""
    still = SIZE | {"dropout": 0.0}
    found = task(demo_data, model=still, cutoff={"kind": kind, "share": 0.4})
    plain = task(demo_data, model=still)
    model = found.build_model()
    (batch,) = next(found.train_batches(0, Group()))

    def loss(seed: int) -> Tensor:
        torch.manual_seed(seed)
        torch.rand(seed)  # drawing changes nothing, the seed does
        return found.loss(model, batch)[0]

    alone, count = plain.loss(model, batch)
    assert found.loss(model, batch)[1] == count == batch.sample["ntokens"]
    assert loss(1) == loss(1) != loss(2)
    assert loss(1).item() == pytest.approx(2 * alone.item(), rel=0.1)
    loss(1).backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None for weight in model.parameters())


def test_padding_counts_nothing_in_cutoff(demo_data: Path) -> None:
    """A batch that is padded further has the same loss."""
    found = task(demo_data, model=SIZE | {"dropout": 0.0}, cutoff={"kind": "feature"})
    model = found.build_model()
    (batch,) = next(found.train_batches(0, Group()))
    pad = partial(nn.functional.pad, value=PAD)
    inputs = batch.sample["net_input"]
    further = batch.sample | {
        "target": pad(batch.sample["target"], (0, 3)),
        "net_input": inputs
        | {
            "src_tokens": pad(inputs["src_tokens"], (2, 0)),
            "prev_output_tokens": pad(inputs["prev_output_tokens"], (0, 3)),
        },
    }
    losses = [found.loss(model, Batch(each, batch.pair)) for each in (batch.sample, further)]
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-5)
    assert losses[0][1] == losses[1][1]


def test_what_is_cut_is_no_question_of_the_order_of_micro_batches(demo_data: Path) -> None:
    found = task(demo_data, accumulate=2, model=SIZE | {"dropout": 0.0}, cutoff=CUT)
    model = found.build_model()
    first, second = next(found.train_batches(0, Group()))

    def losses(*batches: Batch) -> list[float]:
        torch.manual_seed(7)
        return [found.loss(model, each)[0].item() for each in batches]

    assert losses(first, second) == losses(second, first)[::-1]


def test_validation_is_loss_perplexity_and_at_last_bleu(demo_data: Path) -> None:
    found = task(demo_data, label_smoothing=0.0, valid_pairs=40)
    model = found.build_model().eval()
    with torch.no_grad():
        curve = found.evaluate(model, Group(), split="valid", final=False)
        final = found.evaluate(model, Group(), split="valid", final=True)

    assert curve["ppl"] == pytest.approx(math.exp(curve["loss"]))  # no smoothing: the same
    assert set(final) == {metric.name for metric in found.recipe.metrics}
    assert {name: final[name] for name in curve} == curve
    assert 0 <= final["bleu"] <= 100


def test_perplexity_per_word_is_over_the_words_that_are_read(demo_data: Path) -> None:
    found = task(demo_data)
    valid, vocabulary = found._pairs("valid"), found._vocabularies[1]
    assert valid.target is not None
    sentences = [tokens.tolist() for tokens in valid.target]
    tokens = sum(map(len, sentences))
    words = sum(len(vocabulary.text(each).split()) + 1 for each in sentences)  # and its end
    with torch.no_grad():
        curve = found.evaluate(found.build_model().eval(), Group(), split="valid", final=False)
    assert tokens > words
    assert math.log(curve["word_ppl"]) / math.log(curve["ppl"]) == pytest.approx(tokens / words)


def test_evaluating_gives_signs_of_life(demo_data: Path) -> None:
    """At every batch that is measured and at every batch that is translated."""
    found = task(demo_data, valid_pairs=40, evaluation_tokens=100)
    model = found.build_model().eval()
    signs: list[int] = []

    def count(*, final: bool) -> int:
        signs.clear()
        group = Group(alive=lambda: signs.append(1))
        with torch.no_grad():
            found.evaluate(model, group, split="valid", final=final)
        return len(signs)

    measured = count(final=False)
    assert measured > 3
    assert count(final=True) == 2 * measured


def test_bleu_is_corpus_bleu_on_the_given_tokens() -> None:
    reference = "the old cat sleeps under the table , doesn &apos;t it ?"
    assert tokenised_bleu([reference], [reference]) == pytest.approx(100)
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; no brevity penalty.
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert tokenised_bleu(["a b c d x"], ["a b c d e"]) == pytest.approx(expected)


def test_bleu_of_split_compounds_counts_their_parts() -> None:
    hypothesis, reference = ["a b c x-y"], ["a b c x-z"]
    # 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples instead of 3/4, 2/3, 1/2, 0.
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    split = tokenised_bleu(hypothesis, reference, split_compounds=True)
    assert split == pytest.approx(expected)


def test_a_served_model_needs_its_assets_only(demo_data: Path, tmp_path: Path) -> None:
    trained = task(demo_data)
    weights = trained.build_model().state_dict()
    for name, path in trained.assets().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / name)
    sentences = [*trained.examples(), ""]

    served = task(tmp_path)
    model = served.build_model().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        translations = served.predict(model, sentences)

    assert len(sentences) == 3
    assert all(sentence[-1] in ".?!" for sentence in sentences[:2])  # raw text, detokenised
    assert [bool(text) for text in translations] == [True, True, False]


def test_a_corpus_of_single_words_has_examples_too(tmp_path: Path) -> None:
    """A registered model needs some, and usual ones have five tokens or more."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train", "valid", "test"):
        for language, word in (("de", "ja"), ("en", "yes")):
            (corpus / f"{name}.{language}").write_text(f"{word}\n" * 4)
    prepare(data_root=tmp_path, from_path=corpus, name="words", kind="tok", bpe_codes=1)
    assert task(tmp_path, data="words").examples() == ["ja", "ja"]


def test_a_sentence_that_the_model_cannot_read_is_refused(demo_data: Path) -> None:
    served = task(demo_data, max_source_positions=12)
    model = served.build_model().eval()
    with pytest.raises(UserError, match=r"^input 2 of 2 has [\d,]+ tokens, .* 12 at most"):
        served.predict(model, ["Der Hund schläft.", "Haus " * 1500])


def test_metrics_say_over_how_many_pairs_they_are_taken(demo_data: Path) -> None:
    counted = task(demo_data).describe()[1]
    assert task(demo_data, valid_pairs=50).describe()[1] == counted | {"valid": 50}
    shorter = task(demo_data, max_source_positions=8).describe()[1]
    assert 0 < shorter["test"] < counted["test"]
    assert shorter["train"] == counted["train"]


def test_a_model_that_reads_no_pair_is_refused(demo_data: Path) -> None:
    narrow = task(demo_data, max_source_positions=2)
    with pytest.raises(UserError, match="no valid pair is as short as max_source_positions=2"):
        narrow.describe()
    with pytest.raises(UserError, match="no training pair"):
        narrow.steps_per_epoch(Group())


def test_the_state_of_a_model_loads_without_pickle(demo_data: Path, tmp_path: Path) -> None:
    model = task(demo_data).build_model()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


def test_missing_data_names_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data prepare iwslt.*`preset` demo") as error:
        task(tmp_path, data="iwslt14.de-en").describe()
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("same_size", [True, False])
def test_data_changed_after_their_preparation_are_refused(
    same_size: bool, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_data / "demo.de-en", tmp_path / "demo.de-en")
    file = tmp_path / "demo.de-en" / "valid.de-en.en.bin"
    content = file.read_bytes()
    file.write_bytes(content[::-1] if same_size else content[:-2])

    with pytest.raises(UserError, match=r"valid\.de-en\.en\.bin: .* changed .*prepare .*--force"):
        task(tmp_path).describe()


def test_a_step_too_small_for_the_longest_sentence(demo_data: Path) -> None:
    with pytest.raises(UserError, match=r"recipe.tokens_per_step=20: .*set it to \d+ or more"):
        task(demo_data, tokens_per_step=20).steps_per_epoch(Group())


def test_sharing_all_embeddings_needs_one_dictionary(demo_data: Path) -> None:
    with pytest.raises(UserError, match="share_embeddings=all"):
        task(demo_data, model=SIZE | {"share_embeddings": "all"}).build_model()


def test_importing_fairseq_leaves_logging_alone() -> None:
    code = """
import logging, sys
import knee_tune.tasks.translation.fairseq_bridge
root = logging.getLogger()
sys.exit(f"{root} {root.handlers}" if root.handlers or root.level != logging.WARNING else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert logging.getLogger("fairseq").getEffectiveLevel() == logging.getLogger().level
