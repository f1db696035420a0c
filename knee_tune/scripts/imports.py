"""What a script imports, told from its text alone: what the warm process can have ready."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def installed_imports(script: Path) -> tuple[str, ...]:
    """Modules that a script, or a file beside it that it imports, imports at its top.

    Python's own and the script's are left out; what is not installed, or no Python, is passed over
    in time: whoever runs the script is told.
    """
    found: dict[str, None] = {}
    waiting, seen = [script], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _at_the_top(file):
            beside = script.parent.joinpath(*name.split("."))
            own = [
                each
                for each in (beside.with_suffix(".py"), beside / "__init__.py")
                if each.is_file()
            ]
            if own:
                waiting += own
            elif name.partition(".")[0] not in (*sys.stdlib_module_names, "knee_tune"):
                found[name] = None
    return tuple(found)


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
