"""Questions in SQuAD v1.1's form: read, looked through, split by article, prepared."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.bert.squad_demo import demo_articles
from knee_tune.tasks.bert.squad_text import (
    asked_of,
    in_v1_form,
    questions_of,
    read_articles,
    split_by_article,
)

pytest.importorskip("tokenizers", reason="needs the language extra")

from knee_tune.tasks.bert.squad_prepare import find_prepared, prepare, read_questions

CONTEXT = "Ada kept bees in Larne."


def article(title: str = "Ada", **changes: Any) -> dict[str, Any]:
    """An article of one question; ``changes`` are of the question."""
    answers = [{"answer_start": 9, "text": "bees"}]
    asked = {"id": title, "question": "What did Ada keep?", "answers": answers, **changes}
    return {"title": title, "paragraphs": [{"context": CONTEXT, "qas": [asked]}]}


def put(path: Path, *articles: Any) -> Path:
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    articles = read_articles(put(tmp_path / "one.json", article(), article("Bo", extra=1)))
    (tmp_path / "two.json").write_bytes(in_v1_form(articles))
    assert read_articles(tmp_path / "two.json") == articles
    one, _ = questions_of(articles)
    assert (one.question, one.context) == ("What did Ada keep?", CONTEXT)
    assert one.context[one.answers[0].answer_start : one.answers[0].end] == "bees"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"answers": [{"answer_start": 8, "text": "bees"}]},
            "question Ada: answer 'bees' is not what stands at its answer_start 8, ' bee'",
        ),
        ({"answers": []}, "question Ada: it has no answer; SQuAD v2.0"),
        ({"answers": [{"answer_start": 9, "text": " "}]}, "question Ada: one of its answers is em"),
        ({"question": ""}, "question Ada: it is empty"),
        ({"id": "Bo"}, "question Bo: its id is that of an earlier one"),
        ({"answers": "bees"}, r"v1\.1: data\.1\.paragraphs\.0\.qas\.0\.answers: "),
        ({"id": 5}, r"data\.1\.paragraphs\.0\.qas\.0\.id: Input should be a valid string"),
    ],
)
def test_a_question_that_is_wrong_is_named_with_its_file(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = put(tmp_path / "bad.json", article("Bo"), article(**changes))
    with pytest.raises(UserError, match=f"^{path}: .*{said}") as error:
        read_articles(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", "no json", '{"data": 1}', '{"data": []}'])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=r"bad\.json: (not in the form|no question)"):
        read_articles(tmp_path / "bad.json")


def test_an_input_is_a_question_and_its_paragraph() -> None:
    assert asked_of({"question": "What?", "context": CONTEXT}).context == CONTEXT
    for given in ("What?", {"question": "What?"}, {"question": 1, "context": CONTEXT}):
        with pytest.raises(UserError, match='a "question" and a "context"'):
            asked_of(given)


def test_the_generated_questions_are_always_the_same(tmp_path: Path) -> None:
    """Their fingerprint is in the identity of runs."""
    folder, manifest = find_prepared(tmp_path, "squad-demo")
    assert manifest.questions == {"train": 480, "valid": 60, "test": 60}
    digest = sha256(in_v1_form(demo_articles())).hexdigest()
    assert digest == "3244dc469032fe7c54b2c78bf76018abc5bc78c2f08642c1ece12e6b7d7fc6b7"
    first = read_questions(folder, "train")[0]
    assert first.question == "What year was the birth of Piet Marsh?"
    assert first.answers[0].text == "1817"
    assert prepare(data_root=tmp_path).reused


# Splits


def test_no_article_is_in_two_splits_and_shares_are_of_questions() -> None:
    articles = demo_articles()
    splits = split_by_article(articles, {"valid": 0.05, "test": 0.2})
    titles = [article.title for split in splits.values() for article in split]
    assert sorted(titles) == sorted(article.title for article in articles)
    counts = {name: sum(each.questions for each in split) for name, split in splits.items()}
    assert counts == {"train": 450, "valid": 30, "test": 120}


def test_of_a_folder_the_development_set_is_the_test_set(tmp_path: Path) -> None:
    """It is what the literature reports on; validation is cut from the training set."""
    put(tmp_path / "train-v1.1.json", *(article(str(number)) for number in range(40)))
    put(tmp_path / "dev-v1.1.json", article("dev"))
    done = prepare(data_root=tmp_path / "data", from_path=tmp_path)
    assert done.name == "squad"
    assert done.questions == {"train": 38, "valid": 2, "test": 1}
    assert [each.id for each in read_questions(done.folder, "test")] == ["dev"]
    (tmp_path / "dev-v1.1.json").unlink()
    with pytest.raises(UserError, match=r"no dev-v1\.1\.json in it"):
        prepare(data_root=tmp_path / "data", from_path=tmp_path)


def test_other_questions_need_another_name_or_force(tmp_path: Path) -> None:
    file = put(tmp_path / "mine.json", *(article(str(number)) for number in range(3)))
    first = prepare(data_root=tmp_path / "data", from_path=file)
    assert first.contents().startswith("1 train questions on 1 articles, 1 valid")
    put(file, *(article(str(number)) for number in range(4)))
    with pytest.raises(UserError, match=r"prepared from other questions .*choose another `name`"):
        prepare(data_root=tmp_path / "data", from_path=file)
    assert prepare(data_root=tmp_path / "data", from_path=file, force=True).name == "mine"


def test_too_few_articles_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    file = put(tmp_path / "mine.json", article(), article("Bo"))
    with pytest.raises(UserError, match="2 articles cannot be split into train, valid, test"):
        prepare(data_root=tmp_path / "data", from_path=file)
    with pytest.raises(UserError, match="no such file or folder"):
        prepare(data_root=tmp_path / "data", from_path=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"recipe\.data=mine: no prepared questions"):
        find_prepared(tmp_path / "data", "mine")
    assert not [*(tmp_path / "data").glob("*")]
