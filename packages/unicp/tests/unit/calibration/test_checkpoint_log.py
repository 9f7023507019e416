"""A calibration that was stopped goes on; one that does not fit, or is damaged, is not mixed in."""

from __future__ import annotations

import math

import pytest

from unicp.calibration.checkpoint_log import CheckpointLog
from unicp.errors import FileFormatError, InputError
from unicp.planning.profile import FewerSteps

ABOUT = {"model": "Made", "steps": 8}


def test_results_are_there_after_a_stop(tmp_path):
    out = tmp_path / "profile.json"
    log = CheckpointLog.open(out, ABOUT)
    log.add(("fewer", "a", 4), FewerSteps("a", 4, math.inf))
    log.add(("skipped", "trial", "a", 0.3, 1), 0.25)
    again = CheckpointLog.open(out, ABOUT)
    assert again.known == {("fewer", "a", 4): FewerSteps("a", 4, math.inf), ("skipped", "trial", "a", 0.3, 1): 0.25}
    assert again.of("fewer") == [FewerSteps("a", 4, math.inf)] and again.of("trial") == []
    again.done()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    out = tmp_path / "profile.json"
    log = CheckpointLog.open(out, ABOUT)
    log.add(("skipped", "one"), 1.0)
    with log.path.open("a") as file:
        file.write('{"key": ["skipped", "two"], "val')
    again = CheckpointLog.open(out, ABOUT)
    assert ("skipped", "one") in again.known and ("skipped", "two") not in again.known
    again.add(("skipped", "two"), 2.0)
    assert CheckpointLog.open(out, ABOUT).known["skipped", "two"] == 2


def test_another_calibration_is_not_gone_on_with(tmp_path):
    CheckpointLog.open(tmp_path / "profile.json", ABOUT)
    with pytest.raises(InputError, match="another steps"):
        CheckpointLog.open(tmp_path / "profile.json", {**ABOUT, "steps": 9})


def test_a_damaged_file_is_refused(tmp_path):
    log = CheckpointLog.open(tmp_path / "profile.json", ABOUT)
    for text in ("nonsense\n", log.path.read_text() + "nonsense\n" + '{"key": ["skipped", "a"], "value": 1}\n'):
        log.path.write_text(text)
        with pytest.raises(FileFormatError, match="delete it"):
            CheckpointLog.open(tmp_path / "profile.json", ABOUT)


def test_a_log_of_an_older_version_is_refused_in_one_line(tmp_path):
    log = CheckpointLog.open(tmp_path / "profile.json", ABOUT)
    log.path.write_text('{"key": "about", "value": {}}\n{"key": "probe 3 a", "value": {}}\n')
    with pytest.raises(InputError, match="an older version.*delete it"):
        CheckpointLog.open(tmp_path / "profile.json", ABOUT)
