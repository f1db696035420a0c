"""Finding a prepared set; the demo set is made on first use."""

from pathlib import Path

from filelock import FileLock

from knee_tune.errors import UserError
from knee_tune.tasks.translation.manifest import CODES, MANIFEST, Manifest

DEMO = "demo.de-en"


def find_prepared(data_dir: Path, name: str) -> tuple[Path, Manifest]:
    """Folder and manifest of the prepared set ``name``; generates the demo set if it is missing.

    The files themselves are not looked at: a served model has those of :func:`asset_names` only.
    Raises UserError when there is no such set.
    """
    folder = data_dir / name
    if name == DEMO and not (folder / MANIFEST).exists():
        _generate_demo(data_dir)
    try:
        return folder, Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"recipe.data={name}: no prepared data in {folder}; "
            "run 'knee-tune data prepare iwslt', or use '--preset demo', which needs none"
        ) from None
    except ValueError:
        raise UserError(
            f"recipe.data={name}: {folder / MANIFEST} is damaged or of another version; "
            f"remove {folder} and prepare the data again"
        ) from None


def asset_names(manifest: Manifest) -> list[str]:
    """The files of a prepared set that translating raw sentences needs."""
    return [f"dict.{manifest.source}.txt", f"dict.{manifest.target}.txt", CODES, MANIFEST]


def _generate_demo(data_dir: Path) -> None:
    """Once, however many ranks and drivers ask at the same time."""
    from knee_tune.tasks.translation.grammar import prepare_demo  # nobody else needs it

    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f".{DEMO}.lock"):
        if not (data_dir / DEMO / MANIFEST).exists():
            prepare_demo(data_dir)
