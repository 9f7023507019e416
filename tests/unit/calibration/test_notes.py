"""A calibration that was stopped goes on; one that does not fit, or is damaged, is not mixed in."""

from __future__ import annotations

import math

import pytest

from unicp.calibration.notes import Notes
from unicp.errors import FileFormatError, InputError
from unicp.planning.profile import FewerSteps

ABOUT = {"model": "Made", "steps": 8}


def test_results_are_there_after_a_stop(tmp_path):
    out = tmp_path / "profile.json"
    notes = Notes.open(out, ABOUT)
    notes.add("fewer 4 a", FewerSteps("a", 4, math.inf))
    notes.add("plain", [1, 2])
    again = Notes.open(out, ABOUT)
    assert again.known["fewer 4 a"] == {
        "prompt": "a",
        "steps": 4,
        "psnr": "inf",
        "computed": [],
        "allowed": 0.0,
    } and again.known["plain"] == [1, 2]
    again.done()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    out = tmp_path / "profile.json"
    notes = Notes.open(out, ABOUT)
    notes.add("one", 1)
    with notes.path.open("a") as file:
        file.write('{"key": "two", "val')
    again = Notes.open(out, ABOUT)
    assert "one" in again.known and "two" not in again.known
    again.add("two", 2)
    assert Notes.open(out, ABOUT).known["two"] == 2


def test_another_calibration_is_not_gone_on_with(tmp_path):
    Notes.open(tmp_path / "profile.json", ABOUT)
    with pytest.raises(InputError, match="another steps"):
        Notes.open(tmp_path / "profile.json", {**ABOUT, "steps": 9})


def test_a_damaged_file_is_refused(tmp_path):
    notes = Notes.open(tmp_path / "profile.json", ABOUT)
    for text in ("nonsense\n", notes.path.read_text() + "nonsense\n" + '{"key": "a", "value": 1}\n'):
        notes.path.write_text(text)
        with pytest.raises(FileFormatError, match="delete it to begin anew"):
            Notes.open(tmp_path / "profile.json", ABOUT)
