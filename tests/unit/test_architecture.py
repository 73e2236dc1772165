"""The rooms of the package: who may import whom, and which dependency is spoken to where.

The source is read, not imported, so that a breach shows inside functions too.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "remote_inference"
ROOT = Path(__file__).parents[2] / PACKAGE

# From the ground up; a room imports only from itself and from those below.
ROOMS: tuple[frozenset[str], ...] = (
    frozenset({"cancel", "clock", "errors", "events", "reasons", "types", "value"}),
    frozenset({"config", "credentials"}),
    frozenset({"cluster", "policy"}),
    frozenset({"transport"}),
    frozenset({"providers"}),
    frozenset({"engine"}),
    frozenset({"messaging"}),
    frozenset({"client", "worker"}),
    frozenset({"inference"}),
    frozenset({"cli", "contrib", "testing"}),
    frozenset({"", "__main__"}),  # the package itself, which hands on the names of all
)
ROOM_OF = {name: number for number, names in enumerate(ROOMS) for name in names}

# A web process loads the client, and must not load what only a worker needs.
FORBIDDEN = {
    ("client", "worker"),
    ("worker", "client"),
    ("client", "engine"),
    ("client", "providers"),
    ("client", "transport"),
}

# Where a dependency may be imported: paths below the package, a directory ending in "/".
CELERY_ROOMS = ("messaging/", "client/", "worker/", "inference.py", "cli/", "contrib/", "testing/")
DEPENDENCIES: dict[str, tuple[str, ...]] = {
    "amqp": CELERY_ROOMS,
    "billiard": CELERY_ROOMS,
    "celery": CELERY_ROOMS,
    "kombu": CELERY_ROOMS,
    "vine": CELERY_ROOMS,
    "requests": ("transport/http.py",),
    "urllib3": ("transport/",),
    "socks": ("transport/socks_proxy.py",),
    "sseclient": ("transport/sse.py",),
    "pybreaker": ("policy/breaker.py",),
    "redis": ("transport/redis_limit.py",),
    "click": ("cli/",),
    "rich": ("cli/",),
}

# Imports of our own inside functions: (importing file, room imported) and why it cannot stand at the top.
LAZY_IMPORTS: dict[tuple[str, str], str] = {
    (
        "inference.py",
        "worker",
    ): "a web process must not load engine and providers; only a worker asks for them",
    (
        "inference.py",
        "messaging",
    ): "kombu's virtual transports are loaded only where the broker is embedded://",
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, with where it stands."""

    path: str  # of the importing file, below the package
    line: int
    module: str  # absolute
    lazy: bool  # inside a function

    @property
    def source_room(self) -> str:
        return _room(
            PACKAGE + "." + self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        )

    @property
    def target_room(self) -> str:
        return _room(self.module)

    @property
    def is_own(self) -> bool:
        return self.module.partition(".")[0] == PACKAGE

    @property
    def place(self) -> str:
        return f"{PACKAGE}/{self.path}:{self.line}"


def _room(module: str) -> str:
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else ""
    return "" if name == "__init__" else name


def _sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _is_module(dotted: str) -> bool:
    path = ROOT.parent.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT.parent).parent.parts
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _imports_of(tree: ast.AST, path: Path) -> Iterator[Import]:
    relative = path.relative_to(ROOT).as_posix()
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, lazy = waiting.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(relative, node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield Import(relative, node.lineno, full if _is_module(full) else module, lazy)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        waiting += [(child, inside) for child in ast.iter_child_nodes(node)]


def _all_imports() -> list[Import]:
    return [found for path in _sources() for found in _imports_of(ast.parse(path.read_text()), path)]


IMPORTS = _all_imports()
OWN = [found for found in IMPORTS if found.is_own]


def _room_breach(found: Import) -> str | None:
    source, target = found.source_room, found.target_room
    for name in (source, target):
        if name not in ROOM_OF:
            return f"{found.place}: {name!r} is in no room: give it one in {Path(__file__).name}"
    above = ROOM_OF[target] > ROOM_OF[source] and (found.path, target) not in LAZY_IMPORTS
    if above or (source, target) in FORBIDDEN:
        return (
            f"{found.place}: room {ROOM_OF[source]} ({source or PACKAGE}) imports {found.module}"
            f" of room {ROOM_OF[target]} ({target or PACKAGE})"
        )
    return None


def test_a_room_imports_only_from_those_below():
    assert [breach for found in OWN if (breach := _room_breach(found))] == []


def test_no_two_modules_import_each_other():
    graph: dict[str, set[str]] = {}
    for found in OWN:
        importer = PACKAGE + "." + found.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if not found.lazy and not _below(found.module, importer):
            graph.setdefault(importer, set()).add(found.module)
    assert _cycles(graph) == []


def _below(module: str, package: str) -> bool:
    """A package's `__init__` imports its modules, and they are not to blame for it."""
    return module == package or module.startswith(package + ".")


def _cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    cycles: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycles.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return cycles


def test_a_dependency_is_imported_only_where_it_belongs():
    breaches = [
        f"{found.place}: {found.module} may be imported in {', '.join(places) or 'no module'} only"
        for found in IMPORTS
        if (places := DEPENDENCIES.get(found.module.partition(".")[0])) is not None
        and not any(
            found.path == place or (place.endswith("/") and found.path.startswith(place)) for place in places
        )
    ]
    assert breaches == []


def test_our_own_modules_are_imported_at_the_top_but_for_the_listed_exceptions():
    breaches = [
        f"{found.place}: {found.module} is imported inside a function"
        for found in OWN
        if found.lazy and (found.path, found.target_room) not in LAZY_IMPORTS
    ]
    assert breaches == []


def test_every_listed_exception_is_in_use():
    used = {(found.path, found.target_room) for found in OWN if found.lazy}
    unused = [entry for entry in LAZY_IMPORTS if (ROOT / entry[0]).exists() and entry not in used]
    assert unused == []


PACKAGES = [path.parent for path in _sources() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT.parent).as_posix())
class TestInit:
    def test_only_hands_names_on(self, package: Path):
        tree = ast.parse((package / "__init__.py").read_text())
        extra = [f"line {node.lineno}" for node in tree.body if not _hands_on(node)]
        assert extra == []

    def test_all_is_sorted_and_true(self, package: Path):
        module = importlib.import_module(".".join(package.relative_to(ROOT.parent).parts))
        tree = ast.parse((package / "__init__.py").read_text())
        names = list(getattr(module, "__all__", []))
        assert names == sorted(set(names))
        assert [name for name in names if not hasattr(module, name)] == []
        assert sorted(_handed_on(tree) - set(names)) == []


def _hands_on(node: ast.stmt) -> bool:
    """A docstring, an import (also for type checkers), a private name, `__getattr__` or `__dir__`."""
    if isinstance(node, ast.If):
        return (
            isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
            and all(map(_hands_on, node.body))
        )
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(target, ast.Name) and target.id.startswith("_") for target in targets)
    return isinstance(node, (ast.Import, ast.ImportFrom)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _handed_on(tree: ast.Module) -> set[str]:
    """The public names that an `__init__` takes from our own modules."""
    return {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        and (node.level or (node.module or "").partition(".")[0] == PACKAGE)
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_")
    }


class TestTheCheckItself:
    """A check that cannot fail checks nothing."""

    @staticmethod
    def _imports(path: str, source: str) -> list[Import]:
        return list(_imports_of(ast.parse(source), ROOT / path))

    @pytest.mark.parametrize(
        ("path", "source"),
        [
            ("policy/retry.py", "from remote_inference.engine import core"),
            ("policy/retry.py", "from ..engine.core import RemoteEngine"),
            ("client/handle.py", "import remote_inference.worker.task"),
            ("client/handle.py", "if TYPE_CHECKING:\n    from remote_inference.providers import base"),
            ("engine/core.py", "def run():\n    from remote_inference import Inference"),
        ],
    )
    def test_an_import_from_above_is_found_and_both_rooms_are_named(self, path: str, source: str):
        [found] = self._imports(path, source)
        breach = _room_breach(found)
        assert breach is not None
        assert f"({found.source_room})" in breach
        assert f"({found.target_room or PACKAGE})" in breach

    def test_an_import_from_below_is_no_breach(self):
        [found] = self._imports("engine/core.py", "from ..policy.retry import decide")
        assert _room_breach(found) is None

    def test_a_module_without_a_room_is_named(self):
        [found] = self._imports("helpers.py", "import remote_inference.errors")
        assert "'helpers' is in no room" in str(_room_breach(found))

    def test_an_import_in_a_function_is_lazy(self):
        lazy = [
            found.lazy for found in self._imports("inference.py", "import json\ndef run():\n    import re")
        ]
        assert sorted(lazy) == [False, True]

    def test_a_cycle_is_found(self):
        assert _cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
