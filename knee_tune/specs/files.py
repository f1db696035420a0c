"""Where search spaces and studies are: an explicit path, the working folder, the packaged copy."""

from pathlib import Path
from typing import Literal

from knee_tune.errors import UserError, disk_trouble
from knee_tune.specs.problems import nearest
from knee_tune.specs.strict_yaml import Document, read_document

Kind = Literal["search_spaces", "studies"]

_NOUN = {"search_spaces": "task", "studies": "study"}
_PACKAGE = Path(__file__).resolve().parent.parent


def available(kind: Kind) -> dict[str, Path]:
    """Every search space or study by name; the working folder's win over the packaged ones."""
    files: dict[str, Path] = {}
    for folder in (_packaged(kind), Path(kind)):
        files |= {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return dict(sorted(files.items()))


def find(kind: Kind, name: str) -> Path:
    """The file called ``name``, or the file at the path ``name`` if it looks like one.

    UserError with the nearest name if there is none.
    """
    noun = _NOUN[kind]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            found = path.is_file()
        except OSError as error:  # a name too long, a folder that may not be read
            if disk_trouble(error):
                raise
            raise UserError(f"{noun} {name}: {error.strerror}") from None
        if not found:
            raise UserError(f"{noun} {name}: no such file")
        return path
    files = available(kind)
    if name not in files:
        close = nearest(name, files)
        meant = f"did you mean '{close}'? " if close else ""
        raise UserError(f"{noun} {name}: not known; {meant}known: {', '.join(files)}")
    return files[name]


def read_files(*, task: str | None, study: str | None) -> tuple[Document, Document | None]:
    """The search space of a task, and the study file if one is asked for.

    ``study`` (a name or a path) decides the task, unless ``task`` is given too: then the two must
    agree. UserError if there is neither, or a file is not to be found.
    """
    study_file = _read("studies", study) if study is not None else None
    if study_file is not None:
        of_study = study_file.data.get("task")
        if not isinstance(of_study, str):
            raise UserError(f"{study_file.label}: task: missing; name the task that is studied")
        if task not in (None, of_study):
            raise UserError(f"--task {task}: {study_file.label} is a study of task {of_study}")
        try:
            return _read("search_spaces", of_study), study_file
        except UserError as error:
            raise UserError(f"{study_file.label}: {error}") from None
    if task is None:
        raise UserError("give --task or --study: which task is to be studied?")
    return _read("search_spaces", task), None


def _read(kind: Kind, name: str) -> Document:
    path = find(kind, name)
    folder = Path.cwd()
    inside = path.is_absolute() and path.is_relative_to(folder)
    return read_document(path, str(path.relative_to(folder) if inside else path))


def _packaged(kind: Kind) -> Path:
    """The folder inside the installed package, or the repository's in a source checkout."""
    installed = _PACKAGE / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind
