"""What commands print, and where they cannot: cleaned texts, full devices, readers that leave, interrupts."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import unicp
from tests.commands import refused, run
from tests.made_profiles import made
from unicp.cli import common, terminal
from unicp.cli.main import app
from unicp.errors import InputError, clean, one_line
from unicp.planning.profile import save_profile

ROOT = Path(unicp.__file__).parents[1]
UNICP = (sys.executable, "-m", "unicp.cli.start")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_profile(made(), "profile.json")


PLAN = ("plan", "profile.json", "--target", "psnr>=35")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which $unicp is the command."""
    environment = ENVIRONMENT | {"unicp": " ".join(UNICP)}
    return subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "plain, caf\u00e9 \u2014 \u6f22\u5b57 \U0001f600\ttab\nline",
            "plain, caf\u00e9 \u2014 \u6f22\u5b57 \U0001f600\ttab\nline",
        ),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07 \x9b2J \x00 \x7f", r"\x1b]0;title\x07 \x9b2J \x00 \x7f"),
        ("over\rwritten \x08", r"over\rwritten \x08"),
        ("\u202egpj.exe\u2066 \u061c", r"\u202egpj.exe\u2066 \u061c"),
        ("not utf-8 \udce9", r"not utf-8 \udce9"),
    ],
)
def test_what_would_steer_a_terminal_is_made_visible(text, shown):
    assert clean(text) == shown


def test_a_message_is_one_line_whatever_is_in_it():
    assert one_line("a\nb\r\nc\x1bd") == r"a b c\x1bd"
    assert len(one_line(f"asked: {'9' * 5000}; found: x; do: y")) < 400
    assert one_line(f"{'9' * 5000}; do: y").endswith("; do: y")


def test_whatever_prints_is_cleaned_and_in_letters_that_the_terminal_has(monkeypatch):
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", raw)
    with terminal.guarded():
        print("\x1b[31m caf\u00e9", end="", flush=True)
        typer.echo(" \x1b[2J")
    assert raw.buffer.getvalue() == rb"\x1b[31m caf\xe9" + b" \n"


def test_names_and_contents_of_files_are_cleaned():
    evil = "\x1b[31mevil\x1b[0m"
    assert r"\x1b[31mevil" in refused("plan", f"{evil}.json", "--target", "psnr>=35")
    Path("bad.json").write_text('{"type": "\\u001b[31mevil"}')
    assert "\x1b" not in refused("plan", "bad.json", "--target", "psnr>=35")
    assert r"\x1b" in refused("generate", "a cat", f"--{evil}")
    save_profile(made(model=evil), "evil.json")
    result = run("plan", "evil.json", "--target", "psnr>=35", "--json")
    assert result.exit_code == 0 and "\x1b" not in result.stdout and r"\u001b[31mevil" in result.stdout


@pytest.mark.parametrize("name", ["a[/b].mp4", "[bold]", "a[link=x].gif"])
def test_a_name_is_no_markup_on_a_terminal(name, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.guarded(), common.waiting(f"writing {name} \x1b[2J"):
        time.sleep(0.2)
    assert name in written.getvalue() and r"\x1b[2J" in written.getvalue()


@pytest.mark.parametrize(
    ("arguments", "help_of"),
    [
        (("generate",), "generate"),
        (("compare", "a cat", "--colour", "red"), "compare"),
        (("plan", "profile.json"), "plan"),
        (("report", "--worst", "many", "rows"), "report"),
        (("calibrate", "--steps", "1e11"), "calibrate"),
        (("dance",), ""),
        (("--colour",), ""),
    ],
)
def test_usage_errors_point_to_the_help_of_the_command(arguments, help_of):
    assert refused(*arguments).endswith(f"(see unicp {help_of} --help)".replace("  ", " "))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_under_stdout_is_one_line():
    for arguments in (" ".join(PLAN).replace(">", r"\>"), "--help", "--version"):
        result = shell(f"$unicp {arguments} > /dev/full")
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("\n") == 1 and "No space left on device" in result.stderr
    assert shell("$unicp dance 2> /dev/full").returncode == 2


def test_a_reader_that_leaves_is_no_error():
    result = shell(r"$unicp plan profile.json --target psnr\>=35 | true; echo ${PIPESTATUS[0]}")
    assert result.stdout.strip() in ("141", "0") and result.stderr == ""
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    result = subprocess.run(
        [*UNICP, *PLAN], env=ENVIRONMENT, stdout=reader.stdin, stderr=subprocess.PIPE, check=False, text=True
    )
    assert (result.returncode, result.stderr) == (141, "")


def test_closed_streams_are_no_error_and_files_do_not_take_their_place():
    result = shell(r"$unicp plan profile.json --target psnr\>=35 --out plan.json >&- 2>&- <&-")
    assert result.returncode == 0 and Path("plan.json").stat().st_size > 100
    assert shell("$unicp dance >&- 2>&-").returncode == 2


def test_an_interrupt_while_loading_is_one_line():
    code = "import sys, time, unicp.cli.common as c\nfrom unicp.cli.main import app\n"
    code += "def wait(*_):\n    print('loading', flush=True)\n    time.sleep(60)\nc.model_of = wait\napp(['inspect'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr == "unicp: interrupted\n"


@pytest.mark.parametrize("becomes", ["nothing", "another error", "an error of ours"])
def test_an_interrupt_that_a_library_swallows_is_one(becomes, monkeypatch, request):
    # What a shell starts in the background ignores it.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def load(*_args):
        with common.waiting("loading"):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                if becomes != "nothing":
                    kind = RuntimeError("failed to import") if becomes == "another error" else InputError("a", "b", "c")
                    raise kind from None

    monkeypatch.setattr(common, "model_of", load)
    result = run("inspect")
    assert (result.exit_code, result.stderr) == (130, "unicp: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unknown_error_is_a_traceback_without_escape_sequences(monkeypatch):
    def fail(*_args):
        raise KeyError("\x1b[31m")

    monkeypatch.setattr(common, "model_of", fail)
    result = run("inspect")
    assert result.exit_code == 1 and "Traceback" in result.stderr and "\x1b" not in result.stderr


def test_errors_of_the_machine_are_one_line(monkeypatch):
    for error in (OSError(28, "No space left on device", "x\x1b"), MemoryError()):
        monkeypatch.setattr(common, "model_of", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert "\x1b" not in refused("inspect")


def test_nothing_is_printed_but_through_the_guard():
    assert app.info.cls is not None and "guarded" in app.info.cls.main.__code__.co_names  # type: ignore[attr-defined]
