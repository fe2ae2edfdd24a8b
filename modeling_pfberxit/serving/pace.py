"""How fast batches have lately run: what a batch will take, and when a full queue will have room again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MEMORY = 0.9  # what the past weighs against the last batch
LONGEST_RETRY = 60  # seconds


@dataclass
class Pace:
    """Running means over batches.

    Args:
        unit: seconds that one layer takes for one token, padding included; 0 before the first batch.
        row: seconds that one row takes.
    """

    unit: float = 0.0
    row: float = 0.0

    def saw(self, seconds: float, rows: int, longest: int, layers: Sequence[int]) -> None:
        """Learn from a batch: its rows, the longest's tokens, and the layers that each row ran."""
        work = longest * sum(layers)
        self.unit = mixed(self.unit, seconds / max(work, 1))
        self.row = mixed(self.row, seconds / rows)

    def seconds(self, tokens: int, layers: float) -> float:
        """What so many tokens through so many layers will probably take."""
        return self.unit * tokens * layers

    def retry_after(self, rows: int) -> int:
        """Whole seconds until so many rows will have run: at least one, at most a minute."""
        return min(LONGEST_RETRY, max(1, math.ceil(self.row * rows)))


def mixed(before: float, now: float) -> float:
    """The running mean with one value more; the first is taken as it is."""
    return MEMORY * before + (1 - MEMORY) * now if before else now
