"""The translation recipe: the paper's settings, and what it refuses."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from knee_tune.tasks.translation.recipe import TranslationRecipe


def test_defaults_are_the_papers() -> None:
    """Section 5.3.4: Transformer base, RAdam, 4,000 tokens, 50 epochs, seed LR 3e-4."""
    recipe = TranslationRecipe()
    model, optimizer = recipe.model, recipe.optimizer

    assert (model.encoder_layers, model.decoder_layers) == (6, 6)
    assert (model.embed_dim, model.ffn_dim, model.heads, model.dropout) == (512, 2048, 8, 0.3)
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == (
        "radam",
        (0.9, 0.999),
        1e-4,
    )
    assert (recipe.label_smoothing, recipe.clip_norm) == (0.1, 25)
    assert (recipe.epochs, recipe.tokens_per_step, recipe.seed_lr) == (50, 4000, 3e-4)
    assert (recipe.watched, recipe.objective, recipe.keep) == ("ppl", "ppl", "best")
    assert (recipe.beam, recipe.len_penalty) == (5, 1)


def test_bleu_may_be_the_objective_and_loss_may_not() -> None:
    recipe = TranslationRecipe(objective="bleu")
    assert recipe.metric(recipe.objective).direction == "maximize"
    with pytest.raises(ValidationError, match="'ppl' or 'bleu'"):
        TranslationRecipe.model_validate({"objective": "loss"})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="heads=3 must divide embed_dim=64"):
        TranslationRecipe.model_validate({"model": {"embed_dim": 64, "heads": 3}})


@pytest.mark.parametrize("name", ["../secrets", "/etc", "", ".hidden"])
def test_a_prepared_set_is_a_name_and_never_a_path(name: str) -> None:
    with pytest.raises(ValidationError, match="data"):
        TranslationRecipe(data=name)


def test_the_recipe_is_light() -> None:
    code = (
        "import sys, knee_tune.tasks.translation.recipe;"
        "sys.exit(bool({'torch', 'fairseq'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
