"""No part of the library sets attributes of another's objects: they are asked to change.

A module's own small records, and objects of other libraries that UniCP is there to change, are named here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "packages" / "unicp" / "src" / "unicp"
ALLOWED: dict[str, set[str]] = {
    # Forwards of modules, which is what hooks are about, and marks on functions of ours.
    "attention/backends.py": {"backend.unicp_hidden"},
    "attention/compiled.py": {"module.forward", "inner.is_on"},
    "calibration/plain_run.py": {"self._scheduler.step"},
    "hooks/diffusers.py": {
        "_refuse_compiled_call._torchdynamo_disable",
        "hook.wrapped",
        "inner._child_registries_cache",
        "module.forward",
        "self._own.now",
    },
    "sampler/observer.py": {"_here.sets", "_here.taker", "method.unicp_watches"},
    # Schedulers whose steps are chosen, which they have no method for.
    # A class that is being made.
    "settings.py": {"made.__init__"},
    # Records that are private to the module.
    "attention/slicing.py": {"branch.age", "branch.fitted", "branch.refused", "branch.waited"},
    "runtime/cache_point.py": {
        "branch.aligned",
        "branch.base_error",
        "branch.called_at",
        "branch.dtypes",
        "branch.steps",
    },
    "runtime/run_tracker.py": {"known.last_place"},
    "runtime/runs.py": {
        "here.now",
        "here.order",
        "here.runs",
        "self._here.own",
        "self._thread.runs",
        "thread.runs",
    },
    "runtime/sample_chain.py": {"last.outputs"},
    "sampler/replay.py": {"pending.has_full"},
}


def foreign(source: str) -> Iterator[tuple[int, str]]:
    """Line and target of each assignment to an attribute of something else than `self`."""
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        for target in targets:
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                is_own = isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self"
                if isinstance(one, ast.Attribute) and not is_own:
                    yield node.lineno, ast.unparse(one)


def files() -> list[Path]:
    """The sources of the library, without the command line."""
    return [path for path in sorted(SOURCE.rglob("*.py")) if "cli" not in path.relative_to(SOURCE).parts]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_attributes_are_set_by_their_owner(path: Path):
    allowed = ALLOWED.get(path.relative_to(SOURCE).as_posix(), set())
    found = [f"line {line}: {target}" for line, target in foreign(path.read_text("utf-8")) if target not in allowed]
    assert not found, "set by another: give the object a method\n" + "\n".join(found)


def test_the_list_has_nothing_that_is_gone():
    for name, targets in ALLOWED.items():
        found = {target for _, target in foreign((SOURCE / name).read_text("utf-8"))}
        assert targets <= found, f"{name}: {sorted(targets - found)}"


def test_a_foreign_assignment_would_be_seen():
    assert list(foreign("self.a = 1\nb.c = 2\nd.e, f = 1, 2\ng.h += 1\n")) == [(2, "b.c"), (3, "d.e"), (4, "g.h")]
