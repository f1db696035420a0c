"""A text that BERT learns: documents of some words, with blank lines between them."""

from importlib.util import find_spec
from pathlib import Path


def put_documents(folder: Path, *, last: str = "Finis") -> None:
    """Prepare it in a data folder, as ``documents``; nothing where tokenizers is missing."""
    if find_spec("tokenizers") is None:
        return
    from knee_tune.tasks.bert.pretraining_text import prepare

    lines = [f"They went to Bath in the {n % 7} th week, and {n} friends came." for n in range(80)]
    (folder / "documents.txt").write_text("\n\n".join([*lines, last]))
    prepare(data_root=folder, from_path=folder / "documents.txt")
