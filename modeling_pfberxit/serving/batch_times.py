"""What a batch takes: a line of padded tokens and their squares for each layer, and for all that is not a layer.

Fitted to the clock's measurements (`evaluation.clock`), so that rows may leave one by one: each layer is counted for
the rows that are still there, padded to the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from ..evaluation.clock import Clock
from ..model.validation import refuse

Line = tuple[float, float, float]  # seconds of a call, of a token in it, of a token that looks at another


@dataclass(frozen=True)
class BatchTimes:
    """Seconds of a batch.

    Args:
        layer: of every layer that runs.
        fixed: of everything else, once.
    """

    layer: Line
    fixed: Line = (0.0, 0.0, 0.0)

    def seconds(self, lengths: np.ndarray, layers: np.ndarray) -> float:
        """What a batch of rows takes that have so many tokens (B,) and leave after so many layers (B,)."""
        total = at(self.fixed, len(lengths), int(lengths.max()))
        for depth in range(1, int(layers.max()) + 1):
            remaining = lengths[layers >= depth]
            total += at(self.layer, len(remaining), int(remaining.max()))
        return total


def at(line: Line, rows: int, length: int) -> float:
    """A line's value for so many rows of so many tokens."""
    return line[0] + rows * length * (line[1] + line[2] * length)


def fitted(clock: Clock) -> BatchTimes:
    """The lines nearest to what was measured, relative to it; none of their parts is below 0.

    Raises:
        ValueError: fewer than three pairs of a batch size and a length.
    """
    if len(clock.lines) < 3:
        refuse("clock", sorted(clock.lines), "measured at three pairs of a batch size and a length at least")
    shapes = np.array([[1.0, rows * length, rows * length**2] for rows, length in clock.lines])
    measured = np.array([[rows * part / 1000 for part in line] for (rows, _), line in clock.lines.items()])
    fixed, layer = measured.clip(1e-7).T  # where a line crossed 0, its part was too short to be seen
    return BatchTimes(line_of(shapes, layer), line_of(shapes, fixed))


def line_of(shapes: np.ndarray, seconds: np.ndarray) -> Line:
    """The least squares of the relative errors, shapes (N, 3) and seconds (N,)."""
    scale = shapes.max(0)
    parts = nnls(shapes / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale
    return float(parts[0]), float(parts[1]), float(parts[2])
