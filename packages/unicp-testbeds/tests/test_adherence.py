"""Whether clips show what prompts ask, and which prompts a test-bed is measured on."""

from __future__ import annotations

import torch

from unicp_testbeds import NAMES, clips, film_data, folder
from unicp_testbeds.adherence import adherence
from unicp_testbeds.adherence import prompts_of as prompts_in
from unicp_testbeds.prompts import SPLITS, prompts_of


def test_a_drawn_clip_shows_its_own_caption_and_no_other():
    scene, other = clips.Scene(1, 2, 0, 3), clips.Scene(4, 1, 2, 0)
    video = clips.sample_clips([scene], clips.SHORT_FRAMES, torch.Generator().manual_seed(3))
    clip = (video[0].permute(1, 2, 3, 0) + 1) / 2
    assert adherence(clip, scene.caption) == dict.fromkeys(clips.ATTRIBUTES, 1.0)
    assert adherence(clip, other.caption) == dict.fromkeys(clips.ATTRIBUTES, 0.0)


def test_a_still_green_picture_is_a_still_green_scene():
    clip = torch.zeros(4, film_data.HEIGHT, film_data.WIDTH, 3)
    clip[..., 1] = 0.6
    assert adherence(clip, "a dark green scene with still motion") == {"light": 1.0, "colour": 1.0, "motion": 1.0}
    assert adherence(clip, "a bright green scene with fast motion") == {"light": 0.0, "colour": 1.0, "motion": 0.0}


def test_other_prompts_and_sizes_are_not_judged():
    assert adherence(torch.zeros(2, 64, 96, 3), "a cat on a roof") == {}
    assert adherence(torch.zeros(2, 32, 32, 3), clips.held_out_scenes()[0].caption) == {}


def test_prompts_are_those_beside_the_weights_or_the_held_out_captions(tmp_path):
    assert prompts_in(tmp_path) == tuple(scene.caption for scene in clips.held_out_scenes())
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert prompts_in(tmp_path) == ("one", "two")


def test_each_test_bed_has_prompts_for_tables_tuning_and_calibration():
    assert (folder() / "model_index.json").is_file()
    for model in NAMES:
        sets = [set(prompts_of(split, model)) for split in SPLITS]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
        assert len(sets[0]) >= 12 and len(sets[1]) >= 6 and len(sets[2]) >= 8
