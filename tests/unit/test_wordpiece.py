"""WordPiece tokenizers: read from what is published, learned from texts, refused if of no use."""

import json
from pathlib import Path

import pytest

from knee_tune.errors import UserError

pytest.importorskip("tokenizers", reason="needs the language extra")

from knee_tune.tasks.bert.wordpiece import (
    SPECIAL,
    Specials,
    learn_vocabulary,
    read_tokenizer,
    wordpiece,
    write_vocabulary,
)

TEXTS = ["Knees bend, knees hold.", "A knee bends; no knee holds for ever, and none bends back."]
TOKENS = [*SPECIAL, "knee", "##s", "bend", ",", "é"]


def test_words_become_the_longest_pieces_with_their_places_in_the_text() -> None:
    found = wordpiece(TOKENS).encode("Knees  BÉND, no", add_special_tokens=False)
    assert found.tokens == ["knee", "##s", "bend", ",", "[UNK]"]
    assert found.offsets == [(0, 4), (4, 5), (7, 11), (11, 12), (13, 15)]


def test_a_vocabulary_is_learned_from_texts_and_always_the_same() -> None:
    learned = learn_vocabulary(TEXTS, size=60)
    assert learned == learn_vocabulary(TEXTS, size=60)
    assert learned[:5] == list(SPECIAL)
    assert "knee" in learned
    assert (
        "[UNK]" not in wordpiece(learned).encode(" ".join(TEXTS), add_special_tokens=False).tokens
    )


def test_both_forms_of_a_folder_are_read(tmp_path: Path) -> None:
    write_vocabulary(TOKENS, tmp_path / "vocab.txt")
    of_vocabulary = read_tokenizer(tmp_path, named="DIR")
    whole = wordpiece(TOKENS)
    whole.enable_truncation(2)
    whole.enable_padding(length=8)
    whole.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (of_vocabulary, read_tokenizer(tmp_path, named="DIR")):
        found = tokenizer.encode("Knees bend,", add_special_tokens=False)
        assert found.ids == [5, 6, 7, 8], "neither padded nor cut"
        assert Specials.of(tokenizer) == Specials(0, 1, 2, 3, 4)


def test_a_cased_vocabulary_stays_cased(tmp_path: Path) -> None:
    write_vocabulary([*SPECIAL, "Knee"], tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert read_tokenizer(tmp_path, named="DIR").encode("Knee", add_special_tokens=False).ids == [5]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("none", "", r"neither vocab\.txt nor tokenizer\.json in it"),
        ("vocab.txt", "knee\n##s\n", r"of BERT's kind: it has no token \[PAD\]"),
        ("vocab.txt", "knee\nknee\n", "'knee' twice"),
        ("tokenizer.json", "{}", r"tokenizer\.json: "),
        (
            "tokenizer.json",
            '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, '
            '"merges": []}}',
            "is of BPE, not of WordPiece",
        ),
    ],
)
def test_a_folder_without_such_a_tokenizer_is_refused(
    file: str, content: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=f"^DIR: .*{said}") as error:
        read_tokenizer(tmp_path, named="DIR")
    assert "\n" not in str(error.value)
