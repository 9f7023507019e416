"""Traces on disk: round trip, and everything a file can be that is no trace."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unicp import disk, files
from unicp.context import Action
from unicp.errors import FileFormatError, InputError
from unicp.files import check_appendable, check_writable, replacing
from unicp.records import Entry, Trace, load_trace, save_trace
from unicp.settings import PRESETS, Settings

NUMBERS = st.floats(-1e100, 1e100) | st.sampled_from([float("nan"), float("inf"), float("-inf")])
COUNTS = st.integers(0, 2**60)
STEPS = st.integers(0, 100_000)
TEXT = st.text(max_size=8)
ENTRIES = st.builds(
    Entry,
    run=COUNTS,
    step=STEPS,
    branch=TEXT,
    point=TEXT,
    action=st.sampled_from([action.value for action in Action]),
    reason=TEXT,
    sigma=st.none() | NUMBERS,
    tolerance=NUMBERS,
    predicted=st.none() | st.lists(NUMBERS, max_size=3),
    measured=st.none() | st.lists(NUMBERS, max_size=3),
    width=st.none() | COUNTS,
    predictor=st.none() | TEXT,
    operations=COUNTS,
    full_operations=COUNTS,
    seconds=st.floats(0, 1e30),
    stored_bytes=COUNTS,
)
TRACES = st.builds(
    Trace,
    model=TEXT,
    device=TEXT,
    dtype=TEXT,
    settings=st.dictionaries(
        TEXT, st.none() | st.booleans() | COUNTS | TEXT | st.lists(COUNTS, max_size=2), max_size=3
    ),
    preset=st.none() | TEXT,
    entries=st.lists(ENTRIES, max_size=3),
    warnings=st.lists(TEXT, max_size=2),
    counts=st.dictionaries(TEXT, COUNTS, max_size=2).map(Counter),
)


def entry(**changes) -> Entry:
    return Entry(
        **({"run": 0, "step": 1, "branch": "cond", "point": "model", "action": "full", "reason": "first"} | changes),
        sigma=0.5,
        tolerance=0.05,
    )


def trace() -> Trace:
    return Trace("WanTransformer3DModel", "cpu", "float32", {"tolerance": 0.05}, "balanced", [entry(), entry(step=2)])


def comparable(value):
    """NaN equals nothing, itself included."""
    return repr(dataclasses.asdict(value))


@given(original=TRACES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(original, tmp_path):
    path = tmp_path / "trace.json"
    save_trace(original, path)
    loaded = load_trace(path)
    assert comparable(loaded) == comparable(original)
    assert isinstance(loaded.counts, Counter)
    assert [child.name for child in tmp_path.iterdir()] == ["trace.json"]


def test_the_file_is_strict_json_with_type_and_versions(tmp_path):
    path = tmp_path / "trace.json"
    original = trace()
    original.entries[0].measured = [math.nan, math.inf, -math.inf]
    save_trace(original, path)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    body = json.loads(path.read_text(), parse_constant=refuse)
    assert body["type"] == "unicp.trace" and body["version"] == 3 and isinstance(body["unicp"], str)
    assert body["entries"][0]["measured"] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize("name", PRESETS)
def test_settings_come_back_as_they_were(name, tmp_path):
    original = trace()
    original.settings = PRESETS[name].to_dict()
    save_trace(original, tmp_path / "trace.json")
    assert Settings.from_dict(load_trace(tmp_path / "trace.json").settings) == PRESETS[name]


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "trace.json"
    save_trace(trace(), path)
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError) as caught:
            load_trace(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "damaged"),
        (b"\x80\x81", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b'{"type": NaN}', "damaged"),
        (b"[1, 2]", "list"),
        (b"3", "int"),
        (b"{}", "type None"),
        (b'{"type": "unicp.plan", "version": 1}', "unicp.plan"),
    ],
)
def test_foreign_and_damaged_files(content, found, tmp_path):
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=found) as caught:
        load_trace(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [0, 4, "1", None])
def test_another_version(version, tmp_path):
    path = tmp_path / "trace.json"
    save_trace(trace(), path)
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"version": version, "unicp": "9.9"}))
    with pytest.raises(FileFormatError, match=r"version .*9\.9"):
        load_trace(path)


OLDER = {1: {"reason": "why", "predictor": "choice", "point": "unit"}, 2: {"point": "unit"}}


@pytest.mark.parametrize("version", OLDER)
def test_traces_of_older_versions_are_read(version, tmp_path):
    path, original = tmp_path / "trace.json", trace()
    save_trace(original, path)
    body, names = json.loads(path.read_text()), OLDER[version]
    body["entries"] = [{names.get(name, name): value for name, value in one.items()} for one in body["entries"]]
    if version == 1:
        body["entries"] = [one | {"action": one["action"].replace("full", "compute")} for one in body["entries"]]
    path.write_text(json.dumps(body | {"version": version}))
    assert load_trace(path) == original


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"colour": 1}, "unknown colour"),
        ({"model": None}, "model is None"),
        ({"model": 3}, "model is 3"),
        ({"settings": []}, "settings is"),
        ({"entries": {}}, "entries is"),
        ({"entries": [3]}, r"entries\[0\] is 3"),
        ({"warnings": [3]}, r"warnings\[0\] is 3"),
        ({"counts": {"a": 0.5}}, "counts.a is 0.5"),
        ({"counts": {"a": True}}, "counts.a is True"),
        ({"preset": 1}, "preset is 1"),
    ],
)
def test_wrong_fields(change, found, tmp_path):
    path = tmp_path / "trace.json"
    save_trace(trace(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileFormatError, match=found):
        load_trace(path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"step": 1.0}, r"entries\[1\].step is 1.0"),
        ({"step": True}, r"entries\[1\].step is True"),
        ({"action": "sleep"}, "action is 'sleep'"),
        ({"sigma": "big"}, "sigma is 'big'"),
        ({"seconds": False}, "seconds is False"),
        ({"seconds": None}, "seconds is None"),
        ({"measured": 0.1}, "measured is 0.1"),
        ({"measured": [None]}, r"measured\[0\] is None"),
        ({"extra": 1}, r"unknown extra in entries\[1\]"),
    ],
)
def test_wrong_fields_of_an_entry(change, found, tmp_path):
    path = tmp_path / "trace.json"
    save_trace(trace(), path)
    body = json.loads(path.read_text())
    body["entries"][1] |= change
    path.write_text(json.dumps(body))
    with pytest.raises(FileFormatError, match=found):
        load_trace(path)


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400])
def test_a_number_too_large_is_refused(number, tmp_path):
    path = tmp_path / "trace.json"
    save_trace(trace(), path)
    path.write_text(path.read_text().replace('"sigma": 0.5', f'"sigma": {number}', 1))
    with pytest.raises(FileFormatError, match="out of range"):
        load_trace(path)


def test_missing_fields(tmp_path):
    path = tmp_path / "trace.json"
    save_trace(trace(), path)
    body = json.loads(path.read_text())
    del body["entries"][0]["reason"]
    path.write_text(json.dumps(body))
    with pytest.raises(FileFormatError, match=r"missing reason in entries\[0\]"):
        load_trace(path)
    del body["model"]
    path.write_text(json.dumps(body))
    with pytest.raises(FileFormatError, match="missing model"):
        load_trace(path)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_trace(tmp_path / "none.json")
    with pytest.raises(InputError):
        load_trace(tmp_path)


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    save_trace(trace(), path)
    before = path.read_bytes()
    bad = trace()
    bad.settings["module"] = object()
    with pytest.raises(InputError, match="JSON cannot hold"):
        save_trace(bad, path)

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", disk_full)
    with pytest.raises(InputError, match="No space left"):
        save_trace(trace(), path)
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["trace.json"]


def test_the_target_is_untouched_until_the_end_and_after_an_interrupt(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [child.name for child in tmp_path.iterdir()] == ["out.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with replacing(tmp_path / "link.txt") as part:
        part.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_places_that_cannot_be_written(tmp_path):
    long, zero = tmp_path / ("a" * 300), tmp_path / "a\0b"
    for place in (tmp_path / "none" / "trace.json", tmp_path, Path(os.devnull), "", "/", long, zero):
        for check in (check_writable, check_appendable):
            with pytest.raises(InputError) as caught:
                check(place)
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        save_trace(trace(), tmp_path / "none" / "trace.json")


@pytest.mark.parametrize("check", [check_writable, check_appendable])
def test_checking_changes_nothing(tmp_path, check):
    path = tmp_path / "trace.json"
    check(path)
    assert not list(tmp_path.iterdir())
    path.write_text("old")
    check(path)
    assert path.read_text() == "old"


def test_a_file_that_takes_no_more_lines_is_told_before_there_are_any(tmp_path, monkeypatch):
    def refuse(self, mode):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        check_appendable(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": ' * 300 + b"1" + b"}" * 300, "recursion limit"),
        (b"1" * 5000, "out of range"),
        (b"\xef\xbb\xbf{}", "damaged"),
        (b'"\\ud800"', "damaged"),
    ],
)
def test_json_that_nobody_should_write(content, found, tmp_path):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=found):
        files.read_json(tmp_path / "file.json")


def test_a_file_that_is_larger_than_any_of_ours_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE", 1 << 20)
    (tmp_path / "file.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(InputError, match="more than 1 MB"):
        files.read_json(tmp_path / "file.json")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="found: a device or pipe"):
        files.read_json(tmp_path / "pipe")


def test_a_trace_that_no_map_could_show_is_refused(tmp_path):
    original = trace()
    original.entries = [entry(step=100_000, point=f"point {number}") for number in range(300)]
    save_trace(original, tmp_path / "trace.json")
    with pytest.raises(FileFormatError, match="300 cache points of 100001 steps"):
        load_trace(tmp_path / "trace.json")


def test_what_nobody_could_read_again_is_not_written(tmp_path):
    bad = trace()
    bad.warnings.append("half of a pair: \ud800")
    with pytest.raises(InputError, match="surrogates not allowed"):
        save_trace(bad, tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


def test_fields_of_a_later_release_may_be_absent(tmp_path):
    save_trace(trace(), tmp_path / "trace.json")
    body = json.loads((tmp_path / "trace.json").read_text())
    for name in ("counts", "warnings", "preset"):
        del body[name]
    del body["entries"][0]["seconds"]
    (tmp_path / "trace.json").write_text(json.dumps(body))
    loaded = load_trace(tmp_path / "trace.json")
    assert loaded.counts == Counter() and loaded.preset is None and loaded.entries[0].seconds == 0.0


def test_an_appended_line_that_finds_no_room_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    files.append_line(path, '{"a": 1}\n')
    monkeypatch.setattr(disk.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"no room on the disk \(No space left"):
        files.append_line(path, '{"b": 2}\n')
    assert path.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"a": 1}\n{"b', '{"a": 1}\n{"c": 3}\n'),
        ('{"a": 1}\n{"b": 2}', '{"a": 1}\n{"b": 2}\n{"c": 3}\n'),
        ("", '{"c": 3}\n'),
        ('{"a', '{"c": 3}\n'),
        ("x" * 200_000 + "\n" + "y" * 100_000, "x" * 200_000 + '\n{"c": 3}\n'),
    ],
)
def test_a_line_is_added_behind_the_last_whole_one(before, after, tmp_path):
    (tmp_path / "lines").write_text(before)
    files.append_line(tmp_path / "lines", '{"c": 3}\n')
    assert (tmp_path / "lines").read_text() == after


def test_a_folder_is_replaced_file_by_file_and_what_else_is_there_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "card").write_text("a card")
    (tmp_path / "out" / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.replacing_folder(tmp_path / "out") as part:
        (part / "weights").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "weights").read_text() == "old"
    with files.replacing_folder(tmp_path / "out") as part:
        (part / "weights").write_text("new")
        (part / "vae").mkdir()
        (part / "vae" / "config").write_text("{}")
    found = {file.name: file.read_text() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert found == {"card": "a card", "weights": "new", "config": "{}"}
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_importing_unicp_imports_neither_the_schema_library_nor_torch():
    script = "import sys, unicp; sys.exit('pydantic' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_message_holds_what_a_terminal_obeys():
    message = str(InputError("\x1b[2Jone\ntwo", "\x00\x9b3", "\u202eabc \ud800"))
    assert message.isprintable() and "\\x1b[2Jone two" in message and "\\ud800" in message


def test_two_processes_that_append_to_one_file_lose_no_line(tmp_path):
    script = """
import sys
from unicp.files import append_line
for number in range(60):
    append_line(sys.argv[1], f'{{"n": {number}}}\\n')
"""
    command = [sys.executable, "-c", script, str(tmp_path / "lines")]
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert len((tmp_path / "lines").read_text().splitlines()) == 120
