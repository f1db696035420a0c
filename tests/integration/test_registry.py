"""The winner of a study in a real registry, loaded the way people load it."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from knee_tune import __version__
from knee_tune.errors import UserError
from knee_tune.plans.plan import SCRIPT
from knee_tune.records.events import (
    Alias,
    RegisteredModel,
    StudyStarted,
    TrainedModel,
    TrialFinished,
    TrialStarted,
)
from knee_tune.records.values import RunEnd
from knee_tune.tasks import registry as tasks
from knee_tune.tracking import open_tracker
from knee_tune.tracking.registry import register
from knee_tune.tracking.store import connect, local_store
from tests.documents import put_documents
from tests.generated_images import generated_images, put_cifar10
from tests.mlflow_stores import new_home
from tests.picture_folder import CLASSES, make_pictures

TOY = tasks.TaskEntry(
    recipe="tests.integration.toy_task:ToyRecipe",
    task="tests.integration.toy_task:ToyTask",
    extra="toy",
)


@pytest.fixture
def home(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A home with two tracked trials; models load from its store, with pickle forbidden."""
    home = new_home(tmp_path_factory, tmp_path)
    tracker = open_tracker(home=home, uri=local_store(home))
    for event in (
        StudyStarted(uid="u", name="s", task="toy", experiment="e"),
        TrialStarted(key="trial-0", name="trial 0", params={"epochs": 1}),
        TrialFinished(key="trial-0", state=RunEnd.COMPLETE),
        TrialStarted(key="trial-1", name="trial 1"),
        TrialFinished(key="trial-1", state=RunEnd.COMPLETE),
    ):
        tracker.record(event)
    assert tracker.close(timeout=60) == 0
    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, "toy": TOY})
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(local_store(home))
    yield home
    mlflow.set_tracking_uri(before)


def trained(
    home: Path,
    task: str,
    *,
    seed: int,
    key: str = "trial-0",
    alias: Alias = "champion",
    recipe: Mapping[str, Any] | None = None,
) -> TrainedModel:
    (home / "data" / "dict").mkdir(parents=True, exist_ok=True)
    (home / "data" / "dict" / "words.txt").write_text("Laenge Wort")
    recipe = dict(recipe or {})
    torch.manual_seed(seed)
    built = tasks.task_entry(task).build(recipe, data_dir=home / "data", seed=1)
    weights = home / f"weights-{seed}.safetensors"
    save_model(built.build_model(), str(weights))
    return TrainedModel(
        study_uid="u",
        study="s",
        task=task,
        recipe=recipe,
        seed=1,
        data_dir=home / "data",
        weights=weights,
        key=key,
        number=0,
        seed_lr=0.05,
        explore_fraction=0.5,
        data_fingerprint="f0",
        metrics={"valid": {"loss": 0.25}, "test": {"loss": 0.5}},
        experiment="e",
        alias=alias,
        confirmed="yes" if alias == "champion" else "not tried",
    )


def put(home: Path, model: TrainedModel) -> RegisteredModel:
    return register(model, home=home, uri=local_store(home))


def aliases(home: Path, name: str) -> dict[str, int]:
    model = connect(local_store(home)).get_registered_model(name)
    return {alias: int(version) for alias, version in model.aliases.items()}


def test_the_champion_answers_sentences_from_its_own_files(home: Path) -> None:
    model = trained(home, "toy", seed=1)
    task = tasks.task_entry("toy").build({}, data_dir=home / "data", seed=1)
    torch.manual_seed(1)
    answers = task.predict(task.build_model(), ["Hallo", "Guten Tag"])

    registered = put(home, model)
    (home / "data" / "dict" / "words.txt").unlink()  # the model has its own copy
    model.weights.unlink()
    state = torch.get_rng_state()
    loaded = mlflow.pyfunc.load_model("models:/knee-tune-toy@champion")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.predict(["Hallo", "Guten Tag"]) == answers

    assert registered.uri == "models:/knee-tune-toy@champion"
    folder = home / "artifacts" / "e" / "models" / registered.model_id / "artifacts"
    requirements = (folder / "requirements.txt").read_text().split()
    assert requirements == [f"mlflow=={mlflow.__version__}", f"knee-tune[toy]=={__version__}"]
    assert not list(folder.rglob("*.pkl"))
    assert json.loads((folder / "artifacts" / "order.json").read_text())["task"] == "toy"
    assert loaded.metadata.signature is not None
    assert loaded.metadata.saved_input_example_info is not None


def test_a_script_that_serves_nothing_is_there_as_it_is(home: Path, repository: Path) -> None:
    """Its weights, the script and what it imports from beside it, and its recipe; no model."""
    script = repository / "examples" / "pytorch" / "train.py"
    recipe = {"script": str(script), "steps": 40}
    model = trained(home, "toy", seed=1).model_copy(
        update={"task": SCRIPT, "subject": "train", "recipe": recipe, "serve": None}
    )
    weights, registered = model.weights, put(home, model)
    assert (registered.uri, registered.answers) == ("models:/knee-tune-train@champion", False)
    found = Path(mlflow.artifacts.download_artifacts(registered.uri))
    files = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}
    assert files >= {"code/train.py", "code/network.py", "recipe.json", weights.name}
    assert "code/serve.py" not in files, "nothing imports it"
    assert (found / "code" / "train.py").read_bytes() == script.read_bytes()
    assert (found / weights.name).read_bytes() == weights.read_bytes()
    assert json.loads((found / "recipe.json").read_text()) == recipe


def test_a_version_is_tied_to_its_run_and_its_numbers(home: Path) -> None:
    registered = put(home, trained(home, "toy", seed=1))
    client = connect(local_store(home))
    run = client.get_run(registered.run_id)
    assert run.data.tags["knee.run_key"] == "u/trial-0"
    assert run.info.status == "FINISHED"
    version = client.get_model_version_by_alias("knee-tune-toy", "champion")
    assert version.run_id == registered.run_id
    expected = {
        "optuna.study_name": "s",
        "optuna.trial_number": "0",
        "knee.seed_lr": "0.05",
        "knee.explore_fraction": "0.5",
        "knee.data_fingerprint": "f0",
        "knee.confirmed": "yes",
        "valid/loss": "0.25",
        "test/loss": "0.5",
    }
    assert expected.items() <= version.tags.items()
    logged = client.get_logged_model(registered.model_id)
    assert logged.source_run_id == registered.run_id
    assert {m.key: m.value for m in logged.metrics or []} == {"valid/loss": 0.25, "test/loss": 0.5}
    assert run.outputs is not None
    assert [output.model_id for output in run.outputs.model_outputs] == [registered.model_id]


def test_the_champion_before_becomes_challenger(home: Path) -> None:
    first = put(home, trained(home, "toy", seed=1))
    again = put(home, trained(home, "toy", seed=1))
    assert (first.new, again.new) == (True, False)
    assert again.version == first.version
    second = put(home, trained(home, "toy", seed=2, key="trial-1"))
    assert aliases(home, "knee-tune-toy") == {
        "champion": second.version,
        "challenger": first.version,
    }


def test_a_candidate_leaves_the_champion_alone_until_it_is_one(home: Path) -> None:
    first = put(home, trained(home, "toy", seed=1))
    second = put(home, trained(home, "toy", seed=2, key="trial-1", alias="candidate"))
    assert second.uri == "models:/knee-tune-toy@candidate"
    assert aliases(home, "knee-tune-toy") == {
        "champion": first.version,
        "candidate": second.version,
    }
    promoted = put(home, trained(home, "toy", seed=2, key="trial-1"))
    assert (promoted.version, promoted.new) == (second.version, False)
    assert promoted.uri == "models:/knee-tune-toy@champion"
    assert aliases(home, "knee-tune-toy") == {
        "champion": second.version,
        "challenger": first.version,
    }
    client = connect(local_store(home))
    version = client.get_model_version("knee-tune-toy", str(second.version))
    assert version.tags["knee.confirmed"] == "yes"


def test_a_champion_that_is_found_again_stays_one(home: Path) -> None:
    first = put(home, trained(home, "toy", seed=1))
    again = put(home, trained(home, "toy", seed=1, alias="candidate"))
    assert (again.alias, again.new) == ("champion", False)
    assert aliases(home, "knee-tune-toy") == {"champion": first.version}


@pytest.mark.parametrize(
    "killed_in",
    ["log_model_artifacts", "log_batch", "finalize_logged_model", "create_model_version"],
)
def test_a_registration_that_was_killed_is_gone_on_with(
    home: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    class KilledError(BaseException): ...

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    model = trained(home, "toy", seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, killed_in, killed)
        with pytest.raises(KilledError):
            put(home, model)
    registered = put(home, model)
    assert registered.version == 1
    client = connect(local_store(home))
    run = client.get_run(registered.run_id)
    (logged,) = client.search_logged_models([run.info.experiment_id])
    assert (logged.model_id, logged.status) == (registered.model_id, "READY")
    assert run.outputs
    assert [each.model_id for each in run.outputs.model_outputs] == [logged.model_id]
    assert len(client.get_metric_history(registered.run_id, "valid/loss")) == 1
    assert mlflow.pyfunc.load_model(registered.uri).predict(["Hallo"])


def test_a_trial_that_was_not_tracked_here_is_said_in_one_line(home: Path) -> None:
    with pytest.raises(UserError, match="no run of trial-9 of study s"):
        put(home, trained(home, "toy", seed=1, key="trial-9"))


def test_a_run_that_was_deleted_is_said_in_one_line(home: Path) -> None:
    client = connect(local_store(home))
    model = trained(home, "toy", seed=1)
    run_id = put(home, model).run_id
    client.delete_run(run_id)
    other = trained(home, "toy", seed=2).model_copy(update={"run_id": run_id})
    with pytest.raises(UserError, match=r"`tracking_uri` sqlite:.*deleted") as refusal:
        put(home, other)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["no SQLite file", "a folder", "another database"])
def test_a_damaged_store_is_said_in_one_line(home: Path, tmp_path: Path, damage: str) -> None:
    """At once: MLflow itself tries for 100 s to open it."""
    model, file = trained(home, "toy", seed=1), tmp_path / "down" / "mlflow.db"
    file.parent.mkdir()
    if damage == "a folder":
        file.mkdir()
    elif damage == "no SQLite file":
        file.write_bytes(b"SQLite format 2" * 1000)
    else:
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE experiments (x INT)")
            other.execute("CREATE TABLE alembic_version (version_num TEXT)")
    with pytest.raises(UserError, match=r"`tracking_uri` sqlite:.*mlflow\.db: ") as refusal:
        register(model, home=file.parent, uri=local_store(file.parent))
    assert str(refusal.value).isprintable()


def test_digits_classify_in_a_fresh_process_with_pickle_forbidden(home: Path) -> None:
    put(home, trained(home, "digits", seed=1))
    script = """
import sys, mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/knee-tune-digits@champion")
images = np.tile(np.arange(64.0) % 17, (3, 1))
print(model.predict(images), model.predict(pd.DataFrame(images)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script, local_store(home)],
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UserWarning" not in answer.stderr
    assert answer.returncode == 0, answer.stderr
    task = tasks.task_entry("digits").build({}, data_dir=home, seed=1)
    torch.manual_seed(1)
    digits = task.predict(task.build_model(), list(np.tile(np.arange(64.0) % 17, (3, 1))))
    assert answer.stdout.strip() == f"{digits} {digits}"


def test_images_are_scored(home: Path) -> None:
    """A batch of images in, their class scores out, and the signature says so."""
    pytest.importorskip("torchvision", reason="needs the vision extra")
    images = generated_images(test=5).test
    put_cifar10(home / "data")
    small = {"model": {"width": 8}, "side": 16}
    registered = put(home, trained(home, "cifar10", seed=1, recipe=small))
    shutil.rmtree(home / "data")  # the model needs none of it
    task = tasks.task_entry("cifar10").build(small, data_dir=home, seed=1)
    torch.manual_seed(1)
    with torch.inference_mode():
        scores = task.predict(task.build_model().eval(), list(images))

    loaded = mlflow.pyfunc.load_model(registered.uri)

    answers = loaded.predict(images)
    assert answers.shape == (5, 10)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, scores, rtol=1e-4, atol=1e-5)
    signature = loaded.metadata.signature
    assert [(spec.type, spec.shape) for spec in signature.inputs] == [("uint8", (-1, 32, 32, 3))]
    assert [(spec.type, spec.shape) for spec in signature.outputs] == [("float32", (-1, 10))]
    with pytest.raises(mlflow.MlflowException):
        loaded.predict(images.astype(np.float32))


def test_photographs_of_any_size_are_scored(home: Path) -> None:
    pytest.importorskip("torchvision", reason="needs the vision extra")
    from knee_tune.tasks.vision.imagenet_index import prepare

    pictures = make_pictures(home.parent / "pictures", train=4, val=2)
    prepare(data_root=home / "data", from_path=pictures)
    small = {"model": {"name": "resnet18", "width": 8}, "image_side": 32, "validation": 1}
    registered = put(home, trained(home, "imagenet", seed=1, recipe=small))

    loaded = mlflow.pyfunc.load_model(registered.uri)

    for height, width in ((40, 60), (32, 32)):
        photographs = np.zeros((2, height, width, 3), np.uint8)
        assert loaded.predict(photographs).shape == (2, len(CLASSES))


def test_a_text_is_continued(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    small = {"model": {"layers": 1, "width": 16, "heads": 2, "context": 16}}
    registered = put(home, trained(home, "gpt", seed=1, recipe=small))
    shutil.rmtree(home / "data")  # the model needs none of it

    (answer,) = mlflow.pyfunc.load_model(registered.uri).predict(["To be"])

    assert answer.startswith("To be")
    assert len(answer) > len("To be")


def test_masked_words_are_filled_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="needs the language extra")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    (home / "data").mkdir(exist_ok=True)
    put_documents(home / "data")
    size = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "positions": 16}
    recipe = {"data": "documents", "model": size, "length": 16, "batch_size": 4}
    registered = put(home, trained(home, "bert", seed=1, recipe=recipe))
    shutil.rmtree(home / "data")

    (answer,) = mlflow.pyfunc.load_model(registered.uri).predict(["They went to [MASK]."])

    assert len(answer.split(", ")) == 5


def test_a_question_is_answered_from_its_paragraph(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder's own folder may be gone as well."""
    pytest.importorskip("transformers", reason="needs the language extra")
    import pandas as pd  # type: ignore[import-untyped]

    from knee_tune.tasks.bert.encoder import build_encoder, save_encoder
    from knee_tune.tasks.bert.size import EncoderSize
    from knee_tune.tasks.bert.squad_prepare import find_prepared

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    encoder = home.parent / "encoder"
    encoder.mkdir()
    folder, _ = find_prepared(home / "data", "squad-demo")
    shutil.copy(folder / "vocab.txt", encoder)
    size = EncoderSize(layers=1, width=16, heads=2, feed_forward=16)
    save_encoder(build_encoder(size, vocabulary=600), encoder)
    recipe = {"data": "squad-demo", "model": {"path": str(encoder)}}
    registered = put(home, trained(home, "squad", seed=1, recipe=recipe))
    shutil.rmtree(home / "data")
    shutil.rmtree(encoder)

    loaded = mlflow.pyfunc.load_model(registered.uri)

    asked = {"question": "Where was Ada born?", "context": "Ada was born in Larne in 1850."}
    for answers in (loaded.predict([asked, asked]), loaded.predict(pd.DataFrame([asked] * 2))):
        assert len(answers) == 2
        assert answers[0] in asked["context"]
    with pytest.raises(mlflow.MlflowException, match="context"):
        loaded.predict([{"question": "Where was Ada born?"}])


def test_a_home_that_was_moved_keeps_its_runs_and_models_together(home: Path) -> None:
    registered = register(trained(home, "toy", seed=1), home=home, uri=local_store(home))
    moved = home.rename(home.with_name("moved"))
    uri = local_store(moved)
    again = register(trained(moved, "toy", seed=2), home=moved, uri=uri)
    mlflow.set_tracking_uri(uri)
    for version in (registered.version, again.version):
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{again.name}/{version}"))
        assert (folder / "MLmodel").is_file()
    stored = connect(uri).get_logged_model(registered.model_id).artifact_location
    assert stored.startswith((moved / "artifacts").as_uri())
    assert not home.exists()


def test_models_of_scripts_whose_modules_have_the_same_names_load_beside_each_other(
    tmp_path: Path,
) -> None:
    from knee_tune.tracking.serving_script import own_module

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper_of_both.py").write_text(f"NAME = {name!r}")
        (tmp_path / name / "serve_of_both.py").write_text("from helper_of_both import NAME")
    found = [own_module("serve_of_both", tmp_path / name).NAME for name in ("one", "other", "one")]
    assert found == ["one", "other", "one"]
