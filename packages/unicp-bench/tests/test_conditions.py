"""What a row's number depends on: weights and configuration wherever they lie, our code, the call, the machine."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_rows import row
from unicp.errors import InputError
from unicp_bench import conditions
from unicp_bench.conditions import code, differences, fingerprint, hash_of
from unicp_bench.parts import split
from unicp_bench.references import references
from unicp_bench.report import fill
from unicp_bench.rows import append_row, clip_file
from unicp_bench.statistics import group_rows
from unicp_bench.sweep import ClipFolder

COUNT, LENGTH = 40, 100_000
GLYPHS = "glyphs, sampler unipc, 30 steps, presets"


def weights(changed: int | None = None, at: int = 0) -> bytes:
    """A safetensors file of 40 tensors, 4 MB; one byte of one tensor is another."""
    header = {
        f"layer {i}": {"dtype": "U8", "shape": [LENGTH], "data_offsets": [i * LENGTH, (i + 1) * LENGTH]}
        for i in range(COUNT)
    }
    text = json.dumps(header).encode()
    body = bytearray(COUNT * LENGTH)
    if changed is not None:
        body[changed * LENGTH + at] = 1
    return struct.pack("<Q", len(text)) + text + bytes(body)


def model(folder: Path, content: bytes | None = None) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "config.json").write_text('{"layers": 2}')
    (folder / "transformer" / "model.safetensors").write_bytes(weights() if content is None else content)
    return folder


def test_a_model_is_known_by_what_it_is_and_not_by_where_it_lies(tmp_path):
    first, second = model(tmp_path / "a" / "glyphs"), model(tmp_path / "b" / "other")
    assert fingerprint(first) == fingerprint(second)
    (second / "README.md").write_text("words")
    (second / ".cache").mkdir()
    (second / ".cache" / "lock").write_text("")
    assert fingerprint(first) == fingerprint(second)
    (second / "transformer" / "config.json").write_text('{"layers": 3}')
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint("Wan-AI/Wan2.1") == "Wan-AI/Wan2.1"


@pytest.mark.parametrize("layer", [0, 17, COUNT - 1])
@pytest.mark.parametrize("at", [0, LENGTH - 1])
def test_one_changed_layer_of_a_large_file_is_seen(tmp_path, layer, at):
    first, second = model(tmp_path / "a"), model(tmp_path / "b", weights(layer, at))
    assert fingerprint(first) != fingerprint(second)


def test_a_large_file_that_is_no_safetensors_is_sampled_and_a_damaged_one_does_no_harm(tmp_path):
    first = model(tmp_path / "a", struct.pack("<Q", 2**63) + bytes(2 * conditions.WHOLE))
    assert len(fingerprint(first)) == 12
    shutil.move(first / "transformer" / "model.safetensors", first / "transformer" / "model.bin")
    before = fingerprint(first)
    (first / "transformer" / "model.bin").write_bytes(bytes(2 * conditions.WHOLE))
    assert fingerprint(first) != before


def test_the_hash_is_of_all_facts_but_the_commit():
    facts = {"call": {"num_frames": 9}, "torch": "2", "commit": "abc"}
    assert hash_of(facts) == hash_of({**facts, "commit": "def+"})
    others = [{**facts, "call": {"num_frames": 17}}, {**facts, "torch": "3"}, {**facts, "profile": "x"}]
    assert len({hash_of(one) for one in [facts, *others]}) == 4
    assert differences(facts, {**others[0], "commit": "x"}) == ["call"]
    assert code() == code() and len(code()) == 12


def test_rows_of_different_conditions_are_never_one_group():
    here, there = {"torch": "2"}, {"torch": "3"}
    rows = [
        row(conditions="a", environment=here),
        row(conditions="b", environment=there),
        row(conditions="b", environment=there, seed=1),
        row(),
    ]
    assert [len(group.rows) for group in group_rows(rows)] == [1, 2, 1]
    names = [part.name for part in split(rows)]
    assert names == [f"{GLYPHS}, torch 2", f"{GLYPHS}, torch 3", f"{GLYPHS}, without conditions"]
    assert [part.name for part in split(rows[:1])] == [GLYPHS]


def test_what_a_plain_run_costs_is_told_by_rows_of_the_same_conditions_alone():
    """Another model of the same name may cost the same at other numbers of steps."""
    rows = [row(conditions="a", steps=8), row(conditions="b", steps=4), row("x", conditions="b", steps=2)]
    assert [against.steps for against in references(rows)] == [8, 4, 4]


def test_a_table_of_the_documents_is_of_one_measurement(tmp_path):
    for conditions_of_row in ("a", "b"):
        append_row(tmp_path / "p.jsonl", row(conditions=conditions_of_row))
    for kind in ("", ":margins", ":faster"):
        with pytest.raises(InputError, match="different conditions"):
            fill(f"<!-- table p:unipc{kind} -->\n<!-- end -->", tmp_path)


def test_names_of_clips_are_short_and_tell_rows_apart(tmp_path):
    long = row(prompt="ä" * 400, conditions="a")
    names = {
        clip_file(one) for one in (long, replace(long, seed=1), replace(long, conditions="b"), row(prompt="ä" * 400))
    }
    assert len(names) == 4 and all(len(name.encode()) < 220 for name in names)
    # As before for rows without conditions, so that clips that are there are found.
    assert clip_file(row()) == "glyphs_unipc_UniCP_balanced_a_0.mp4"
    folder = ClipFolder(tmp_path)
    assert folder.lacks(long) and not folder.lacks(row(reason="no such block", conditions="a"))
    (tmp_path / clip_file(long)).write_bytes(b"")
    assert not folder.lacks(long)
