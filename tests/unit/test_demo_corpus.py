"""The demo corpus, and the grammar that generated it."""

import bz2
import re

from benchmarks.demo_corpus import NOUNS, content, generate
from knee_tune.tasks.translation.demo import PAIRS, TEXT, demo_text


def test_the_generator_gives_the_file() -> None:
    assert bz2.decompress(TEXT.read_bytes()).decode() == content(generate())


def test_a_seed_always_gives_the_same_sentences() -> None:
    assert generate(3) == generate(3)
    assert generate(3) != generate(4)


def test_the_splits_have_their_sizes_and_share_no_sentence() -> None:
    text = demo_text()
    assert {split: len(source) for split, (source, _) in text.items()} == PAIRS
    sources = [line for source, _ in text.values() for line in source]
    assert len(set(sources)) == sum(PAIRS.values())


def test_held_out_text_has_no_unknown_words() -> None:
    text = demo_text()
    for side in (0, 1):
        known = set(" ".join(text["train"][side]).split())
        assert 200 < len(known) < 500
        assert set(" ".join(text["valid"][side] + text["test"][side]).split()) <= known


def test_determiners_agree_with_gender_case_and_number() -> None:
    sentences = dict(zip(*demo_text()["train"], strict=True))
    masculine = {noun.german for noun in NOUNS if noun.gender == "m" and noun.german != noun.plural}
    for german in sentences:
        for article, noun in re.findall(r"\b(der|den|dem|die|das) (\w+)", german):
            if noun in masculine:
                assert article in ("der", "den", "dem"), german


def test_the_verb_is_second_in_main_and_last_in_subordinate_clauses() -> None:
    sentences = demo_text()["train"][0]
    because = [line for line in sentences if line.startswith("weil ")]
    assert because
    finite = re.compile(r"(t|en|ß|kann|soll|darf|muss|wäscht) , (\w+)")
    assert all(finite.search(line) for line in because)


def test_separable_verbs_are_apart_in_main_and_together_in_subordinate_clauses() -> None:
    sentences = demo_text()["train"][0]
    assert any(re.search(r"\b(macht|machen)\b.* auf \.$", line) for line in sentences)
    assert any("aufmacht" in line or "ansieht" in line for line in sentences)
