"""`Execution`: the short cuts of the loop, and when each is expected to pay; answers are the same without them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .validation import flag, real

# Reading a layer's weights takes as long as the arithmetic of so many tokens: measured on a few CPU cores.
WEIGHTS_IN_TOKENS = {"cpu": 12}
WEIGHTS_IN_TOKENS_ELSEWHERE = 1024  # an estimate for accelerators
WELL_FED = 20  # with 20 times as many tokens, reading the weights is a twentieth of the work
MOST_TOKENS = {"cpu": 2048}  # beyond them activations no longer fit the caches, and every token costs more
FIRST_POSITION_COST = 2  # a position run on its own costs as much as so many positions of a whole row
DROP_SHARE = 0.02  # copying a row costs about one fiftieth of running a layer for it


@dataclass(frozen=True)
class Execution:
    """The short cuts of the loop; each may be switched off to see what it is worth.

    Args:
        token_first: the positions that exits read are run before the others, where rows may exit.
        drop_rows: rows that have exited are no longer computed.
        trim: nor is padding beyond the longest remaining row.
        fused: ALBERT's activation as one operation instead of eight, in training as well; equal to rounding.
        compiled: layers run as `torch.compile` translates them, at the first calls; a handful of translations serves
            all depths and lengths. Batches of several depths run as written.
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
        """Whether running one token first is expected to pay, when `leaving` of `rows` are expected to exit here.

        Each row that exits saves its other positions. If any remains, the layer's weights are read a second time, and
        each remaining row has had its first position run for nothing.
        """
        if not (self.token_first and self.drop_rows) or leaving <= 0:
            return False
        remaining = rows - leaving
        return leaving * (length - 1) > self.weights(device) * remaining / rows + FIRST_POSITION_COST * remaining

    def feeds(self, tokens: int, device: str) -> bool:
        """Whether more tokens than these would not use a layer's weights noticeably better."""
        return tokens >= WELL_FED * self.weights(device)

    def room(self, length: int, device: str) -> int:
        """The most rows of `length` tokens that are best run through a layer at once."""
        return max(1, MOST_TOKENS[device] // length) if device in MOST_TOKENS else sys.maxsize

    def weights(self, device: str) -> float:
        """How many tokens' arithmetic takes as long as reading a layer's weights."""
        known = self.weights_in_tokens
        return WEIGHTS_IN_TOKENS.get(device, WEIGHTS_IN_TOKENS_ELSEWHERE) if known is None else known

    def drops(self, exited: int, rows: int) -> bool:
        """Whether it pays to copy the remaining rows into a batch of their own."""
        return self.drop_rows and exited >= DROP_SHARE * rows
