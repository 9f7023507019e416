"""Scores adherence: how many generated clips show the glyph, colour, motion and background of their prompt.

    python -m unicp_testbeds.scoring train         # the classifier: a minute and a half on one CPU core
    python -m unicp_testbeds.scoring generate      # 64 held-out prompts through the shipped pipeline
    python -m unicp_testbeds.scoring sheet --out docs/img/contact_sheet.png

The scores go to `scores.json` beside the weights, and from there into the model card.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unicp.errors import InputError, UniCPError
from unicp.files import read_json, replacing
from unicp_testbeds import clips, folder
from unicp_testbeds.card_form import DEFAULTS_FILE
from unicp_testbeds.model_card import DEFAULTS, SCORES_FILE, WEIGHTS_FILE, record_scores
from unicp_testbeds.scorer import (
    STEPS,
    Scorer,
    accuracies,
    evaluate_real,
    load_scorer,
    read_clips,
    score_clips,
    train_scorer,
)

__all__ = ["Scorer", "evaluate_real", "load_scorer", "read_clips", "score_clips", "train_scorer"]
SAMPLERS = ("own", "euler")
_SAMPLER_NAMES = {
    "UniPCMultistepScheduler": "unipc",
    "DDIMScheduler": "ddim",
    "FlowMatchEulerDiscreteScheduler": "euler",
}


def generate_clips(
    pipe: Any, scenes: Sequence[clips.Scene], frames: int, steps: int, seed: int = 0, batch: int = 1
) -> Iterator[tuple[list[clips.Scene], Tensor]]:
    """Yields (scenes, clips (B, T, 64, 96, 3) float32 in [0, 1]) for `batch` prompts at a time.

    The clip of scene i starts from noise of seed `seed` + i, so it does not depend on the batch.
    """
    for first in range(0, len(scenes), batch):
        part = list(scenes[first : first + batch])
        video = pipe(
            prompt=[scene.caption for scene in part],
            num_inference_steps=steps,
            **_arguments(pipe, frames),
            generator=[torch.Generator().manual_seed(seed + first + i) for i in range(len(part))],
            output_type="np",
        ).frames
        yield part, torch.as_tensor(video).float()


def _arguments(pipe: Any, frames: int) -> dict[str, Any]:
    """Size, guidance and length of a clip as this pipeline's arguments; all models of glyphs share them."""
    shared = {name: DEFAULTS[name] for name in ("height", "width", "guidance_scale")}
    if "video_length" in inspect.signature(type(pipe).__call__).parameters:
        return shared | {"video_length": frames}
    return shared | {"num_frames": frames, "max_sequence_length": DEFAULTS["max_sequence_length"]}


def load_pipeline(model: Path, sampler: str = "own", device: str = "cpu") -> Any:
    """The pipeline in `model` in float32, with its own sampler or (Wan) Euler at the same shift of the noise levels."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    from unicp_testbeds.components import FLOW_SHIFT

    if not (model / "model_index.json").is_file():
        raise InputError(f"the pipeline in {model}", "no model_index.json", "name a folder saved by the training")
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    if sampler == "euler":
        if not pipe.scheduler.config.get("use_flow_sigmas"):
            found = f"a {type(pipe.scheduler).__name__}, not one of flow matching"
            raise InputError("--sampler euler", found, "use the pipeline's own")
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def score_prompts(pipe: Any, prompts: int, frames: int, steps: int, seed: int = 0, batch: int = 1) -> dict[str, Any]:
    """Generates the first `prompts` held-out prompts, prints a line per clip, returns accuracies in [0, 1]."""
    right: dict[str, list[bool]] = {name: [] for name in clips.ATTRIBUTES}
    begin = time.monotonic()
    for scenes, video in generate_clips(pipe, clips.held_out_scenes()[:prompts], frames, steps, seed, batch):
        for scene, read in zip(scenes, _readings(video)):
            for name in right:
                right[name].append(read[name] == getattr(scene, name))
            wrong = [f"{name} read as {clips.ATTRIBUTES[name][read[name]]}" for name in right if not right[name][-1]]
            verdict = ", ".join(wrong) or "as asked"
            seconds = time.monotonic() - begin
            print(f"{len(right['glyph'])}/{prompts} {scene.caption}: {verdict} {seconds:.0f} s", flush=True)
    seconds = round(time.monotonic() - begin, 1)
    return {"prompts": prompts, "accuracy": accuracies(right), "seconds": seconds}


def draw_sheet(rows: Sequence[tuple[clips.Scene, Tensor]], out: Path, columns: int = 6, scale: int = 2) -> None:
    """Writes a PNG: per clip (T, H, W, 3) in [0, 1] `columns` frames, its caption, and what the classifier read."""
    height, width = (scale * size for size in rows[0][1].shape[1:3])
    gap, text_width = 6, 330
    size = (columns * (width + gap) + text_width, len(rows) * (height + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    big, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for index, (scene, clip) in enumerate(rows):
        top = gap + index * (height + gap)
        for column in range(columns):
            frame = clip[round(column * (len(clip) - 1) / (columns - 1))]
            image = Image.fromarray((frame.clamp(0, 1) * 255).round().byte().numpy())
            place = (gap + column * (width + gap), top)
            sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), place)
        left = 2 * gap + columns * (width + gap)
        middle = scene.caption.index(" on a ") + 1
        pen.text((left, top), f"{scene.caption[:middle]}\n{scene.caption[middle:]}", "black", big)
        for line, (name, value) in enumerate(_readings(clip[None])[0].items()):
            fits = value == getattr(scene, name)
            note = "" if fits else "  (not as asked)"
            text = f"{name}: {clips.ATTRIBUTES[name][value]}{note}"
            pen.text((left, top + 46 + 18 * line), text, "#1a7f37" if fits else "#c01c28", small)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        sheet.save(part, format="PNG", optimize=True)


def _readings(video: Tensor) -> list[dict[str, int]]:
    read = read_clips(video)
    return [{name: values[i] for name, values in read.items()} for i in range(len(video))]


def _print(title: str, accuracy: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items()), flush=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the classifier and measure it on held-out drawn clips")
    train.add_argument("--out", type=Path, default=folder() / WEIGHTS_FILE, help="scores go to scores.json beside it")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--steps", type=_positive, default=STEPS)
    for name, prompts, text in (
        ("generate", clips.HELD_OUT_PROMPTS, "generate held-out prompts and score them"),
        ("sheet", 12, "draw frames of generated clips beside their captions"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--model", type=Path, default=folder(), help="pipeline folder (default: the shipped one)")
        command.add_argument("--frames", type=_positive, help="default: as many as the model was trained on")
        command.add_argument("--prompts", type=int, default=prompts, choices=range(1, 65), metavar="1..64")
        command.add_argument("--steps", type=_positive, default=DEFAULTS["num_inference_steps"])
        command.add_argument("--seed", type=int, default=0, help="prompt i starts from seed + i")
        command.add_argument("--batch", type=_positive, default=1, help="prompts per call of the pipeline")
        command.add_argument("--sampler", choices=SAMPLERS, default="own")
        command.add_argument("--device", default="cpu")
        command.add_argument("--out", type=Path, default=None if name == "generate" else Path("contact_sheet.png"))
    return parser


def _train(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # sums in one order: the same weights on every run
    scorer = train_scorer(options.out, options.seed, options.steps)
    row = {**evaluate_real(scorer), "steps": options.steps, "scorer_seed": options.seed}
    row["torch"] = torch.__version__
    record_scores(options.out.parent / SCORES_FILE, "real", row)
    _print(f"{row['clips']} held-out drawn clips", row["accuracy"])


def _generate(options: argparse.Namespace) -> None:
    pipe = load_pipeline(options.model, options.sampler, options.device)
    frames = options.frames or _trained_frames(options.model)
    row = score_prompts(pipe, options.prompts, frames, options.steps, options.seed, options.batch)
    row |= {name: getattr(options, name) for name in ("steps", "seed", "batch", "device")}
    name = type(pipe.scheduler).__name__
    row |= {"frames": frames, "sampler": _SAMPLER_NAMES.get(name, name)}
    row |= {"guidance_scale": DEFAULTS["guidance_scale"], "torch": torch.__version__}
    key = f"generated/{frames}/{row['sampler']}"
    record_scores(options.out or options.model / SCORES_FILE, key, row)
    _print(key, row["accuracy"])


def _trained_frames(model: Path) -> int:
    path = model / DEFAULTS_FILE
    defaults = read_json(path) if path.is_file() else DEFAULTS
    return defaults["num_frames"]


def _sheet(options: argparse.Namespace) -> None:
    pipe = load_pipeline(options.model, options.sampler, options.device)
    scenes = clips.held_out_scenes()[: options.prompts]
    rows: list[tuple[clips.Scene, Tensor]] = []
    frames = options.frames or _trained_frames(options.model)
    for part, video in generate_clips(pipe, scenes, frames, options.steps, options.seed, options.batch):
        rows += zip(part, video)
        print(f"{len(rows)}/{len(scenes)} {part[-1].caption}", flush=True)
    draw_sheet(rows, options.out)
    print(f"wrote {options.out}")


def main(arguments: list[str] | None = None) -> None:
    """Runs one of the commands of this module; an error that a user can meet ends it with one line."""
    options = _parser().parse_args(arguments)
    try:
        {"train": _train, "generate": _generate, "sheet": _sheet}[options.command](options)
    except UniCPError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
