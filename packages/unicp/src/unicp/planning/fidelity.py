"""From the loss that is predicted for a run to the PSNR that comes out, with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from unicp.files import Decibels

ONE_SIDED = 1.645  # 95 % of a normal distribution lie above its mean minus this many standard deviations
# What the test-beds tell of a model that nobody tried: psnr = -20 log10(loss) + offset, and how far apart clips of one
# model lie. Rounded: `make schedules` finds offsets of 14 and 24 dB by other models' products, and the trials of the
# shipped profiles deviate by 3.4 to 6.5 dB over prompts.
OFFSET, OFFSET_SPREAD, CLIP_SPREAD = 19.0, 5.0, 4.5
# So many trials would tell the spread as well as the test-beds do.
PRIOR_TRIALS = 4


@dataclass(frozen=True)
class Psnr:
    """Predicted PSNR of a clip in dB.

    Attributes:
        mean: Of clips.
        low: 95 % of clips are above.
        high: 95 % of clips are below.
    """

    mean: Decibels
    low: Decibels
    high: Decibels


@dataclass(frozen=True)
class FidelityLine:
    """psnr = offset - 20 log10(loss) +- margin, a normal distribution over clips.

    Attributes:
        offset: In dB.
        margin: dB between the mean and either bound.
    """

    offset: float
    margin: float

    def psnr(self, loss: float) -> Psnr:
        """The PSNR of a clip with this predicted loss."""
        if loss <= 0:
            return Psnr(math.inf, math.inf, math.inf)
        mean = self.offset - 20 * math.log10(loss)
        return Psnr(mean, mean - self.margin, mean + self.margin)

    def loss(self, psnr: float) -> float:
        """The largest predicted loss with which 95 % of clips reach this PSNR."""
        return 10 ** ((self.offset - self.margin - psnr) / 20)


UNTRIED = FidelityLine(OFFSET, ONE_SIDED * math.hypot(OFFSET_SPREAD, CLIP_SPREAD))


def fit_line(trials: Sequence[tuple[str, float, float]]) -> FidelityLine:
    """The line of a model by its trials, with what the test-beds tell where they are few.

    Losses add up in proportion, so the slope is 1 and there is an offset to be found. Trials of one prompt are hardly
    more than one: clips differ more than schedules do.

    Args:
        trials: (prompt, predicted loss, PSNR) each; those equal to the plain clip, or without a loss, tell nothing.

    Returns:
        The line; `UNTRIED` without trials.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt, loss, psnr in trials:
        if loss > 0 and math.isfinite(psnr):
            by_prompt.setdefault(prompt, []).append(psnr + 20 * math.log10(loss))
    if not by_prompt:
        return UNTRIED
    offsets = [statistics.fmean(found) for found in by_prompt.values()]
    offset, count = statistics.fmean(offsets), len(offsets)
    inner = [one - statistics.fmean(found) for found in by_prompt.values() for one in found]
    # Variance over prompts with the test-beds' as so many more, plus that of one prompt's own trials about their mean.
    square = math.fsum((one - offset) ** 2 for one in offsets) + PRIOR_TRIALS * CLIP_SPREAD**2
    own = math.fsum(one * one for one in inner) / max(1, len(inner) - count)
    spread = math.sqrt((square / (count - 1 + PRIOR_TRIALS) + own) * (1 + 1 / count))
    return FidelityLine(offset, ONE_SIDED * spread)
