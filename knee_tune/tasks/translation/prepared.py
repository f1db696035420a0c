"""Finding a prepared set; the demo set is made on first use."""

from pathlib import Path

from filelock import FileLock

from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import MANIFEST
from knee_tune.tasks.translation.manifest import DEMO, Manifest, read_manifest


def find_prepared(data_dir: Path, name: str) -> tuple[Path, Manifest]:
    """Folder and manifest of the prepared set ``name``; generates the demo set if it is missing.

    The files themselves are not looked at. UserError if there is no such set.
    """
    folder = data_dir / name
    if name == DEMO and not (folder / MANIFEST).exists():
        _generate_demo(data_dir)
    try:
        return folder, read_manifest(folder)
    except UserError as error:
        raise UserError(f"recipe.data={name}: {error}") from None


def _generate_demo(data_dir: Path) -> None:
    """Once, however many ranks and drivers ask at the same time."""
    from knee_tune.tasks.translation.grammar import prepare_demo  # nobody else needs it

    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f".{DEMO}.lock"):
        if not (data_dir / DEMO / MANIFEST).exists():
            prepare_demo(data_dir)
