"""Videos are read back from disk: shape, rate, colours, and that nothing half-written is left."""

from __future__ import annotations

import errno
import math

import av
import numpy as np
import pytest
from PIL import Image

from unicp import disk
from unicp.cli import video
from unicp.cli.limits import SIDES
from unicp.cli.video import side_by_side, write_or_keep, write_video
from unicp.errors import InputError


def moving_square(frames: int = 4, height: int = 32, width: int = 48) -> np.ndarray:
    clip = np.zeros((frames, height, width, 3), np.float32)
    clip[..., 2] = 0.25
    for index in range(frames):
        clip[index, 8:24, 4 * index : 4 * index + 16] = (1.0, 0.5, 0.0)
    return clip


def read(path) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 0)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def test_h264_keeps_frames_rate_and_colours(tmp_path):
    clip = moving_square()
    assert write_video(clip, tmp_path / "a.mp4", 12) == "h264"
    back, rate = read(tmp_path / "a.mp4")
    assert back.shape == clip.shape and rate == 12
    flat = back[0, 12:20, 3:12].reshape(-1, 3).mean(0)
    assert np.abs(flat - np.array([255, 127.5, 0])).max() < 12
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)


def test_bytes_and_floats_give_the_same_file(tmp_path):
    clip = moving_square()
    write_video(clip, tmp_path / "a.mp4", 8)
    write_video(np.rint(clip * 255).astype(np.uint8), tmp_path / "b.mp4", 8)
    assert (read(tmp_path / "a.mp4")[0] == read(tmp_path / "b.mp4")[0]).all()


def test_odd_sizes_are_padded(tmp_path):
    write_video(moving_square(2, 31, 47), tmp_path / "a.mp4", 29.97)
    back, rate = read(tmp_path / "a.mp4")
    assert back.shape == (2, 32, 48, 3)
    assert rate == pytest.approx(29.97, abs=0.01)


def test_without_libx264_another_codec_is_used_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(video.av, "codecs_available", {"mpeg4"})
    assert write_video(moving_square(), tmp_path / "a.mp4", 8) == "mpeg4"
    assert read(tmp_path / "a.mp4")[0].shape == (4, 32, 48, 3)


def test_gif(tmp_path):
    assert write_video(moving_square(), tmp_path / "a.GIF", 10) == "gif"
    with Image.open(tmp_path / "a.GIF") as picture:
        assert (picture.size, getattr(picture, "n_frames", 1), picture.info["duration"]) == ((48, 32), 4, 100)


def test_values_out_of_range_are_clipped_and_nan_is_black(tmp_path):
    clip = np.full((1, 16, 16, 3), 7.0, np.float32)
    clip[:, 8:] = math.nan
    write_video(clip, tmp_path / "a.mp4", 8)
    back = read(tmp_path / "a.mp4")[0]
    assert back[0, :6].min() > 245 and back[0, 10:].max() < 10


def test_an_error_or_interrupt_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_text("old")

    def interrupt(*_args, **_changes):
        raise KeyboardInterrupt

    monkeypatch.setattr(video, "_write_mp4", lambda frames, part, fps: (part.write_text("half"), interrupt())[0])
    with pytest.raises(KeyboardInterrupt):
        write_video(moving_square(), tmp_path / "a.mp4", 8)
    assert (tmp_path / "a.mp4").read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("shape", [(4, 8, 8), (0, 8, 8, 3), (2, 8, 8, 4), (2, 0, 8, 3)])
def test_bad_shapes(shape, tmp_path):
    with pytest.raises(InputError, match="shape"):
        write_video(np.zeros(shape, np.uint8), tmp_path / "a.mp4", 8)


def test_bad_types_rates_and_endings(tmp_path):
    clip = moving_square()
    with pytest.raises(InputError, match="int64"):
        write_video(clip.astype(np.int64), tmp_path / "a.mp4", 8)
    for fps in (0, -1, 1e-7, math.nan, math.inf):
        with pytest.raises(InputError, match="fps"):
            write_video(clip, tmp_path / "a.mp4", fps)
    for name in ("a.avi", "a", "a.mp4.txt"):
        with pytest.raises(InputError, match="endings"):
            write_video(clip, tmp_path / name, 8)
    with pytest.raises(InputError, match="no folder"):
        write_video(clip, tmp_path / "none" / "a.mp4", 8)
    assert not list(tmp_path.iterdir())


def test_side_by_side_is_scaled_and_labelled():
    left, right = moving_square(), np.zeros((4, 32, 48, 3), np.uint8)
    joined = side_by_side(left, right, ("plain 12.3 s", "balanced 5.9 s, 2.1x"))
    height, width = 32 * 8, 48 * 8
    band = joined.shape[1] - height
    assert joined.dtype == np.uint8 and joined.shape[2] == 2 * width + 8 and band > 14
    assert (joined[:, band:, width + 8 :] == 0).all()
    assert (joined[:, band:, width : width + 8] == 255).all()
    assert np.abs(joined[0, band + 100, 40].astype(int) - [255, 128, 0]).max() <= 2
    assert joined[0, :band, :width].min() < 100 and joined[0, :band, width:].min() < 100


def test_large_videos_keep_their_size_and_long_labels_fit():
    clip = np.zeros((1, 256, 300, 3), np.uint8)
    joined = side_by_side(clip, clip, ("a" * 60, "b"))
    assert joined.shape[1] > 256 and joined.shape[2] == 608
    band = joined[0, : joined.shape[1] - 256]
    assert (band[:, 300:308] == 255).all()


def test_side_by_side_needs_equal_shapes():
    with pytest.raises(InputError, match="equal shapes"):
        side_by_side(moving_square(4), moving_square(3), ("a", "b"))


def test_a_gif_of_one_picture_all_the_time_is_as_long_as_a_gif_can_be(tmp_path):
    write_video(np.zeros((655, 8, 8, 3), np.uint8), tmp_path / "a.gif", 1)
    with pytest.raises(InputError, match="655 s"):
        write_video(np.zeros((656, 8, 8, 3), np.uint8), tmp_path / "a.gif", 1)


def test_what_the_encoder_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(SIDES, ".mp4", 20_000)
    with pytest.raises(InputError, match="the encoder refuses it") as caught:
        write_video(np.zeros((1, 16, 16386, 3), np.uint8), tmp_path / "a.mp4", 8)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_that_whatever_the_encoder_says_of_it(tmp_path, monkeypatch):
    def broken(frames, path, fps):
        raise ValueError("no packet")

    monkeypatch.setattr(video, "_write_mp4", broken)
    monkeypatch.setattr(disk, "_disk_is_full", lambda part: OSError(errno.ENOSPC, "no space"))
    with pytest.raises(InputError, match="no room on the disk"):
        write_video(moving_square(), tmp_path / "a.mp4", 8)


def test_two_long_videos_beside_each_other_still_fit_a_file(tmp_path):
    clip = np.zeros((1, 16, 4000, 3), np.uint8)
    joined = side_by_side(clip, clip, ("a", "b"))
    assert joined.shape[2] == 2 * 2 * 4000 + 8 <= SIDES[".mp4"]
    clip = np.zeros((1, 16, 8180, 3), np.uint8)
    write_video(side_by_side(clip, clip, ("a", "b")), tmp_path / "a.mp4", 8)


def kept_in(error: InputError):
    name = error.do.removeprefix("take the video from ")
    assert name != error.do
    return name


def test_a_video_whose_folder_vanished_is_kept_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(video.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match="no folder") as caught:
        write_or_keep(moving_square(), tmp_path / "gone" / "a.mp4", 8)
    (kept,) = tmp_path.iterdir()
    assert str(kept) == kept_in(caught.value) and kept.suffix == ".mp4"
    assert read(kept)[0].shape == (4, 32, 48, 3)


def test_a_video_that_no_encoder_takes_is_kept_as_an_array(tmp_path, monkeypatch):
    def fail(*_args):
        raise video.av.error.ExternalError(1, "broken")

    monkeypatch.setattr(video, "_write_mp4", fail)
    with pytest.raises(InputError, match="the encoder refuses it") as caught:
        write_or_keep(moving_square(), tmp_path / "a.mp4", 8)
    (kept,) = tmp_path.iterdir()
    assert str(kept) == kept_in(caught.value)
    with np.load(kept) as found:
        assert found["fps"] == 8
        assert (found["frames"] == np.rint(moving_square() * 255)).all()


def test_a_video_is_kept_on_another_disk_when_this_one_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(video.tempfile, "tempdir", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    replacing = video.replacing

    def full(path):
        if "other" not in str(path):
            raise InputError(f"to write {path}", "No space left on device", "free some")
        return replacing(path)

    monkeypatch.setattr(video, "replacing", full)
    with pytest.raises(InputError, match="No space left") as caught:
        write_or_keep(moving_square(), tmp_path / "a.gif", 8)
    (kept,) = (tmp_path / "other").iterdir()
    assert str(kept) == kept_in(caught.value) and kept.suffix == ".gif" and kept.stat().st_size > 100


def test_a_video_that_no_place_takes_is_said_to_be_lost(tmp_path, monkeypatch):
    def full(path):
        raise InputError(f"to write {path}", "No space left on device", "free some")

    monkeypatch.setattr(video, "replacing", full)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no other place took it"):
        write_or_keep(moving_square(), tmp_path / "a.mp4", 8)
    assert not list(tmp_path.iterdir())
