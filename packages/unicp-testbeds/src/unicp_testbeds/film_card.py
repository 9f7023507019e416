"""The model card of the third test-bed.

    python -m unicp_testbeds.film_card build/film/pipeline

`film_scoring` writes it too, because the card states the scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unicp.errors import run_main
from unicp_testbeds import film, film_data
from unicp_testbeds.card_form import ENCODER, TOKENIZER, Card, millions, sizes, stages_in_words
from unicp_testbeds.model_card import SCORES_FILE, read_scores, write_readme

_ABOUT = """\
A small text-to-video model of the CogVideoX architecture, trained from nothing on one film, on which UniCP is measured
without an accelerator: text and video share one attention, and the pictures are real ones. It is no model for making
videos: it knows the look of one film, and three things that can be asked of it."""

_KNOWS = """\
Clips of {width} x {height} pixels, {num_frames} frames at {fps} a second, cut from Big Buck Bunny, (c) 2008 Blender
Foundation, www.bigbuckbunny.org, licence CC BY 3.0. The captions are ours. They say what is measured from the pixels of
each clip, so that a generated clip can be measured in the same way:

- light: {light} (mean brightness)
- colour: {colour} (hue of the mean pixel)
- motion: {motion} (change between neighbouring frames)

Shots, not clips, are divided between training and test, as clips of one shot look alike. {counts}"""

_COUNTS = """\
Training
saw {training_clips} clips of {training_shots} shots, in {combinations} of the {all} combinations; {test_clips} clips
of {test_shots} shots were kept for tests."""

_BESIDE = """\
The clips are no part of this folder; `python -m unicp_testbeds.film_data` fetches the film and makes them."""

_TRAINING = """\
About four and a half hours on one CPU core that did other work too, seeded, continued where it was stopped:
{stages}. Velocity prediction
with 10 % of the captions left out and half of the clips mirrored; the averaged weights are kept, in half precision."""

_SCORES = """\
Shares of clips whose light, colour and motion are measured as the caption says; "all" is all three at once. Real clips
of the test shots went once through the autoencoder: their shares are the most that a generated clip can be expected to
reach. Generated ones are of captions that occur in training, from seeds of their own.

{table}

{psnr}Made with `python -m unicp_testbeds.film_scoring FOLDER`; all numbers are in `{scores_file}`."""

_LIMITS = """\
- Captions in the words above and their order; nothing else is understood. The measures have hard bounds, so a clip near
  one counts as right or wrong by little, and they say nothing about what is to be seen.
- Trained on few shots: what it generates resembles them.
- Motion is weak. The autoencoder smooths it away, also from real clips, and most generated ones are measured as slower
  than asked.
- Trained at {num_frames} frames and this size. Others load and run, but what they show is not measured."""

_TERMS = """\
The weights are made from Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, under the Creative Commons
Attribution 3.0 licence (https://creativecommons.org/licenses/by/3.0/); the film was cut into clips, cropped and shrunk.
Who passes the weights on names the film as above. The captions and the code are ours, Apache-2.0."""


def write_card(folder: Path) -> Path:
    """Writes the model card README.md from `scores.json` in the same folder."""
    transformer = film.build_transformer()
    tokens = film.latent_frames(film_data.FRAMES) * film.GRID[0] * film.GRID[1]
    blocks = f"{sizes(transformer)}; {tokens:,} tokens at {film_data.FRAMES} frames, and those of the text"
    factors = f"{film.SPATIAL_FACTOR} x {film.SPATIAL_FACTOR} pixels, {film.TEMPORAL_FACTOR} frames"
    autoencoder = f"{factors} to one position of {film.LATENT_CHANNELS} channels, {millions(film.build_autoencoder())}"
    scores = read_scores(folder / SCORES_FILE)
    words = {name: ", ".join(values) for name, values in film_data.ATTRIBUTES.items()}
    counts = _COUNTS.format(**scores["data"], all=len(film_data.prompts())) if "data" in scores else ""
    card = Card(
        title="The film test-bed of UniCP",
        tags="text-to-video, cogvideox, test-bed",
        kind="CogVideoX",
        about=_ABOUT,
        caption="a bright green scene with slow motion",
        defaults=film.DEFAULTS,
        calling="",
        knows=_KNOWS.format(**film.DEFAULTS, **words, counts=counts),
        parts=(
            ("transformer", "`CogVideoXTransformer3DModel`", blocks),
            ("autoencoder", "`AutoencoderKLCogVideoX`", autoencoder),
            ("text encoder", "`T5EncoderModel`", ENCODER),
            ("tokenizer", "`PreTrainedTokenizerFast`", TOKENIZER),
            ("scheduler", "`CogVideoXDDIMScheduler`", "velocity prediction, no signal at the first step"),
        ),
        beside=_BESIDE,
        command="python -m unicp_testbeds.film",
        training=_TRAINING.format(stages=stages_in_words(film.AUTOENCODER + film.DENOISER)),
        scores=_scores(scores),
        limits=_LIMITS.format(**film.DEFAULTS),
        licence="cc-by-3.0",
        terms=_TERMS,
    )
    return write_readme(folder, card)


def _scores(scores: dict[str, Any]) -> str:
    """The table and the autoencoder's PSNR."""
    columns = (*film_data.ATTRIBUTES, "all")
    lines = [f"| clips | steps | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    psnr = ""
    for key, row in sorted(scores.items(), key=lambda item: (item[0] != "reconstruction", item[0])):
        if key == "data":
            continue
        kind = f"{row['clips']} generated | {row.get('steps')}"
        if key == "reconstruction":
            kind = f"{row['clips']} real, through the autoencoder | -"
            mean, worst = row["psnr"]["mean"], row["psnr"]["worst_tenth"]
            psnr = f"The autoencoder gives them back with {mean:.1f} dB PSNR, the worst tenth with {worst:.1f} dB. "
        shares = " | ".join(f"{100 * row['accuracy'][name]:.1f} %" for name in columns)
        lines.append(f"| {kind} | {shares} |")
    if len(lines) == 2:
        return "Not scored yet."
    return _SCORES.format(table="\n".join(lines), psnr=psnr, scores_file=SCORES_FILE)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the saved pipeline")
    print(f"wrote {write_card(parser.parse_args(arguments).folder)}")


if __name__ == "__main__":
    run_main(main)
