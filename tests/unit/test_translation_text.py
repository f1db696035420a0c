"""Text processing as the Moses scripts of fairseq's IWSLT'14 recipe do it."""

import pytest

from knee_tune.tasks.translation.text import (
    is_clean,
    moses,
    tokenize_lines,
)

pytest.importorskip("sacremoses")


@pytest.mark.parametrize(
    ("language", "plain", "tokens"),
    [
        ("en", "It's that pyramid.", "It &apos;s that pyramid ."),
        ("de", 'Er sagte: "Ja, klar!"', "Er sagte : &quot; Ja , klar ! &quot;"),
        ("en", "Mr. Smith paid 5,300 $.", "Mr. Smith paid 5,300 $ ."),
        ("de", "Das ist z.B. so", "Das ist z.B. so"),
        # The period at the end of the line always stands alone, after abbreviations too.
        ("de", "Äpfel, Birnen usw.", "Äpfel , Birnen usw ."),
        ("en", "in the U.S.", "in the U.S ."),
        ("en", "and so on...", "and so on ..."),
        ("en", "[unclear] a & b", "&#91; unclear &#93; a &amp; b"),
    ],
)
def test_tokens_are_those_of_moses(language: str, plain: str, tokens: str) -> None:
    assert moses(language).tokenize(plain) == tokens


@pytest.mark.parametrize(
    "plain", ["it's that pyramid.", 'he said: "yes, of course!"', "[unclear] a & b (c)"]
)
def test_detokenized_text_is_plain_again(plain: str) -> None:
    english = moses("en")
    assert english.detokenize(english.tokenize(plain)) == plain


def test_many_lines_keep_their_order_over_processes() -> None:
    lines = [f"Zeile {number}, bitte." for number in range(20_001)]
    seen: list[float] = []
    tokenized = tokenize_lines(
        lines,
        "de",
        workers=2,
        progress=lambda text, fraction: seen.append(fraction),
    )
    assert tokenized == [f"zeile {number} , bitte ." for number in range(20_001)]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("a b c", "x y", True),
        ("a b c d", "x y", False),
        ("x y", "a b c d", False),
        ("", "x", False),
        ("a " * 175, "x " * 175, True),
        ("a " * 176, "x " * 175, False),
    ],
)
def test_cleaning_keeps_pairs_of_like_length(source: str, target: str, kept: bool) -> None:
    assert is_clean(source, target) is kept
