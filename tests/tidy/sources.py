"""The Python of the repository, parsed once: what the tidy tests walk over."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGE_ROOTS = {"server": ROOT / "server", "client": ROOT / "client" / "python", "tests": ROOT}
_GENERATED = ("kapell.v1.", "kapell._third_party")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One hand-written module."""

    path: Path
    module: str
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """The path from the root of the repository."""
        return str(self.path.relative_to(ROOT))

    def is_in(self, *packages: str) -> bool:
        """Whether the module is one of these, or below."""
        return any(self.module == package or self.module.startswith(package + ".") for package in packages)

    def imports(self) -> Iterator[tuple[str, int]]:
        """Every module that is imported anywhere in the file, also inside functions, with its line.

        `from a import b` counts as `a.b`, so that submodules are seen.
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                for alias in node.names:
                    yield f"{base}.{alias.name}", node.lineno

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods, nested ones included."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.module.split(".")
        if self.path.name != "__init__.py":
            package = package[:-1]
        parents = package[: len(package) - node.level + 1]
        return ".".join([*parents, node.module] if node.module else parents)


@functools.cache
def sources(*parts: str) -> tuple[Source, ...]:
    """The modules of "server", "client" and "tests", or of those named; generated ones are left out."""
    found = []
    for part in parts or ("server", "client", "tests"):
        base = _PACKAGE_ROOTS[part]
        for path in sorted((base / "tests" if part == "tests" else base).rglob("*.py")):
            module = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
            if module.startswith(_GENERATED) or module == "kapell.v1":
                continue
            text = path.read_text()
            found.append(Source(path=path, module=module, text=text, tree=ast.parse(text, str(path))))
    return tuple(found)


def called_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The last name of everything that is called, with its line: `a.b.c()` gives "c"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(attr=name) | ast.Name(id=name):
                    yield name, node.lineno
