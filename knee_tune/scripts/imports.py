"""What a script imports, told from its text alone: what the warm process can have ready."""

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def installed_imports(script: Path) -> tuple[str, ...]:
    """Modules of installed libraries that a script, or a file of its own, imports at its top."""
    return imports_of(script.parent, [script])[1]


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
        for name in _at_the_top(file):
            beside = folder.joinpath(*name.split("."))
            candidates = (beside.with_suffix(".py"), beside / "__init__.py")
            if found := [each for each in candidates if each.is_file()]:
                waiting += found
            elif name.partition(".")[0] not in (*sys.stdlib_module_names, "knee_tune"):
                others[name] = None
    return tuple(own), tuple(others)


def _at_the_top(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
