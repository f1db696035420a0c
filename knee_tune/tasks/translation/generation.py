"""Translating with beam search, and scoring the translations with BLEU."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sacrebleu import corpus_bleu

from knee_tune.tasks.translation import fairseq_bridge as bridge
from knee_tune.workers.group import Group


def on_device(sample: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A collated batch of fairseq with its tensors on ``device``; a no-op where they are."""
    if device.type == "cpu":
        return sample
    return {
        key: value.to(device, non_blocking=True)
        if isinstance(value, torch.Tensor)
        else on_device(value, device)
        if isinstance(value, dict)
        else value
        for key, value in sample.items()
    }


def translate(
    generator: Any,
    task: Any,
    dataset: Any,
    batches: Iterable[list[int]],
    group: Group,
) -> Iterator[tuple[int, str, str]]:
    """(index in ``dataset``, best translation, reference or "") of every sentence, as words."""
    target = task.target_dictionary
    for indices in batches:
        group.alive()
        sample = on_device(dataset.collater([dataset[index] for index in indices]), group.device)
        hypotheses = generator(sample)
        references = sample["target"]
        for row, index in enumerate(sample["id"].tolist()):
            reference = ""
            if references is not None:
                tokens = references[row][references[row] != target.pad()]
                reference = bridge.text(target, tokens.cpu(), reference=True)
            best = hypotheses[row][0]["tokens"].cpu()
            yield index, bridge.text(target, best), reference


def tokenised_bleu(hypotheses: list[str], references: list[str]) -> float:
    """Corpus BLEU in percent on text as it is tokenised: fairseq's scorer, multi-bleu.

    The convention of fairseq's IWSLT'14 recipe; scores with sacreBLEU's own tokeniser (13a) on
    detokenised text are not comparable.
    """
    return float(corpus_bleu(hypotheses, [references], tokenize="none", force=True).score)
