"""Scores the film test-bed: how its autoencoder reconstructs unseen shots, and whether clips fit their captions.

    python -m unicp_testbeds.film_scoring build/film/pipeline         # 52 clips, and those of the test shots

`film_data.describe` measures light, colour and motion of a clip, as for the captions. The scores go to `scores.json` in
the folder and from there into the model card.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unicp.errors import UniCPError, run_main
from unicp_testbeds import film_card
from unicp_testbeds.film import DEFAULTS, pixels
from unicp_testbeds.film_data import ATTRIBUTES, Clips, attributes_of, describe, load_clips, prompts
from unicp_testbeds.model_card import SCORES_FILE, record_scores
from unicp_testbeds.scorer import accuracies
from unicp_testbeds.scoring import load_pipeline


def count_clips(clips: Clips) -> dict[str, int]:
    """Numbers of clips, shots and combinations for training, and of those for tests."""
    captions = {text for text, is_test in zip(clips.captions, clips.is_test) if not is_test}
    return {
        "training_clips": int((~clips.is_test).sum()),
        "test_clips": int(clips.is_test.sum()),
        "training_shots": len(set(clips.shot[~clips.is_test].tolist())),
        "test_shots": len(set(clips.shot[clips.is_test].tolist())),
        "combinations": len(captions),
    }


def score_reconstruction(autoencoder: Any, clips: Clips) -> dict[str, Any]:
    """PSNR of the test clips after encoding and decoding, and how often they still fit their captions."""
    values: list[float] = []
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    captions = [text for text, is_test in zip(clips.captions, clips.is_test) if is_test]
    for frames, text in zip(torch.from_numpy(clips.frames[clips.is_test]), captions):
        with torch.no_grad():
            restored = autoencoder.decode(autoencoder.encode(pixels(frames[None])).latent_dist.mean).sample
        clip = (restored[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1)
        values.append(-10 * math.log10(max(1e-10, float((clip - frames / 255).square().mean()))))
        _compare(clip, text, right)
    values.sort()
    worst = values[: math.ceil(len(values) / 10)]
    psnr = {"mean": round(sum(values) / len(values), 2), "worst_tenth": round(sum(worst) / len(worst), 2)}
    return {"clips": len(values), "psnr": psnr, "accuracy": accuracies(right)}


def generate_clips(
    pipe: Any, texts: Sequence[str], steps: int, guidance: float, seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yields (caption, clip (T, H, W, 3) float32 in [0, 1]); caption i starts from noise of seed `seed` + i."""
    for index, text in enumerate(texts):
        video = pipe(
            prompt=text,
            height=DEFAULTS["height"],
            width=DEFAULTS["width"],
            num_frames=DEFAULTS["num_frames"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=DEFAULTS["max_sequence_length"],
            generator=torch.Generator().manual_seed(seed + index),
            output_type="np",
        ).frames
        yield text, torch.as_tensor(video[0]).float()


def score_prompts(pipe: Any, texts: Sequence[str], steps: int, guidance: float, seed: int = 0) -> dict[str, Any]:
    """Generates a clip for each caption, prints a line for each, and returns the shares that fit."""
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    begin = time.monotonic()
    for index, (text, clip) in enumerate(generate_clips(pipe, texts, steps, guidance, seed)):
        found = _compare(clip, text, right)
        wrong = [f"{name} measured as {ATTRIBUTES[name][found[name]]}" for name in right if not right[name][-1]]
        verdict, seconds = ", ".join(wrong) or "as asked", time.monotonic() - begin
        print(f"{index + 1}/{len(texts)} {text}: {verdict} {seconds:.0f} s", flush=True)
    seconds = round(time.monotonic() - begin, 1)
    return {"clips": len(texts), "accuracy": accuracies(right), "seconds": seconds}


def chosen_prompts(clips: Clips, count: int) -> list[str]:
    """`count` captions that occur in training, in the order of `film_data.prompts`, over and over."""
    known = prompts({text for text, is_test in zip(clips.captions, clips.is_test) if not is_test})
    return [known[i % len(known)] for i in range(count)]


def _compare(clip: Tensor, text: str, right: dict[str, list[bool]]) -> dict[str, int]:
    """Notes for each attribute whether the clip fits the caption; returns what was measured."""
    found, asked = describe(clip), attributes_of(text)
    for name, values in right.items():
        values.append(found[name] == asked[name])
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the saved pipeline")
    parser.add_argument("--clips", type=Path, help="default: clips.npz beside the folder")
    parser.add_argument("--prompts", type=_positive, default=52, help="how many clips are generated")
    parser.add_argument("--steps", type=_positive, default=DEFAULTS["num_inference_steps"])
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance_scale"])
    parser.add_argument("--seed", type=int, default=0, help="clip i starts from seed + i")
    options = parser.parse_args(arguments)
    scores = options.folder / SCORES_FILE
    try:
        pipe = load_pipeline(options.folder)
        clips = load_clips(options.clips or options.folder.parent / "clips.npz")
        record_scores(scores, "data", count_clips(clips))
        row = score_reconstruction(pipe.vae, clips)
        record_scores(scores, "reconstruction", {**row, "torch": torch.__version__})
        print(f"reconstruction: PSNR {row['psnr']}, {row['accuracy']}", flush=True)
        texts = chosen_prompts(clips, options.prompts)
        row = score_prompts(pipe, texts, options.steps, options.guidance, options.seed)
        row |= {"steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
        record_scores(scores, f"generated/{options.steps}", {**row, "torch": torch.__version__})
        print(f"generated: {row['accuracy']}; wrote {film_card.write_card(options.folder)}")
    except UniCPError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    run_main(main)
