"""The main job, from text to a registered translator: two ranks, real databases, tiny models."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import mlflow
import pytest

from tests import waiting
from tests.command_line import complains, drive_here, environment, knee_tune, knee_tune_here
from tests.mlflow_stores import new_home, tracking_in

pytest.importorskip("fairseq", reason="fairseq is not installed")

TINY = (
    *("--set", "recipe.epochs=1", "--set", "recipe.evaluations_per_epoch=2"),
    *("--set", "recipe.model.encoder_layers=1", "--set", "recipe.model.decoder_layers=1"),
    *("--set", "recipe.model.embed_dim=16", "--set", "recipe.model.ffn_dim=16"),
    *("--set", "recipe.model.heads=2", "--set", "recipe.beam=1"),
    *("--set", "recipe.tokens_per_step=4000", "--set", "recipe.valid_pairs=40"),
    *("--sampler", "random", "--pruner", "none"),
)

SENTENCES = ["Der Hund schläft .", "Guten Morgen !"]

TRANSLATE = """
import json, mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/knee-tune-iwslt@champion")
print(json.dumps(model.predict(sys.argv[2:])))
"""


def translated_by_the_champion(home: Path) -> list[str]:
    """What it makes of two sentences, in a fresh process where pickle is forbidden."""
    done = subprocess.run(
        [sys.executable, "-c", TRANSLATE, f"sqlite:///{home}/mlflow.db", *SENTENCES],
        env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
        capture_output=True,
        text=True,
        timeout=waiting.COMMAND,
        check=True,
    )
    answers: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answers


def check_finished_study(home: Path, name: str, *, trials: int) -> None:
    status = json.loads(knee_tune_here("status", name, "--json", "--home", home).stdout)
    assert status["counts"] == {"complete": trials, "pruned": 0, "failed": 0, "running": 0}
    assert status["best"]["metric"] == "valid_ppl"
    assert status["steps"]["trained"] == status["steps"]["independent"] > 0


def check_answers(answers: list[str]) -> None:
    assert len(answers) == len(SENTENCES)
    assert all(isinstance(answer, str) for answer in answers)


@pytest.mark.timeout(400)
def test_embedded_demo(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Needs nothing but itself: this runs everywhere."""
    home = new_home(tmp_path_factory, tmp_path)
    demo = ("run", "--task", "iwslt", "--preset", "demo", "--trials", "2")
    done = knee_tune(*demo, *TINY, "--home", home)

    assert "2 ranks on cpu" in done.stdout
    assert "registered knee-tune-iwslt version 1" in done.stdout
    knee_tune_here("register", "--home", home)
    check_finished_study(home, "knee-iwslt-demo-1ep", trials=2)
    check_answers(translated_by_the_champion(home))


@pytest.mark.timeout(400)
def test_real_sample(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few hundred real sentences, from tokenized text on."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split, lines in (("train", 800), ("valid", 60), ("test", 40)):
        for language in ("de", "en"):
            name = f"{split}.tok.{language}"
            with (shared / "data" / "iwslt14-sample" / name).open() as text:
                (corpus / name).write_text("".join(islice(text, lines)))
    home = new_home(tmp_path_factory, tmp_path)
    data = str(tmp_path / "data")
    prepared = knee_tune_here(
        *("data", "prepare", "iwslt", "--from", corpus, "--bpe-codes", "300", "--json"),
        *("--name", "iwslt14-sample", "--home", home),
        KNEE_TUNE_DATA=data,
    )
    assert json.loads(prepared.stdout)["pairs"] == {"train": 800, "valid": 60, "test": 40}

    sample = ("run", "--study", "iwslt-sample", "--trials", "1")
    done = drive_here(*sample, *TINY, "--home", home, KNEE_TUNE_DATA=data)
    assert "registered knee-tune-iwslt version 1 as candidate" in done.stdout
    check_finished_study(home, "iwslt-sample", trials=1)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with tracking_in(home):
        translator = mlflow.pyfunc.load_model("models:/knee-tune-iwslt@candidate")
    check_answers(translator.predict(SENTENCES))


def test_without_data_both_ways_out_are_named(tmp_path: Path) -> None:
    """The full corpus is neither here nor embedded."""
    both = ("data prepare iwslt", "--preset demo")
    complains("run", "--task", "iwslt", "--home", tmp_path, said=both)
