"""A prepared language pair on disk, found or (the demo set) made on first use."""

import json
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from knee_tune.errors import UserError

DEMO = "demo.de-en"
MANIFEST = "manifest.json"
ASSETS = ("dict.{source}.txt", "dict.{target}.txt", "bpe.codes", MANIFEST)
"""What translating raw sentences needs of a prepared set."""


@dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """A folder with dictionaries, BPE codes and, for training, the binarised splits."""

    folder: Path
    source: str
    target: str
    fingerprint: str
    pairs: dict[str, int]

    def assets(self) -> dict[str, Path]:
        """Files that translating needs, by their name below the data directory."""
        names = [name.format(source=self.source, target=self.target) for name in ASSETS]
        return {f"{self.folder.name}/{name}": self.folder / name for name in names}


def open_prepared(data_dir: Path, name: str) -> PreparedSet:
    """The prepared set ``name``; generates the demo set where it is missing.

    Raises UserError when there is no such set.
    """
    folder = data_dir / name
    if name == DEMO and not (folder / MANIFEST).exists():
        _generate_demo(data_dir)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"recipe.data={name}: no prepared data in {folder}; "
            "run 'knee-tune data prepare iwslt', or use '--preset demo', which needs none"
        ) from None
    return PreparedSet(
        folder=folder,
        source=manifest["source"],
        target=manifest["target"],
        fingerprint=manifest["fingerprint"],
        pairs=manifest["pairs"],
    )


def _generate_demo(data_dir: Path) -> None:
    """Once, however many ranks and drivers ask at the same time."""
    from knee_tune.tasks.translation.grammar import prepare_demo

    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f".{DEMO}.lock"):
        if not (data_dir / DEMO / MANIFEST).exists():
            prepare_demo(data_dir)
