"""Real film for the third test-bed: clips of Big Buck Bunny, cut at its shots, with captions measured from the pixels.

    python -m unicp_testbeds.film_data --out build/film/clips.npz       # fetches 58 MB from PyPI, then about a minute

Big Buck Bunny is (c) 2008 Blender Foundation, www.bigbuckbunny.org, licence CC BY 3.0. The whole film is in the source
distribution of the package moviepy, so a machine that reaches only package registries can fetch it. The captions are
ours: light, colour and motion are measured on each clip, and so they can be on a generated one. Shots, not clips, are
divided between training and test, since clips of one shot look alike.
"""

from __future__ import annotations

import argparse
import io
import itertools
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unicp.errors import InputError, run_main
from unicp.files import replacing

PACKAGE = "moviepy==2.2.1"
_ARCHIVE = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
_FILM = "moviepy_10_minutes/resources/bbb.mp4"

HEIGHT, WIDTH, FRAMES, FPS = 96, 160, 33, 12
SOURCE_FPS = 24
CREDITS = 570.0  # seconds: titles roll from here on
OVERLAP = 17  # frames between the beginnings of clips of one shot, at FPS
CUT = 0.11  # mean absolute change between neighbouring frames, of the range 0 to 1, that is taken for a cut
TEST_SHARE = 5  # every fifth shot is for tests

LIGHTS = ("dark", "dim", "bright")
COLOURS = ("green", "blue", "brown", "grey")
MOTIONS = ("still", "slow", "fast")
PROMPTS_FILE = "prompts.txt"  # beside the weights: the captions that occur in training
ATTRIBUTES: dict[str, tuple[str, ...]] = {"light": LIGHTS, "colour": COLOURS, "motion": MOTIONS}


Frames = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


@dataclass(frozen=True)
class Clips:
    """Clips and their shots.

    Attributes:
        frames: (N, 33, 96, 160, 3) bytes.
        shot: (N,) numbers.
        captions: N sentences.
    """

    frames: NDArray[np.uint8]
    shot: NDArray[np.int64]
    captions: tuple[str, ...]

    @property
    def is_test(self) -> NDArray[np.bool_]:
        """Whether each clip is of a shot that training never sees, (N,)."""
        return self.shot % TEST_SHARE == TEST_SHARE - 1


def describe(clip: Tensor) -> dict[str, int]:
    """Light, colour and motion of a clip (frames, height, width, 3) in [0, 1], as indices into `ATTRIBUTES`.

    Light is the mean brightness. Colour is the hue of the mean pixel, or "grey" if its saturation is low. Motion is the
    root mean square change between neighbouring frames, over all pixels.
    """
    mean = clip.float().mean((0, 1, 2))
    brightness = float(mean.mean())
    light = 0 if brightness < 0.30 else 1 if brightness < 0.45 else 2
    red, green, blue = mean.tolist()
    spread = (max(mean.tolist()) - min(mean.tolist())) / max(1e-6, max(mean.tolist()))
    colour = 3 if spread < 0.12 else 0 if green >= max(red, blue) else 1 if blue >= red else 2
    change = float(clip.float().diff(dim=0).square().mean().sqrt())
    motion = 0 if change < 0.02 else 1 if change < 0.055 else 2
    return {"light": light, "colour": colour, "motion": motion}


def caption(attributes: dict[str, int]) -> str:
    """The sentence that says the three attributes: "a bright green scene with fast motion"."""
    words = {name: ATTRIBUTES[name][index] for name, index in attributes.items()}
    return f"a {words['light']} {words['colour']} scene with {words['motion']} motion"


def prompts(known: Collection[str] | None = None) -> list[str]:
    """The sentences of all 36 combinations in a fixed shuffled order; with `known`, only those in it."""
    sizes = [range(len(values)) for values in ATTRIBUTES.values()]
    every = [caption(dict(zip(ATTRIBUTES, indices))) for indices in itertools.product(*sizes)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    return [every[i] for i in order if known is None or every[i] in known]


def attributes_of(text: str) -> dict[str, int]:
    """The attributes in a sentence of `caption`, as indices into `ATTRIBUTES`."""
    words = text.split()
    return {name: values.index(next(w for w in words if w in values)) for name, values in ATTRIBUTES.items()}


def fetch_film(folder: Path) -> Path:
    """Fetches the film as an mp4 into `folder`, from the source distribution of moviepy.

    Raises:
        InputError: It cannot be fetched.
    """
    path = folder / "bbb.mp4"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "moviepy", "-d", place]
        done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False)
        archives = list(Path(place).glob("moviepy-*.tar.gz"))
        if done.returncode or not archives:
            found = " ".join(done.stderr.split())[-200:] or "no source distribution"
            raise InputError(f"the film, from {PACKAGE} on PyPI", found, "try again where pip can reach PyPI")
        with tarfile.open(archives[0]) as tar:
            member = tar.extractfile(_ARCHIVE)
            assert member is not None
            inner = zipfile.ZipFile(io.BytesIO(member.read()))
        with replacing(path) as part:
            part.write_bytes(inner.read(_FILM))
    return path


def read_frames(film: Path) -> Iterator[NDArray[np.uint8]]:
    """Every frame before the credits, (96, 160, 3) bytes: cut to 5:3 around the middle and shrunk."""
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.time is not None and frame.time >= CREDITS:
                return
            height = frame.height
            width = height * WIDTH // HEIGHT
            left = (frame.width - width) // 2
            picture = frame.to_ndarray(format="rgb24")[:, left : left + width]
            pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
            small = F.interpolate(pixels, (HEIGHT, WIDTH), mode="area")[0].permute(1, 2, 0)
            yield small.round().byte().numpy()


def read_film(film: Path) -> NDArray[np.uint8]:
    """The frames of `read_frames` as one array, (N, 96, 160, 3).

    A list of the same frames takes 24 GB, because small arrays among freed large ones fragment the heap.
    """
    frames = np.empty((int(CREDITS * SOURCE_FPS) + 1, HEIGHT, WIDTH, 3), np.uint8)
    count = 0
    for frame in read_frames(film):
        frames[count] = frame
        count += 1
    return frames[:count]


def find_cuts(frames: Frames) -> list[int]:
    """Numbers of the frames that begin a shot, the first one included."""
    cuts, last = [0], None
    for index, frame in enumerate(frames):
        small = frame[::3, ::3].astype(np.float32) / 255
        if last is not None and float(np.abs(small - last).mean()) > CUT and index - cuts[-1] > 4:
            cuts.append(index)
        last = small
    return cuts


def cut_clips(frames: Frames, cuts: Sequence[int]) -> Clips:
    """Cuts clips of 33 frames at 12 a second within shots, without two frames at each end of a shot.

    Raises:
        InputError: There is no shot of this length.
    """
    stride = SOURCE_FPS // FPS
    length = (FRAMES - 1) * stride + 1
    ends = [*cuts[1:], len(frames)]
    places = [
        (shot, start)
        for shot, (begin, end) in enumerate(zip(cuts, ends))
        for start in range(begin + 2, end - 2 - length + 1, OVERLAP * stride)
    ]
    if not places:
        raise InputError("clips of a film", f"no shot of {length} frames", "use a longer film")
    found = np.empty((len(places), FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    shots: list[int] = []
    captions: list[str] = []
    for shot, start in places:
        clip = np.stack([frames[i] for i in range(start, start + length, stride)])
        if clip.std(dtype=np.float32) > 8:  # not black
            found[len(shots)] = clip
            shots.append(shot)
            captions.append(caption(describe(torch.from_numpy(clip) / 255)))
    return Clips(found[: len(shots)], np.array(shots), tuple(captions))


def save_clips(clips: Clips, path: Path) -> None:
    """Writes the clips as one compressed file; it appears only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, frames=clips.frames, shot=clips.shot, captions=np.array(clips.captions))


def load_clips(path: Path) -> Clips:
    """Reads what `save_clips` wrote.

    Raises:
        InputError: There is no such file.
    """
    if not path.is_file():
        raise InputError(f"clips in {path}", "no such file", "run python -m unicp_testbeds.film_data")
    with np.load(path, allow_pickle=False) as stored:
        return Clips(stored["frames"], stored["shot"], tuple(str(text) for text in stored["captions"]))


def make_clips(path: Path) -> Clips:
    """The clips in `path`; if there is no such file, fetches the film beside it and cuts them."""
    if not path.is_file():
        frames = read_film(fetch_film(path.parent))
        save_clips(cut_clips(frames, find_cuts(frames)), path)
    return load_clips(path)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/film/clips.npz"))
    clips = make_clips(parser.parse_args().out)
    print(f"{len(set(clips.shot.tolist()))} shots, {len(clips.frames)} clips, {int(clips.is_test.sum())} for tests")
    for text in sorted(set(clips.captions)):
        print(f"{clips.captions.count(text):5} {text}")


if __name__ == "__main__":
    run_main(main)
