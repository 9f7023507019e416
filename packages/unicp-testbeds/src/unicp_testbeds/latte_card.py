"""The model card of the second test-bed.

    python -m unicp_testbeds.latte_card build/latte/pipeline

It is run after training and scoring (`unicp_testbeds.scoring generate --model FOLDER`), whose scores it states.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unicp.errors import run_main
from unicp_testbeds import clips, latte
from unicp_testbeds.card_form import ENCODER, TOKENIZER, Card, millions, sizes, stages_in_words
from unicp_testbeds.model_card import SCORES_FILE, read_scores, score_table, write_readme

_ABOUT = """\
A small text-to-video model of the Latte architecture, trained from nothing on the clips of the first test-bed, on which
UniCP is measured without an accelerator: its attention is factorised into space and time, it predicts noise, and both
branches of guidance go through it in one batch. It is no model for making videos: it knows one small world."""

_KNOWS = """\
Clips of {width} x {height} pixels and {num_frames} frames, drawn by a program, of one coloured glyph that moves over a
background; words and held-out combinations are those of the first test-bed (`unicp_testbeds.clips`). The data are
synthetic, so each caption is exact by construction, and whether a generated clip shows what was asked can be counted.

{words}"""

_BESIDE = "The classifier that reads clips is that of the first test-bed."

_TRAINING = """\
About three hours on one CPU core, seeded, continued where it was stopped: {stages}. A velocity is
predicted, with 10 % of the captions left out, where Latte's own checkpoints predict the noise: so small a model learnt
colours and backgrounds that way and hardly shape and motion. The averaged weights are kept, in half precision. The half
of the output that Latte keeps for the variance is never trained; its pipeline drops it."""

_SCORES = """\
Shares of clips whose attribute the classifier read as the prompt says; "all" is all four at once.

{table}

Made with `python -m unicp_testbeds.scoring generate --model FOLDER`; prompt i starts from seed `seed + i`. All numbers,
with the version of torch, are in `{scores_file}`."""

_LIMITS = """\
- One glyph, one motion, one background a clip, in the words above and the order of the captions; nothing else.
- Its glyphs are rough and change while they move; half of them are read as another than was asked. Colours, motions
  and backgrounds are learnt.
- Trained at {num_frames} frames, the only length that its temporal positions know."""


def write_card(folder: Path) -> Path:
    """Writes the model card README.md from `scores.json` in the same folder."""
    transformer = latte.build_transformer()
    tokens = latte.FRAMES * (clips.HEIGHT // 8) * (clips.WIDTH // 8)
    blocks = f"{sizes(transformer)}, each block once in space and once in time; {tokens:,} tokens"
    autoencoder = f"single frames, 4 x 4 pixels to one position of {latte.LATENT_CHANNELS} channels"
    words = "\n".join(f"- {name}: {', '.join(values)}" for name, values in clips.ATTRIBUTES.items())
    card = Card(
        title="The Latte test-bed of UniCP",
        tags="text-to-video, latte, test-bed, synthetic",
        kind="Latte",
        about=_ABOUT,
        caption=clips.held_out_scenes()[0].caption,
        defaults=latte.DEFAULTS,
        calling="",
        knows=_KNOWS.format(**latte.DEFAULTS, words=words),
        parts=(
            ("transformer", "`LatteTransformer3DModel`", blocks),
            ("autoencoder", "`AutoencoderKL`", f"{autoencoder}, {millions(latte.build_autoencoder())}"),
            ("text encoder", "`T5EncoderModel`", ENCODER),
            ("tokenizer", "`PreTrainedTokenizerFast`", TOKENIZER),
            ("scheduler", "`DDIMScheduler`", "velocity prediction, linear variances"),
        ),
        beside=_BESIDE,
        command="python -m unicp_testbeds.latte",
        training=_TRAINING.format(stages=stages_in_words(latte.AUTOENCODER + latte.DENOISER)),
        scores=_SCORES.format(table=score_table(read_scores(folder / SCORES_FILE)), scores_file=SCORES_FILE),
        limits=_LIMITS.format(**latte.DEFAULTS),
        licence="apache-2.0",
        terms="Apache-2.0, for the weights as for the code. No outside data were used.",
        frames_argument="video_length",
    )
    return write_readme(folder, card)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the saved pipeline")
    print(f"wrote {write_card(parser.parse_args(arguments).folder)}")


if __name__ == "__main__":
    run_main(main)
