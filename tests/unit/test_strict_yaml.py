"""YAML without surprises."""

import math
from pathlib import Path
from typing import Any

import pytest

from knee_tune.config.strict_yaml import Document, parse_value, read_document
from knee_tune.errors import UserError


def read(folder: Path, text: str) -> Document:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return read_document(path, "file.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),  # text in YAML 1.1
        ("3.0e-4", 0.0003),
        (".5", 0.5),
        ("-2", -2),
        ("010", 10),  # eight in YAML 1.1
        ("1:30", "1:30"),  # ninety in YAML 1.1
        ("no", "no"),  # false in YAML 1.1
        ("true", True),
        ("'1e-3'", "1e-3"),
        ("2024-01-01", "2024-01-01"),
        ("iwslt14.de-en", "iwslt14.de-en"),
        ("null", None),
        ("", None),
        ("[1e-4, 3e-4]", [1e-4, 3e-4]),
        ("{low: 1, high: 2}", {"low": 1, "high": 2}),
        ("-.inf", -math.inf),
    ],
)
def test_values_are_what_they_look_like(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_every_field_knows_its_line(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb:\n  c: 2\n  d:\n    - 3\n    - e: 4\n")
    assert document.data == {"a": 1, "b": {"c": 2, "d": [3, {"e": 4}]}}
    assert document.line(("a",)) == 1
    assert document.line(("b", "c")) == 3
    assert document.line(("b", "d", 1, "e")) == 6
    assert document.line(("b", "missing")) == 2
    assert document.line(("missing",)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "file.yaml: line 3: key 'a' is given twice (first on line 1)"),
        ("a: &x 1\nb: *x\n", "file.yaml: line 1: anchors and aliases are not supported"),
        ("a: &x [*x]\n", "file.yaml: line 1: anchors and aliases are not supported"),
        ("a: !!python/name:os.system\n", "is not supported"),
        ("a: !!set {b}\n", "is not supported"),
        ("? [a]\n: 1\n", "file.yaml: line 1: a key must be text"),
        ("a: [1\n", "file.yaml: line 2: while parsing a flow sequence"),
        ("a: b: c\n", "file.yaml: line 1: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("- a\n", "file.yaml: must be a mapping of keys to values, got ['a']"),
        ("", "file.yaml: must be a mapping of keys to values, got None"),
        ("a: \x00\n", "file.yaml: not valid YAML"),
        ("a: " + "[" * 5000, "file.yaml: line 1: nested more than 20 levels deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(500)), "line 21: nested more than 20 levels"),
        ("a: " + "9" * 5000, "file.yaml: line 1: a whole number of more than 18 digits"),
        ('a: "\\0"\n', "file.yaml: line 1: control characters in text are not supported"),
        ('"\\ud800": 1\n', "file.yaml: line 1: control characters in text are not supported"),
        ("a: !!int x\n", "file.yaml: line 1: 'x' is no int"),
        ("a: " + "x" * 200_000, "file.yaml: larger than 200,000 bytes"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^folder: cannot be read: "):
        read_document(tmp_path, "folder")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    with pytest.raises(UserError, match=r"latin\.yaml: cannot be read: it is not UTF-8 text"):
        read_document(tmp_path / "latin.yaml", "latin.yaml")
