"""What may only get better: docstrings, and documents that keep up with the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import unicp

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))
FILES = sorted([*(ROOT / "packages").glob("*/src/**/*.py"), *(ROOT / "experiments").glob("*.py")])
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def definitions(tree: ast.AST) -> Iterator[Definition]:
    return (node for node in ast.walk(tree) if isinstance(node, Definition))


def undocumented(source: str) -> list[tuple[int, str]]:
    """(line, name) of what is public and has no docstring.

    Private names, what is in them or inside a function, `__methods__` and overloads are exempt.
    """

    def visit(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, Definition) or child.name.startswith("_"):
                continue
            is_overload = any(ast.unparse(mark).endswith("overload") for mark in child.decorator_list)
            if not is_overload and not ast.get_docstring(child):
                yield child.lineno, prefix + child.name
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")

    tree = ast.parse(source)
    missing = list(visit(tree, ""))
    return missing if ast.get_docstring(tree) or not source.strip() else [(1, "module"), *missing]


def snippets(text: str) -> list[tuple[int, str]]:
    """(line, code) of every fenced python block of a Markdown text."""
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match.group(1)) for match in found]


def project_files() -> list[Path]:
    """Tracked files, and those that would be; without git, everything that is not a cache or a build."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        skipped = {".git", ".venv", "build", "dist", "demo", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_everything_public_has_a_docstring(path: Path):
    found = undocumented(path.read_text(encoding="utf-8"))
    assert not found, "\n".join(f"{shown(path)}:{line}: {name} has no docstring" for line, name in found)


def test_the_measures_find_what_they_look_for():
    source = "class A:\n    '''Doc.'''\n    def b(self): ...\n    def _c(self): ...\ndef d():\n    def e(): ...\n"
    assert undocumented(source) == [(1, "module"), (3, "A.b"), (5, "d")]
    assert undocumented("") == []
    assert snippets("a\n```python\nx = 1\n```\n```\nno\n```\n") == [(3, "x = 1\n")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_python_in_the_documents_compiles(path: Path):
    for line, code in snippets(path.read_text(encoding="utf-8")):
        try:
            compile(code, shown(path), "exec")
        except SyntaxError as error:
            pytest.fail(f"{shown(path)}:{line + (error.lineno or 1) - 1}: {error.msg}")


def test_the_readme_shows_python():
    assert snippets((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_public_name_is_in_the_documents():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    names = [name for name in unicp.__all__ if not name.startswith("__")]
    missing = [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    assert not missing, f"in unicp.__all__ but not in README.md or docs/: {', '.join(missing)}"


def test_no_file_names_a_place_on_one_machine():
    # Put together here, so that this file does not match itself.
    folders = "|".join(("home/[a-z]", "Users/[A-Za-z]", "root/", "work/", "tmp/", "mnt/"))
    pattern = re.compile(rf"(?<![\w.~$}}/-])/(?:{folders})")
    found = []
    for path in project_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{shown(path)}:{n}: {line.strip()[:100]}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found, "\n".join(found)


def test_the_version_is_the_same_everywhere():
    version = unicp.__version__
    assert len(PACKAGES) == 3
    for package in PACKAGES:
        assert f'\nversion = "{version}"\n' in (package / "pyproject.toml").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_package_carries_the_licence():
    for package in PACKAGES:
        assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_ci_and_the_scripts_can_be_run():
    assert os.access(ROOT / ".ci/run", os.X_OK)
