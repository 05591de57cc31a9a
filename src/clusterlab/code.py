"""The code of a run, the package's and a user's own, as one digest."""

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

STDLIB = sysconfig.get_path("stdlib")


def code_digest(cfg: DictConfig) -> str:
    """Return the SHA-256 of the code of a run, which an edit changes before it is committed.

    That is the package's, and the files that define what a config names from elsewhere: a method
    or network of a user's own, and what these import. What is installed or comes with Python has a
    version instead.
    """
    package = Path(__file__).parent
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    for target in set(targets(OmegaConf.to_container(cfg))):
        # Not there, which others tell; or built in; or nothing that has a module.
        with suppress(ImportError, TypeError, AttributeError):
            found = get_object(target)
            files |= own_files(found.__module__, Path(inspect.getfile(found)))
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0".encode() + imported(path))
    return digest.hexdigest()


@cache
def imported(path: Path) -> bytes:
    """Return a file of code as it was when this process first asked: an edit runs in the next."""
    return path.read_bytes()


def targets(node: Any) -> Iterator[str]:
    """Yield what a config, as containers, would build: its values of ``_target_``."""
    if isinstance(node, dict):
        yield from [str(node["_target_"])] if "_target_" in node else []
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from targets(inner)


@cache
def own_files(module: str, path: Path) -> dict[str, Path]:
    """Return the files of a module and of all that it imports, in turn, by their modules' names.

    Found by reading and not by running them, so that it does not hang on what was run before.

    Args:
        module: Its full name.
        path: Its file.

    Returns:
        Nothing for what is ours, installed or comes with Python, and not what that imports.
    """
    found: dict[str, Path] = {}
    left = [(module, path)]
    while left:
        name, file = left.pop()
        if name in found or name.split(".")[0] == __package__ or not written_here(file):
            continue
        found[name] = file
        with suppress(SyntaxError, ImportError):  # of a file that nothing has imported yet
            for other in imports(name, file):
                spec = spec_of(other)
                if spec is not None and spec.origin is not None:
                    left.append((other, Path(spec.origin)))
    return found


def written_here(path: Path) -> bool:
    """Whether a file is code that is neither installed nor Python's."""
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.suffix == ".py" and not installed and not path.is_relative_to(STDLIB)


def imports(module: str, path: Path) -> Iterator[str]:
    """Yield the names of what a module imports, anywhere in its file, and of the packages it is in.

    A name that it takes from a module is yielded too: it may be a module itself.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    outer = package
    while outer:
        yield outer
        outer = outer.rpartition(".")[0]
    for node in ast.walk(ast.parse(imported(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def spec_of(module: str) -> ModuleSpec | None:
    """Find a module without importing it or the packages it is in; ``None`` where there is none."""
    outer, _, _ = module.rpartition(".")
    if not outer:
        with suppress(ValueError):  # a program, which is no module
            return find_spec(module)
        return None
    package = spec_of(outer)
    if package is None or package.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(module, list(package.submodule_search_locations))
