"""With ``model.family: torch`` translation needs no fairseq: it is trained and served without."""

import subprocess
import sys
from pathlib import Path

import pytest

from knee_tune.tasks.registry import task_entry

TRAINED = """
import sys
sys.modules["fairseq"] = None  # an import of it fails
from pathlib import Path
import torch
from knee_tune.errors import UserError
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.group import Group

size = {"encoder_layers": 1, "decoder_layers": 1, "embed_dim": 16, "ffn_dim": 32, "heads": 2}
recipe = {"data": "demo.de-en", "max_len_b": 5, "valid_pairs": 20, "model": size}
entry, folder = task_entry("iwslt"), Path(sys.argv[1])
task = entry.build(recipe | {"model": size | {"family": "torch"}}, data_dir=folder, seed=1)
model = task.build_model()
(batch,) = next(task.train_batches(0, Group()))
task.loss(model, batch)[0].backward()
model.eval()
with torch.no_grad():
    found = task.evaluate(model, Group(), split="valid", final=True)
    assert set(found) == {"loss", "ppl", "word_ppl", "bleu"}
    assert len(task.predict(model, ["Der Hund schl\u00e4ft.", ""])) == 2
try:
    entry.build(recipe, data_dir=folder, seed=1).build_model()
except UserError as error:
    print(error)
"""


def test_nothing_imports_it_and_who_asks_for_it_is_told_of_both_ways(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    command = [sys.executable, "-c", TRAINED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fairseq is not installed: pip install 'knee-tune[translation]'" in done.stdout
    assert "recipe.model.family=torch" in done.stdout


def test_ranks_import_fairseq_before_they_fork_where_it_trains_alone() -> None:
    entry = task_entry("iwslt")
    task = "knee_tune.tasks.translation.task"
    assert entry.modules({}) == (task, "knee_tune.tasks.translation.fairseq_bridge")
    assert entry.modules({"model": {"family": "torch"}}) == (task,)
