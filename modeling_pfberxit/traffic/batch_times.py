"""What a batch takes: a line of padded tokens and their squares for each layer, and for all that is not a layer.

Fitted to batches that were run as a server runs them, exits and all: each layer is counted for the rows that are still
there, padded to the longest of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from ..model.persistence import replacing
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
        calls = calls_of(lengths, layers)
        return at(self.fixed, *calls[0]) + sum(at(self.layer, *call) for call in calls[1:])


def calls_of(lengths: np.ndarray, layers: np.ndarray) -> list[tuple[int, int]]:
    """Rows and tokens of the longest: of all that is not a layer, and of every layer that runs."""
    remaining = (lengths[layers >= depth] for depth in range(1, int(layers.max()) + 1))
    return [(len(each), int(each.max())) for each in (lengths, *remaining)]


def at(line: Line, rows: int, length: int) -> float:
    """A line's value for so many rows of so many tokens."""
    return line[0] + rows * length * (line[1] + line[2] * length)


class Timed(NamedTuple):
    """A batch that was run: tokens of its rows (B,), layers after which they left (B,), and the seconds it took."""

    lengths: np.ndarray
    layers: np.ndarray
    seconds: float


def fitted(batches: Sequence[Timed]) -> BatchTimes:
    """The lines nearest to what was measured, relative to it; none of their parts is below 0.

    Raises:
        ValueError: fewer batches than the six parts of two lines.
    """
    if len(batches) < 6:
        refuse("batches", len(batches), "six at least, of several sizes, lengths and depths")
    seconds = np.array([batch.seconds for batch in batches])
    calls = [calls_of(batch.lengths, batch.layers) for batch in batches]
    shapes = np.array([[*shape(*first), *np.sum([shape(*each) for each in rest], 0)] for first, *rest in calls])
    scale = shapes.max(0)
    found = nnls(shapes / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale
    return BatchTimes(tuple(found[3:].tolist()), tuple(found[:3].tolist()))


def shape(rows: int, length: int) -> tuple[int, int, int]:
    """What a line's parts are multiplied with: a call, its tokens with padding, its pairs of tokens."""
    return 1, rows * length, rows * length**2


# ---- files -----------------------------------------------------------------------------------------------------------


def save_times(times: BatchTimes, path: str | Path, about: Mapping[str, Any]) -> None:
    """Write what batches take, with what it was measured on, in one move."""
    with replacing(Path(path)) as draft:
        draft.write_text(json.dumps({**asdict(times), **about}, indent=1) + "\n", encoding="utf-8")


def load_times(path: str | Path) -> BatchTimes:
    """Read it back.

    Raises:
        OSError: no such file, or another kind.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return BatchTimes(tuple(found["layer"]), tuple(found["fixed"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise OSError(f"{path}: truncated, or not what batches take ({error}).") from error
