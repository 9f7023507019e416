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
    notes.add("served trial a", 0.25)
    again = Notes.open(out, ABOUT)
    assert again.known == {"fewer 4 a": FewerSteps("a", 4, math.inf), "served trial a": 0.25}
    assert again.of("fewer") == [FewerSteps("a", 4, math.inf)] and again.of("trial") == []
    again.done()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    out = tmp_path / "profile.json"
    notes = Notes.open(out, ABOUT)
    notes.add("served one", 1.0)
    with notes.path.open("a") as file:
        file.write('{"key": "served two", "val')
    again = Notes.open(out, ABOUT)
    assert "served one" in again.known and "served two" not in again.known
    again.add("served two", 2.0)
    assert Notes.open(out, ABOUT).known["served two"] == 2


def test_another_calibration_is_not_gone_on_with(tmp_path):
    Notes.open(tmp_path / "profile.json", ABOUT)
    with pytest.raises(InputError, match="another steps"):
        Notes.open(tmp_path / "profile.json", {**ABOUT, "steps": 9})


def test_a_damaged_file_is_refused(tmp_path):
    notes = Notes.open(tmp_path / "profile.json", ABOUT)
    for text in ("nonsense\n", notes.path.read_text() + "nonsense\n" + '{"key": "served a", "value": 1}\n'):
        notes.path.write_text(text)
        with pytest.raises(FileFormatError, match="delete it to begin anew"):
            Notes.open(tmp_path / "profile.json", ABOUT)
