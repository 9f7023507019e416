"""Imports plug-ins: policies, predictors and reducers of other people, for a sweep.

A plug-in is a module, or a file of Python, that registers parts when it is imported. A registered name is a method of
`unicp bench` ("policy:NAME"). A plug-in that replaces a part of UniCP is refused, since all rows would depend on it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from unicp.errors import InputError
from unicp.policies import policies
from unicp.predictors import predictors
from unicp.reducers import reducers
from unicp.registry import Registry

# By the word before the colon in a method's name.
REGISTRIES: Mapping[str, Registry[Any]] = {"policy": policies, "predictor": predictors, "reducer": reducers}


def load_plugins(names: Sequence[str]) -> str:
    """Imports plug-ins.

    Args:
        names: Modules ("my_package.rules"), or files that end with ".py".

    Returns:
        Twelve digits that change with their sources; "" for none.

    Raises:
        InputError: One cannot be imported, or replaces a part of UniCP.
    """
    if not names:
        return ""
    before = {kind: {name: registry[name] for name in registry} for kind, registry in REGISTRIES.items()}
    modules = [_imported(name) for name in names]
    for kind, known in before.items():
        for name, maker in known.items():
            if REGISTRIES[kind][name] is not maker:
                found = f"the {kind} {name!r} of UniCP replaced, which all rows depend on"
                raise InputError(f"--plugin {', '.join(names)}", found, f"register yours as a {kind} of another name")
    found = hashlib.sha256()
    for module in modules:
        for path in _sources(module):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def _imported(name: str) -> ModuleType:
    try:
        return _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:  # a plug-in may raise anything
        found = f"it cannot be imported ({type(error).__name__}: {error})"
        raise InputError(f"--plugin {name}", found, "name a module or a file of Python that can") from error


def _from_file(path: Path) -> ModuleType:
    name = f"unicp_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _sources(module: ModuleType) -> list[Path]:
    """The file of a module, or all of a package."""
    if module.__file__ is None:
        return []
    file = Path(module.__file__)
    return sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]
