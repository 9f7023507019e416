"""Profiles on disk: round trip, and everything a file can be that is no profile. Fingerprints."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.made_profiles import made
from unicp.errors import FileFormatError, InputError
from unicp.planning.profile import Fingerprint, Seconds, builtin_profile, load_profile, save_profile


def test_round_trip(tmp_path):
    save_profile(made(), tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == made()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda body: body.update(type="unicp.plan"), "type 'unicp.plan'"),
        (lambda body: body.update(version=99), "version 99"),
        (lambda body: body.update(version=9), "version 9"),
        (lambda body: body.pop("shares"), "missing shares"),
        (lambda body: body["shares"].pop(), "shares of 15 steps"),
        (lambda body: body["signal"].pop(), "noise levels"),
        (lambda body: body["noise"].reverse(), "noise levels that do not fall"),
        (lambda body: body["noise"].__setitem__(0, -1.0), "noise[0] is a number out of range"),
        (lambda body: body["products"]["table"].pop(), "a table of another size"),
        (lambda body: body["products"]["places"].reverse(), "noise levels that do not fall"),
        (lambda body: body["products"]["table"][3].__setitem__(0, "nan"), "products.table[3][0] is a number out of"),
        (lambda body: body["trials"][0].update(full=77), "a trial of another run"),
        (lambda body: body["trials"][0].update(loss=-1.0), "trials[0].loss is a number out of range"),
        (lambda body: body["fingerprint"].update(branches="two"), "fingerprint.branches is 'two'"),
        (lambda body: body["seconds"].update(full=0.0), "seconds.full is a number out of range"),
        (lambda body: body["seconds"].update(rest="inf"), "seconds without end"),
    ],
)
def test_a_damaged_profile_is_refused_in_one_line(tmp_path, change, found):
    path = tmp_path / "profile.json"
    save_profile(made(), path)
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(FileFormatError) as caught:
        load_profile(path)
    assert found in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_is_an_error_of_its_own(tmp_path):
    with pytest.raises(InputError, match="missing.json"):
        load_profile(tmp_path / "missing.json")


def test_seconds_of_a_run_and_its_speed():
    seconds = Seconds(full=2.0, plain=1.8, skipped=0.1, rest=3.0)
    assert seconds.of(10, 4) == pytest.approx(3 + 8 + 0.6)
    assert seconds.speed_up(10, 4) == pytest.approx((3 + 18) / 11.6)


def test_the_fingerprint_of_a_model():
    model = SimpleNamespace(config={"layers": 2, "_name_or_path": "here"}, dtype="torch.float32")
    same = SimpleNamespace(config={"_name_or_path": "there", "layers": 2}, dtype="torch.float32")
    other = SimpleNamespace(config={"layers": 3}, dtype="torch.float32")
    scheduler = SimpleNamespace()
    first = Fingerprint.of(model, scheduler, "flow", 2)
    assert first == Fingerprint.of(same, scheduler, "flow", 2)
    (difference,) = first.differences(Fingerprint.of(other, scheduler, "flow", 2))
    assert difference.startswith("config ")


def test_branches_that_are_not_known_yet_are_no_difference():
    model = SimpleNamespace(config={}, dtype="torch.float32")
    first = Fingerprint.of(model, model, "flow", 2)
    assert first.differences(Fingerprint.of(model, model, "flow")) == []
    assert first.differences(Fingerprint.of(model, model, "flow", 1)) == ["branches 1, not 2"]


def test_no_shipped_profile_is_taken_for_another_model():
    assert builtin_profile(made().fingerprint) is None
