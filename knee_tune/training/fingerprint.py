"""A fingerprint of the code that trains: what was saved by other code is not what this would do.

Seen is what can be read without running it: every module that the training code, the task and its
model import, anywhere in their files. Not seen are modules that are loaded by a name made up at run
time, and files that the task's own code reads (``describe`` of a task tells of its data).
"""

import ast
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, distributions
from pathlib import Path
from pkgutil import get_importer, iter_modules
from threading import Lock
from typing import Any

_ENGINE = (
    *("knee_tune.training.loop", "knee_tune.training.single", "knee_tune.training.fused"),
    "knee_tune.workers.rank",
)
"""What every run is trained by: all else of this package that decides its bits is imported here."""

_STDLIB = (Path(os.__file__).parent, Path(os.__file__).parent / "lib-dynload")

_FIELDS = {
    kind: tuple(name for name in kind._fields if name not in ("ctx", "kind", "type_comment"))
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
"""What a node of a syntax tree says, without what follows from where it stands."""


class TrainingCode:
    """The modules that decide a run's bits, and all that they import.

    Modules of this package, and of the distribution or folder that the task is from, count as
    their syntax trees, and so does everything else that is nobody's installed library; of those the
    version counts. Docstrings, comments and layout do not; docstrings do in a file that mentions
    ``__doc__``. Read from their files, with nothing imported, in about a tenth of a second.
    """

    def __init__(self, task: str, *others: str, script: Path | None = None) -> None:
        """``task``: the module of the task's class. ``others`` belong to it, as its recipe's.

        ``script``: a file that trains, wherever it lies; modules beside it are found first.
        """
        self.modules: dict[str, str] = {}
        """Name and digest of those that count with their code."""
        self.files: dict[str, Path] = {}
        """Name and file of those among them that are not of this package."""
        self.libraries = {"python": "{}.{}".format(*sys.version_info)}
        """Name and version of the distributions that the others are from."""
        self._seen: set[str] = set()
        self._specs: dict[str, ModuleSpec | None] = {}
        self._path = [*([str(script.parent)] if script else []), *sys.path]
        top = task.partition(".")[0]
        self._tops = {"knee_tune": True, top: True}
        """Whether the modules below a top-level name count with their code."""
        self.home = _installed(self._spec(top), top)
        """Name and version of the distribution that the task is from, if it is installed."""
        self.follow((*_ENGINE, task, *others))
        if script is not None:
            self.modules["__main__"], imports = _said(script.read_bytes())
            self.follow(name for node in imports for name in self._imported(node, ""))

    @property
    def fingerprint(self) -> str:
        """The same for the same code and libraries, wherever they are."""
        parts = [sorted(self.modules.items()), sorted(self.libraries.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def follow(self, names: Iterable[str]) -> None:
        """Take in these modules; names of what is no module, too, are passed over."""
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in self._seen:
                continue
            self._seen.add(name)
            parent, _, _ = name.rpartition(".")
            if not self._counts(name.partition(".")[0]):
                continue
            waiting.append(parent or name)
            spec = self._spec(name)
            read = getattr(spec.loader, "get_data", None) if spec else None
            if spec is None or spec.origin is None or not spec.has_location or read is None:
                continue
            content = read(spec.origin)
            if name.partition(".")[0] != "knee_tune":
                self.files[name] = Path(spec.origin)
            if not spec.origin.endswith(".py"):  # compiled
                self.modules[name] = hashlib.sha256(content).hexdigest()
                continue
            self.modules[name], imports = _said(content)
            package = name if spec.submodule_search_locations is not None else parent
            for node in imports:
                waiting += self._imported(node, package)

    def _imported(self, node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
        """The modules that the statement may mean, in a module of that package."""
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        yield source
        for alias in node.names:
            if alias.name != "*":
                yield f"{source}.{alias.name}"
            elif self._counts(source.partition(".")[0]) and (spec := self._spec(source)):
                # Its __all__ may name modules that are loaded by this.
                found = iter_modules(spec.submodule_search_locations or ())
                yield from (f"{source}.{each.name}" for each in found)

    def _counts(self, top: str) -> bool:
        """Whether modules below that top-level name count with their code.

        Of an installed library its version is noted.
        """
        if top not in self._tops:
            self._tops[top] = self._is_own(top)
        return self._tops[top]

    def _is_own(self, top: str) -> bool:
        spec = self._spec(top)
        if spec is None or _is_standard(spec, top):
            return False
        installed = _installed(spec, top)
        if self.home.keys() & installed.keys():
            return True
        self.libraries |= installed
        return not installed

    def _spec(self, name: str) -> ModuleSpec | None:
        """Find where the module is; None if there is none of that name."""
        if name not in self._specs:
            parent, _, _ = name.rpartition(".")
            if not parent:
                self._specs[name] = _found(name, self._path) or _built_in(name)
            else:
                above = self._spec(parent)
                locations = above.submodule_search_locations if above else None
                self._specs[name] = _found(name, locations or ())
        return self._specs[name]


def _found(name: str, locations: Iterable[str]) -> ModuleSpec | None:
    """Find a module as a fresh process would, whatever this one has loaded; no parent is loaded.

    Folders without ``__init__.py`` make one package together.
    """
    portions = list[str]()
    for location in locations:
        finder = get_importer(location)
        spec = finder.find_spec(name) if finder else None
        if spec is not None and spec.loader is not None:
            return spec
        portions += (spec.submodule_search_locations if spec else None) or ()
    if not portions:
        return None
    package = ModuleSpec(name, None, is_package=True)
    package.submodule_search_locations = portions
    return package


def _built_in(name: str) -> ModuleSpec | None:
    """Find a module that is no file below ``sys.path``: Python's own, or an editable one."""
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(name)
    return None


def _is_standard(spec: ModuleSpec, name: str) -> bool:
    """Whether it is of Python itself. A file of one's own may have the name of such a module."""
    return name in sys.stdlib_module_names and (
        not spec.has_location or _folder(spec) in (None, *_STDLIB)
    )


def _folder(spec: ModuleSpec) -> Path | None:
    """The folder that a top-level module or package is in."""
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin).parent if spec.origin else None


def _installed(spec: ModuleSpec | None, top: str) -> dict[str, str]:
    """Name and version of the distributions that installed what is there under that top-level name.

    One of the same name is looked at first: to go through all of them takes 20 ms.
    """
    folder = _folder(spec) if spec else None
    if folder is None or not _holds_libraries(folder):
        return {}
    path = [str(folder)]
    named = [each for each in distributions(name=top, path=path) if _provides(each, top)]
    found = named or [each for each in distributions(path=path) if _provides(each, top)]
    return {each.name: each.version for each in found}


@cache
def _holds_libraries(folder: Path) -> bool:
    """Whether it is for installed distributions, and no folder of somebody's own code.

    Metadata beside sources that are being worked on, as ``pip install -e`` leaves them, tells of
    no installed library.
    """
    named = folder.name in ("site-packages", "dist-packages")
    return named or any(folder.glob("*.dist-info"))


def _provides(distribution: Distribution, top: str) -> bool:
    names = distribution.read_text("top_level.txt")
    if names is not None:
        return top in names.split()
    files = f"\n{distribution.read_text('RECORD') or ''}"
    return f"\n{top}/" in files or f"\n{top}." in files


_PARSING = Lock()
"""Threads that parse at the same time share a counter of Python 3.11, and get a SystemError."""


@cache
def _said(source: bytes) -> tuple[str, tuple[ast.Import | ast.ImportFrom, ...]]:
    """The digest of a file's syntax tree, the same for every layout, and what it imports.

    What this Python does not take for a module counts as it is. The walk is our own, for
    ``ast.dump`` takes three times as long.
    """
    try:
        with _PARSING:
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return hashlib.sha256(source).hexdigest(), ()
    docstrings = b"__doc__" in source
    said, imports = list[str](), list[ast.Import | ast.ImportFrom]()
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        kind = node.__class__
        if kind is ast.If and _for_typing(node.test):
            waiting.append(node.orelse)
            continue
        fields = _FIELDS.get(kind)
        if fields is not None:
            said.append(kind.__name__)
            waiting += [getattr(node, name, None) for name in fields]
            if kind is ast.Import or kind is ast.ImportFrom:
                imports.append(node)
        elif kind is list:
            if not docstrings:
                node = [each for each in node if not _does_nothing(each)]
            said.append(str(len(node)))
            waiting += node
        else:
            said.append(hex(node) if kind is int else repr(node))  # repr refuses very long ones
    text = "\0".join(said).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest(), tuple(imports)


def _for_typing(test: ast.expr) -> bool:
    """``TYPE_CHECKING``, ``typing.TYPE_CHECKING``: what it guards never runs."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
    return False


def _does_nothing(statement: Any) -> bool:
    """A docstring, ``pass``, ``...``; and a version, which every release has anew."""
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id="__version__")], value=ast.Constant()):
            return True
    return False
