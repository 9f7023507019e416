"""What other packages add to the command line, and what is said where they, or the extra `cli`, are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

import unicp
from tests.commands import refused
from unicp.cli import main, plugins
from unicp.cli.common import model_of


@pytest.fixture
def alone(monkeypatch):
    """As where no other package of UniCP is installed."""
    monkeypatch.setattr(plugins, "entry_points", lambda group: {})


def test_without_the_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None\nfrom unicp.cli.start import main\nmain()"
    environment = os.environ | {"PYTHONPATH": str(Path(unicp.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "found: no package typer" in line and 'do: pip install "unicp[cli]"' in line


def test_the_test_beds_are_found_by_name():
    assert {"glyphs", "latte", "film"} <= set(plugins.entry_points(plugins.TESTBEDS))
    glyphs = plugins.shipped_pipeline("glyphs")
    assert glyphs is not None and (glyphs.folder / "model_index.json").is_file() and glyphs.prompts("calibration")
    assert model_of(None) == glyphs.folder
    assert plugins.shipped_pipeline("nobody") is None


def test_a_folder_of_the_name_of_a_test_bed_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latte").mkdir()
    assert "a folder without model_index.json" in refused("generate", "a star", "--model", "latte")


@pytest.mark.parametrize("arguments", [("generate", "a star"), ("generate", "a star", "--model", "glyphs")])
def test_without_test_beds_the_default_model_says_what_to_install(alone, arguments, tmp_path):
    line = refused(*arguments, "--out", tmp_path / "star.mp4")
    assert "the model glyphs" in line and 'do: pip install "unicp[demo]"' in line


def test_without_test_beds_calibrating_asks_for_prompts(alone, tmp_path):
    line = refused("calibrate", "some/model", "--out", tmp_path / "profile.json")
    assert "--prompts" in line and 'pip install "unicp[demo]"' in line


def commands_with(monkeypatch, **points: str) -> typer.Typer:
    """The command line's app with these commands of other packages and none else."""
    found = {name: EntryPoint(name, value, plugins.COMMANDS) for name, value in points.items()}
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)
    app = typer.Typer(cls=main.app.info.cls, callback=lambda: None, rich_markup_mode=None)
    monkeypatch.setattr(main, "app", app)
    main._add_plugins()
    return app


def test_a_command_that_cannot_be_loaded_is_told_and_the_others_work(monkeypatch, capsys):
    app = commands_with(monkeypatch, broken="no_such_package:app", whole="unicp.cli.plan:plan")
    assert [command.name for command in app.registered_commands] == ["whole"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "the command broken of no_such_package:app; found: ModuleNotFoundError" in line


def test_a_command_may_be_an_app_of_its_own(monkeypatch):
    app = commands_with(monkeypatch, more="unicp.cli.main:app")
    assert [group.name for group in app.registered_groups] == ["more"]


@pytest.mark.parametrize("command", ["bench", "report"])
def test_without_the_bench_its_commands_say_what_to_install(command, monkeypatch, capsys):
    app = commands_with(monkeypatch, plan="unicp.cli.plan:plan")
    with pytest.raises(SystemExit) as left:
        app([command, "quick"])
    assert left.value.code == 2
    assert (
        f'asked: unicp {command}; found: no package unicp-bench; do: pip install "unicp[bench]"'
        in capsys.readouterr().err
    )
