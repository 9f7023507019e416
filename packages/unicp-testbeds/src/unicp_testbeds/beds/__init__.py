"""Small test-beds on which nothing of UniCP is tuned: each is left out in turn, and the others tell what to choose.

    python -m unicp_testbeds.beds ripples --out build/ripples       # at most 40 minutes on two cores

They differ in what a cache must not depend on: architecture, kind of prediction, sampler, guidance, length, content.
Each is a pipeline of diffusers' own class with a trained transformer of about 2 million parameters, frozen text
encoders, and a linear autoencoder.

Read `worlds` (what they show), `autoencoder`, `bed` (what a bed is), one of `definitions`, then `training`.
"""

from __future__ import annotations

# ripples: LTXPipeline. letters: HunyuanVideoPipeline. bunny: WanPipeline. stickers: StableDiffusion3Pipeline.
# hills: PixArtAlphaPipeline. chimes: StableAudioPipeline.
NAMES = ("ripples", "letters", "bunny", "stickers", "hills", "chimes")
