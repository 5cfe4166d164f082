"""What the code of a result is: a hash over the modules that make it, found through their imports.

A raised number ("step version 4") is forgotten; this is computed. Comments, docstrings and blank
lines do not count. The ground (spec sections, errors, the artifact store) is left out: values of a
spec are in the key themselves, the rest decides no content.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import sys
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

from slmrank.errors import SpecError
from slmrank.hashing import hash_file, hash_value

PACKAGE = "slmrank"
_ROOT = Path(__file__).resolve().parent
_LEFT_OUT = ("spec", "errors", "artifacts", "code_hash", "plugins", "machine", "pipeline.steps")
# A registry imports every implementation; a step names those that it uses.
_REGISTRY = "registry"
_FILE_NAME = re.compile(r"[\w-]+\.(yaml|json|txt|csv)")


def code_hash(*roots: str, files: tuple[Path, ...] = ()) -> str:
    """16 hex digits over the modules `roots`, everything of this package that they import, at the
    top or inside functions, data files that these name, and the given source files with what they
    import; registries are not followed."""
    # Two stages are both called model.py, and where somebody's own lies says nothing.
    # They are copied as they are when a repository is made, and may be edited before.
    fresh = source_hash.__wrapped__
    found = {f"{place}:{path.name}": fresh(path) for place, path in enumerate(files)}
    waiting = [*roots, *(one for path in files for one in _own(path))]
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if path is None:
            if name not in roots:
                continue
            if name in sys.modules:  # of a notebook, or of `python -c`: an edit would not be seen
                raise SpecError(
                    f"the code of {name}, which decides an artifact, is in no file",
                    "write it into one, and name that in SLMRANK_PLUGINS",
                )
            raise SpecError(
                f"there is no module {name}, whose code decides an artifact",
                "name modules that can be imported",
            )
        own = path.is_relative_to(_ROOT)
        source = source_hash(path) if own else hash_of_loaded(name, path)
        key = name if own else source
        if key in found:
            continue
        found[key] = source
        found |= {f"{key}:{file.name}": hash_file(file) for file in _uses(path)[1]}
        waiting += _own(path)
    return hash_value(found)[:16]


def _own(path: Path) -> list[str]:
    return [one for one in _uses(path)[0] if not _left_out(one)]


@cache
def source_hash(path: Path) -> str:
    """Hash of a source file without comments, docstrings and blank lines. Raises SpecError for one
    that is half written."""
    try:
        return hash_value(significant_text(path.read_text(encoding="utf-8")))
    except (SyntaxError, tokenize.TokenError) as error:
        raise SpecError(f"{path} is no valid Python: {error}", "mend it") from error


_LOADED: dict[str, tuple[Any, str]] = {}


def hash_of_loaded(name: str, path: Path) -> str:
    """Of the code that runs, if asked for when it was loaded: an edit counts from when the module
    is loaded again on."""
    loading = getattr(sys.modules.get(name), "__spec__", None)  # `importlib.reload` makes a new one
    known = _LOADED.get(name)
    if known is None or known[0] is not loading:
        known = _LOADED[name] = loading, source_hash.__wrapped__(path)
        _uses.cache_clear()
    return known[1]


def significant_text(source: str) -> str:
    """Source text without comments, docstrings and blank lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


@cache
def _uses(path: Path) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Modules of this package that a file imports, and files beside it that it names, such as the
    wording of an example set: they decide what it makes as its lines do."""
    names: list[str] = []
    files: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{one.name}" for one in node.names] + [node.module]
        elif isinstance(node, ast.Constant) and _FILE_NAME.fullmatch(str(node.value)):
            files.append(path.parent / str(node.value))
    own = [one for one in names if one.startswith(f"{PACKAGE}.")]
    modules = tuple(dict.fromkeys(one for one in own if _path_of(one) is not None))
    return modules, tuple(one for one in dict.fromkeys(files) if one.is_file())


def _path_of(name: str) -> Path | None:
    """The file of a module of this package, or of another one, loaded or not."""
    if name.startswith(f"{PACKAGE}."):
        path = _ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
        return path if path.is_file() else None
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules:
        with contextlib.suppress(ImportError, ValueError):  # a folder above that is no package
            file = getattr(importlib.util.find_spec(name), "origin", None)
    return Path(file) if file and Path(file).is_file() else None


def _left_out(name: str) -> bool:
    inner = name.removeprefix(f"{PACKAGE}.")
    if inner.rpartition(".")[2] == _REGISTRY:
        return True
    return any(inner == one or inner.startswith(f"{one}.") for one in _LEFT_OUT)
