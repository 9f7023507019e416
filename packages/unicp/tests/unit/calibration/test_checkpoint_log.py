"""A calibration that was stopped goes on; one that does not fit, or is damaged, is not mixed in."""

from __future__ import annotations

import math

import pytest

from tests.made_profiles import euler_shares, flow_levels, products
from unicp.calibration.checkpoint_log import CheckpointLog, PlainRun, TrialRun
from unicp.errors import FileFormatError, InputError
from unicp.planning.profile import Trial

ABOUT = {"model": "Made", "steps": 8}
LEVELS = flow_levels(8)
SIGNAL, NOISE = [level.signal for level in LEVELS], [level.noise for level in LEVELS]
PLAIN = PlainRun(products(LEVELS[:-1]), SIGNAL, NOISE, euler_shares(LEVELS), [1, 4, 2, 4, 4], 2, 0.5, 0.1)


def trial(prompt: str = "a", psnr: float = 40.0) -> TrialRun:
    return TrialRun(Trial(prompt, 4, 0.1, psnr), 0.5, 0.01)


def test_results_are_there_after_a_stop(tmp_path):
    out = tmp_path / "profile.json"
    log = CheckpointLog.open(out, ABOUT)
    log.add(("plain", "a"), PLAIN)
    log.add(("trial", "a", 0.5), trial(psnr=math.inf))
    again = CheckpointLog.open(out, ABOUT)
    assert again.known == {("plain", "a"): PLAIN, ("trial", "a", 0.5): trial(psnr=math.inf)}
    assert again.of("trial") == [trial(psnr=math.inf)]
    again.done()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    out = tmp_path / "profile.json"
    log = CheckpointLog.open(out, ABOUT)
    log.add(("trial", "one", 0.5), trial("one"))
    with log.path.open("a") as file:
        file.write('{"key": ["trial", "two", 0.5], "val')
    again = CheckpointLog.open(out, ABOUT)
    assert set(again.known) == {("trial", "one", 0.5)}
    again.add(("trial", "two", 0.5), trial("two"))
    assert CheckpointLog.open(out, ABOUT).known["trial", "two", 0.5] == trial("two")


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
