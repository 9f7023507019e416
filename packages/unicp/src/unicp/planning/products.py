"""What plain runs recorded of how the model's estimates change along a run: mean products between noise levels.

A skipped output is a sum of other outputs, so its squared error is a quadratic form in their mean products. Any output
is a sum of the noise estimate and the clean estimate, with parts that its noise level and kind decide. So products of
these two, kept by log-SNR, tell the error of any forecast of any kind of model at the noise levels of any sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unicp.errors import FileFormatError
from unicp.files import Finite
from unicp.numerics.noise_levels import LOG_SNR_LIMIT, NoiseLevel, estimate_parts
from unicp.numerics.polynomials import lagrange_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Recorded levels that are interpolated: a cubic is the least polynomial whose second derivative is no constant.
NEAREST = 4


@dataclass(frozen=True)
class Products:
    """Mean products of estimates at noise levels, over values of a sample and over plain runs.

    Attributes:
        places: The log-SNR of each level, rising. The first may be -20, noise alone.
        table: Lower triangle of the matrix of mean products, row by row; first noise estimates, then clean ones.

    Raises:
        FileFormatError: The parts do not fit together.
    """

    places: list[Finite]
    table: list[list[Finite]]

    def __post_init__(self) -> None:
        if len(self.places) < NEAREST + 1 or any(b <= a for a, b in zip(self.places, self.places[1:])):
            raise FileFormatError("recorded products", "noise levels that do not fall", "calibrate again")
        if [len(row) for row in self.table] != list(range(1, 2 * len(self.places) + 1)):
            raise FileFormatError("recorded products", "a table of another size", "calibrate again")

    @classmethod
    def of(cls, matrix: NDArray[np.float64], places: Sequence[float], digits: int = 8) -> Products:
        """From the whole matrix, (2 N, 2 N), symmetric. digits: significant ones that are kept."""
        rows = [[float(f"{matrix[i, j]:.{digits}g}") for j in range(i + 1)] for i in range(2 * len(places))]
        return cls([float(place) for place in places], rows)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The whole matrix, (2 N, 2 N)."""
        return whole_matrix(self.table)

    def at(self, places: Sequence[float]) -> NDArray[np.float64]:
        """The matrix among other places, (2 M, 2 M); beyond the recorded ones those are taken."""
        import numpy as np

        rows = np.zeros((len(places), len(self.places)))
        for row, place in zip(rows, places):
            for at, weight in _weights(self.places, place).items():
                row[at] = weight
        both = np.kron(np.eye(2), rows)
        return both @ self.matrix @ both.T

    def outputs(self, prediction: str, levels: Sequence[NoiseLevel]) -> NDArray[np.float64]:
        """Mean products of a model's outputs at these levels, (M, M). prediction: what its output is, as "flow"."""
        import numpy as np

        steps = range(len(levels))
        parts = np.zeros((len(levels), 2 * len(levels)))
        for step, level in zip(steps, levels):
            parts[step, step], parts[step, len(levels) + step] = estimate_parts(prediction, level)
        return parts @ self.at([level.log_snr for level in levels]) @ parts.T


def whole_matrix(triangle: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The symmetric matrix of a lower triangle, row by row."""
    import numpy as np

    matrix = np.zeros((len(triangle), len(triangle)))
    for i, row in enumerate(triangle):
        matrix[i, : i + 1] = matrix[: i + 1, i] = row
    return matrix


def _weights(places: Sequence[float], place: float) -> dict[int, float]:
    """The recorded places that stand for one, by number, and how much each counts."""
    # Noise alone lies so far from all others on this axis that nothing may be interpolated with it.
    is_noise = places[0] <= -LOG_SNR_LIMIT
    if is_noise and place <= -LOG_SNR_LIMIT:
        return {0: 1.0}
    inner = range(1 if is_noise else 0, len(places))
    place = min(max(place, places[inner[0]]), places[-1])
    near = sorted(sorted(inner, key=lambda at: abs(places[at] - place))[:NEAREST])
    return dict(zip(near, lagrange_weights([places[at] for at in near], place)))
