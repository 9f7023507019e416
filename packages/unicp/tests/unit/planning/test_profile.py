"""Profiles on disk: round trip, and everything a file can be that is no profile. Fingerprints."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from tests.made_profiles import made
from unicp.errors import FileFormatError, InputError
from unicp.planning.profile import Fingerprint, load_profile, save_profile


def test_round_trip(tmp_path):
    save_profile(made(), tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == made()


def test_profiles_of_version_8_are_read(tmp_path):
    save_profile(dataclasses.replace(made(), replayed=True), path := tmp_path / "profile.json")
    body = json.loads(path.read_text())
    body |= {"version": 8, "mended": body.pop("replayed")}
    body["seconds"]["served"] = body["seconds"].pop("skipped")
    path.write_text(json.dumps(body))
    assert load_profile(path) == dataclasses.replace(made(), replayed=True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda body: body.update(type="unicp.plan"), "type 'unicp.plan'"),
        (lambda body: body.update(version=99), "version 99"),
        (lambda body: body.pop("probes"), "missing probes"),
        (lambda body: body.update(probes=[]), "no recorded run or no probe"),
        (lambda body: body.update(power="two"), "power is 'two'"),
        (lambda body: body.update(power=9.0), "power is a number out of range"),
        (lambda body: body["signal"].pop(), "noise levels"),
        (lambda body: body["noise"].reverse(), "noise levels that do not fall"),
        (lambda body: body["noise"].__setitem__(0, -1.0), "noise[0] is a number out of range"),
        (lambda body: body["recordings"][0]["power"].pop(), "a recording of 15 steps"),
        (
            lambda body: body["recordings"][0]["power"].__setitem__(3, 0.0),
            "recordings[0].power[3] is a number out of range",
        ),
        (lambda body: body["recordings"][0]["products"]["noise"].pop(), "a recording of 16 steps"),
        (
            lambda body: body["recordings"][0]["products"]["noise"].__setitem__(0, "nan"),
            "recordings[0].products.noise[0] is a number out of",
        ),
        (lambda body: body["recordings"][0]["products"].update(sound=[0.0] * 136), "quantities"),
        (lambda body: body["probes"][0].update(step=77), "outside the run"),
        (
            lambda body: body["windows"].append({"prompt": "a", "first": 15, "errors": [0.1, 0.1], "psnr": 40.0}),
            "a probed window",
        ),
        (lambda body: body["fingerprint"].update(branches="two"), "fingerprint.branches is 'two'"),
        (lambda body: body["seconds"].update(computed=0.0), "seconds.computed is a number out of range"),
        (lambda body: body["seconds"].update(added=-0.5), "seconds.added is a number out of range"),
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


def test_files_that_are_no_profile(tmp_path):
    with pytest.raises(InputError):
        load_profile(tmp_path / "none.json")
    for text in ("", "[]", "{", '{"type": "unicp.profile"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FileFormatError):
            load_profile(tmp_path / "bad.json")


def model(**config) -> SimpleNamespace:
    return SimpleNamespace(config={"layers": 2, "_name_or_path": "here", **config}, dtype="torch.float32")


def test_a_fingerprint_changes_with_what_matters_only():
    scheduler = SimpleNamespace()
    own = Fingerprint.of(model(), scheduler, "flow", 2)
    assert own.dtype == "float32" and own.scheduler == "SimpleNamespace"
    assert own == Fingerprint.of(model(_name_or_path="there"), scheduler, "flow", 2)
    assert own.differences(Fingerprint.of(model(layers=3), scheduler, "flow", 1)) == [
        f"config {Fingerprint.of(model(layers=3), scheduler, 'flow', 1).config}, not {own.config}",
        "branches 1, not 2",
    ]
