"""Shots, clips and captions of a film, on drawn frames with known cuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unicp.errors import InputError
from unicp_testbeds import film_data
from unicp_testbeds.film_data import (
    FRAMES,
    HEIGHT,
    WIDTH,
    caption,
    cut_clips,
    describe,
    find_cuts,
    load_clips,
    save_clips,
)


def shot(length: int, colour: tuple[int, int, int], speed: float = 0.0) -> list[np.ndarray]:
    """Frames of one colour with a soft pattern that moves `speed` pixels a frame."""
    x = np.arange(WIDTH)[None, :, None]
    frames = []
    for index in range(length):
        wave = 20 * np.sin((x + speed * index) / 6)
        frames.append(np.clip(np.array(colour) + wave + np.zeros((HEIGHT, 1, 1)), 0, 255).astype(np.uint8))
    return frames


def test_cuts_are_found_where_they_are():
    frames = shot(70, (40, 40, 40)) + shot(80, (200, 60, 40), 0.5) + shot(9, (60, 200, 60))
    assert find_cuts(frames) == [0, 70, 150]


def test_motion_within_a_shot_is_no_cut():
    assert find_cuts(shot(60, (120, 120, 120), 2.0)) == [0]


def test_clips_lie_within_one_shot_and_shots_too_short_give_none():
    frames = shot(110, (40, 90, 40)) + shot(30, (200, 60, 40)) + shot(75, (60, 60, 200))
    clips = cut_clips(frames, find_cuts(frames))
    assert clips.shot.tolist() == [0, 0, 2]
    assert clips.frames.shape == (3, FRAMES, HEIGHT, WIDTH, 3)
    assert [text.split()[2] for text in clips.captions] == ["green", "green", "blue"]
    # No clip holds a frame of another shot.
    assert clips.frames[1, -1, 0, 0, 1] > clips.frames[1, -1, 0, 0, 2]


def test_a_film_without_a_long_shot_is_refused():
    with pytest.raises(InputError):
        cut_clips(shot(20, (90, 90, 90)), [0])


@pytest.mark.parametrize(
    ("colour", "speed", "said"),
    [
        ((30, 30, 30), 0.0, "a dark grey scene with still motion"),
        ((60, 140, 60), 3.0, "a dim green scene with slow motion"),
        ((120, 140, 230), 14.0, "a bright blue scene with fast motion"),
        ((150, 100, 60), 0.0, "a dim brown scene with still motion"),
    ],
)
def test_captions_say_what_is_measured(colour, speed, said):
    clip = torch.from_numpy(np.stack(shot(FRAMES, colour, speed))) / 255
    assert caption(describe(clip)) == said


def test_every_combination_is_a_prompt_once_and_says_what_it_asks():
    every = film_data.prompts()
    assert len(every) == len(set(every)) == 36
    assert every == film_data.prompts() != sorted(every)
    assert [caption(film_data.attributes_of(text)) for text in every] == every
    assert film_data.prompts({every[30], every[2], "something else"}) == [every[2], every[30]]


def test_the_film_is_one_array_and_clips_that_exist_are_not_made_again(tmp_path, monkeypatch):
    frames = shot(75, (40, 90, 40))
    monkeypatch.setattr(film_data, "read_frames", lambda film: iter(frames))
    monkeypatch.setattr(film_data, "fetch_film", lambda folder: folder / "film.mp4")
    made = film_data.make_clips(tmp_path / "clips.npz")
    assert np.array_equal(made.frames, cut_clips(frames, [0]).frames)
    monkeypatch.setattr(film_data, "fetch_film", None)
    assert film_data.make_clips(tmp_path / "clips.npz").captions == made.captions
    assert film_data.read_film(tmp_path).shape == (75, HEIGHT, WIDTH, 3)


def test_test_shots_are_whole_shots():
    clips = film_data.Clips(np.zeros((6, 1, 1, 1, 3), np.uint8), np.array([3, 4, 4, 5, 9, 10]), ("",) * 6)
    assert clips.is_test.tolist() == [False, True, True, False, True, False]


def test_clips_come_back_as_saved(tmp_path):
    frames = shot(75, (40, 90, 40))
    clips = cut_clips(frames, [0])
    save_clips(clips, tmp_path / "deep" / "clips.npz")
    again = load_clips(tmp_path / "deep" / "clips.npz")
    assert np.array_equal(again.frames, clips.frames) and again.captions == clips.captions
    with pytest.raises(InputError):
        load_clips(tmp_path / "none.npz")
