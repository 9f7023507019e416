"""Writes the model card beside the weights, and the defaults of the pipeline.

    python -m unicp_testbeds.model_card

It is run after training and scoring, because the card states the scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from unicp.errors import FileFormatError, run_main
from unicp.files import parse_json, read_bytes, write_text
from unicp_testbeds import clips, folder
from unicp_testbeds.card_form import DEFAULTS_FILE, ENCODER, TOKENIZER, Card, millions, sizes, stages_in_words

WEIGHTS_FILE, SCORES_FILE = "scorer.safetensors", "scores.json"
DEFAULTS: dict[str, Any] = {
    "height": clips.HEIGHT,
    "width": clips.WIDTH,
    "num_frames": clips.LONG_FRAMES,
    "guidance_scale": 4.0,
    "num_inference_steps": 30,
    "max_sequence_length": 32,
    "fps": 12,
}
TRAINING_TIME = "about three and a half hours on two CPU cores that did other work too"
_COLUMNS = (*clips.ATTRIBUTES, "all")

_ABOUT = """\
A small text-to-video model of the Wan 2.1 architecture, trained from nothing, on which UniCP is demonstrated, tested
and measured without an accelerator or a download. It is no model for making videos: it knows one small world."""

_KNOWS = """\
Clips of {width} x {height} pixels, drawn by a program, of one coloured glyph that moves over a background. The data are
synthetic, so each caption is exact by construction, and whether a generated clip shows what was asked can be counted.

- glyph: {glyph}
- colour: {colour}
- motion: {motion}
- background: {background}

Of the {total} combinations {held_out} are never trained on; all scores below are on those. The glyphs are eight simple
shapes and not handwritten digits, because a first run on two CPU cores reached colour and direction but not the
identity of digits."""

_BESIDE = f"""\
`{WEIGHTS_FILE}` is no part of the pipeline: it is the classifier that reads glyph, colour, motion and background from a
clip. It was trained on drawn clips only, never on generated ones. It must choose one of the words above for each
attribute, so a misshapen glyph counts as the one it resembles most."""

_TRAINING = """\
{time}, seeded, continued where it was stopped: {stages}. Flow matching with 10 % of the captions left out; the averaged
weights are kept, in half precision."""

_SCORES = """\
Shares of clips whose attribute the classifier read as the prompt says; "all" is all four at once.

{table}

The classifier itself, on drawn clips, with `python -m unicp_testbeds.scoring train`; the rest with
`python -m unicp_testbeds.scoring generate --frames FRAMES --steps STEPS --sampler SAMPLER`. Prompt i starts from seed
`seed + i`. All numbers, with the version of torch, are in `{scores_file}`."""

_LIMITS = """\
- One glyph, one motion, one background a clip, in the words above and the order of the captions; nothing else.
- Trained at {short} and {long} frames. Other lengths and sizes load and run, but what they show is not measured."""


def write_readme(folder: Path, card: Card) -> Path:
    """Writes `card` as the README.md of a model folder."""
    return _write(folder / "README.md", card.text())


def write_defaults(folder: Path, defaults: dict[str, Any] = DEFAULTS) -> Path:
    """Writes `unicp_defaults.json`, the default arguments of the pipeline in `folder`."""
    return _write(folder / DEFAULTS_FILE, json.dumps(defaults, indent=2) + "\n")


def write_card(folder: Path, time: str = TRAINING_TIME) -> Path:
    """Writes the glyphs' card from `scores.json` in the same folder; `time` says how long training took."""
    from unicp_testbeds import components, training

    transformer: Any = components.build_transformer()
    tokens = _tokens(clips.LONG_FRAMES, components)
    factors = f"{components.SPATIAL_FACTOR} x {components.SPATIAL_FACTOR} pixels, {components.TEMPORAL_FACTOR} frames"
    autoencoder = f"{factors} to one position of {components.LATENT_CHANNELS} channels"
    parts = (
        (
            "transformer",
            "`WanTransformer3DModel`",
            f"{sizes(transformer)}; {tokens} tokens at {clips.LONG_FRAMES} frames",
        ),
        ("autoencoder", "`AutoencoderKLWan`", f"{autoencoder}, {millions(components.build_autoencoder())}"),
        ("text encoder", "`UMT5EncoderModel`", ENCODER),
        ("tokenizer", "`PreTrainedTokenizerFast`", TOKENIZER),
        ("scheduler", "`UniPCMultistepScheduler`", f"flow prediction, shift {components.FLOW_SHIFT:g}"),
    )
    knows = _KNOWS.format(
        **DEFAULTS,
        **{name: ", ".join(values) for name, values in clips.ATTRIBUTES.items()},
        total=len(clips.all_scenes()),
        held_out=clips.HELD_OUT_PROMPTS,
    )
    table = score_table(read_scores(folder / SCORES_FILE))
    card = Card(
        title="The UniCP test-bed",
        tags="text-to-video, wan, test-bed, synthetic",
        kind="Wan",
        about=_ABOUT,
        caption=clips.held_out_scenes()[0].caption,
        defaults=DEFAULTS,
        calling=f"; {clips.SHORT_FRAMES} frames work as well, at a quarter of the tokens",
        knows=knows,
        parts=parts,
        beside=_BESIDE,
        command="python -m unicp_testbeds.training",
        training=_TRAINING.format(
            time=time[:1].upper() + time[1:],
            stages=stages_in_words(training.AUTOENCODER + training.DENOISER),
        ),
        scores=_SCORES.format(table=table, scores_file=SCORES_FILE),
        limits=_LIMITS.format(short=clips.SHORT_FRAMES, long=clips.LONG_FRAMES),
        licence="apache-2.0",
        terms="Apache-2.0, for the weights as for the code. No outside data were used.",
    )
    return write_readme(folder, card)


def read_scores(path: Path) -> dict[str, Any]:
    """The rows of `scores.json`; empty if there is no such file."""
    if not path.exists():
        return {}
    rows = parse_json(read_bytes(path), f"scores in {path}", "remove it and score again")
    if not isinstance(rows, dict):
        raise FileFormatError(f"scores in {path}", f"a JSON {type(rows).__name__}", "remove it and score again")
    return rows


def record_scores(path: Path, key: str, row: dict[str, Any]) -> None:
    """Sets one row of the JSON file `path`, atomically."""
    _write(path, json.dumps({**read_scores(path), key: row}, indent=2, sort_keys=True) + "\n")


def _tokens(frames: int, components: Any) -> int:
    # The transformer takes 2x2 latent positions as one token.
    latents = (frames - 1) // components.TEMPORAL_FACTOR + 1
    return latents * (clips.HEIGHT // components.SPATIAL_FACTOR // 2) * (clips.WIDTH // components.SPATIAL_FACTOR // 2)


def score_table(scores: dict[str, Any]) -> str:
    """The rows that `scoring` recorded for a model of glyphs, as Markdown."""
    lines = [
        f"| clips | frames | sampler, steps | {' | '.join(_COLUMNS)} |",
        "|---|---|---|" + "---|" * len(_COLUMNS),
    ]
    for key, row in sorted(scores.items(), key=lambda item: (item[0] != "real", item[0])):
        kind, frames, sampler = f"{row.get('clips')} drawn", "9 and 41", "-"
        if key != "real":
            kind, frames = f"{row['prompts']} generated", str(row["frames"])
            sampler = f"{row['sampler']}, {row['steps']}"
        values = " | ".join(f"{100 * row['accuracy'][name]:.1f} %" for name in _COLUMNS)
        lines.append(f"| {kind} | {frames} | {sampler} | {values} |")
    return "\n".join(lines) if scores else "Not scored yet."


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Writes the model card and the defaults into a folder of weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=folder(), help="default: the weights shipped with the package")
    parser.add_argument("--time", default=TRAINING_TIME, help="how long training took, in words")
    options = parser.parse_args(arguments)
    print(f"wrote {write_card(options.folder, options.time)} and {write_defaults(options.folder)}")


if __name__ == "__main__":
    run_main(main)
