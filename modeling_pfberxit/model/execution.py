"""How a model is run: which short cuts it takes, and when they pay. None of them changes an answer."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .validation import flag, real

# For about as many tokens, reading a layer's weights takes as long as using them, on a few CPU cores. Accelerators have
# to be fed a thousand; that is an estimate.
WEIGHTS_IN_TOKENS = {"cpu": 12}
FED_IN_TOKENS = 1024
WELL_FED = 20  # times that many tokens: reading the weights is a twentieth of the work then
# More tokens than these at once no longer fit a CPU's caches, and every one of them costs more.
MOST_TOKENS = {"cpu": 2048}
ALONE = 2  # positions of a whole row that one on its own costs as much as
DROP_SHARE = 0.02  # copying a row costs about one fiftieth of running a layer for it


@dataclass(frozen=True)
class Execution:
    """The short cuts of the loop; each may be switched off to see what it is worth.

    Args:
        token_first: exits that read one token have it run before the others, where a row may leave.
        drop_rows: rows that have left are no longer computed.
        trim: nor is padding beyond the longest row left.
        fused: ALBERT's activation as one operation instead of eight, in training as well; equal to rounding.
        compiled: layers run as `torch.compile` translates them, at the first calls; a handful of translations serves
            all depths and lengths. Batches whose rows stand at several depths run as written.
        weights_in_tokens: how many tokens' arithmetic takes as long as reading a layer's weights; None: by device.

    Raises:
        ValueError: a switch that is no bool, a number below 0.
    """

    token_first: bool = True
    drop_rows: bool = True
    trim: bool = True
    fused: bool = True
    compiled: bool = False
    weights_in_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("token_first", "drop_rows", "trim", "fused", "compiled"):
            flag(name, getattr(self, name))
        if self.weights_in_tokens is not None:
            real(0.0)("weights_in_tokens", self.weights_in_tokens)

    def splits(self, leaving: float, rows: int, length: int, device: str) -> bool:
        """Whether running one token first is expected to pay, when so many of the rows are expected to leave.

        Each row that leaves saves its other positions. If any stays, the layer's weights are read a second time, and
        each of those that stay has had its first position run for nothing.
        """
        if not (self.token_first and self.drop_rows) or leaving <= 0:
            return False
        return leaving * (length - 1) > self.weights(device) * (1 - leaving / rows) + ALONE * (rows - leaving)

    def feeds(self, tokens: int, device: str) -> bool:
        """Whether so many tokens use a layer's weights about as well as any number would."""
        return tokens >= WELL_FED * self.weights(device)

    def room(self, length: int, device: str) -> int:
        """How many rows of so many tokens are best run through a layer at once, at most."""
        return max(1, MOST_TOKENS[device] // length) if device in MOST_TOKENS else sys.maxsize

    def weights(self, device: str) -> float:
        """How many tokens' arithmetic takes as long as reading a layer's weights."""
        known = self.weights_in_tokens
        return WEIGHTS_IN_TOKENS.get(device, FED_IN_TOKENS) if known is None else known

    def drops(self, done: int, rows: int) -> bool:
        """Whether it pays to take the rows that are done out of their batch."""
        return self.drop_rows and done >= DROP_SHARE * rows
