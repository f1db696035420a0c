"""What a script imports, told from its text alone: what the warm process can have ready."""

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def installed_imports(script: Path) -> tuple[str, ...]:
    """What a script, or a file of its own, imports of installed libraries at its top.

    Modules, and ``module:name`` for what it takes from one: some import it only when asked for.
    """
    return tuple(
        dict.fromkeys(
            each
            for file in imports_of(script.parent, [script])[0]
            for module, name in _at_the_top(file)
            if _installed(module) and not _beside(script.parent, module)
            for each in (module, *([f"{module}:{name}"] if name else ()))
        )
    )


def imports_of(folder: Path, files: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Files below ``folder`` that ``files`` need, themselves included, and other modules.

    Python's own and knee-tune are left out; what is not installed, or no Python, is passed over
    here: whoever runs the script is told.
    """
    others: dict[str, None] = {}
    waiting, own = [*files], dict[Path, None]()
    while waiting:
        file = waiting.pop()
        if file in own:
            continue
        own[file] = None
        for module, _ in _at_the_top(file):
            if found := _beside(folder, module):
                waiting += found
            elif _installed(module) and module.partition(".")[0] != "knee_tune":
                others[module] = None
    return tuple(own), tuple(others)


def _beside(folder: Path, module: str) -> list[Path]:
    """The files of a module that lies in ``folder``; none for any other."""
    place = folder.joinpath(*module.split("."))
    return [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]


def _installed(module: str) -> bool:
    return module.partition(".")[0] not in sys.stdlib_module_names


def _at_the_top(file: Path) -> Iterator[tuple[str, str]]:
    """Modules, each with a name that is taken from it, or an empty one."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
