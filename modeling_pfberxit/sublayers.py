"""The two halves of an encoder layer, with adapters beside them, for all positions of the rows or for some.

    attention: a = LN1(x + y + A(x));  sequential: a = LN1(x + y + A(y));  ffn: h = LN2(a + FFN(a) + A(a)).

A half that is run for the positions from `start` to `stop` gives what the whole would give there: an adapter that looks
at a token's neighbours is shown as many of them as it reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .backbones import EncoderLayer


class Beside(Protocol):
    """An adapter, or those of several depths as one."""

    reach: int | None

    def __call__(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, n, d) -> what is added beside the sub-layer, (B, n, d)."""
        ...


class ByDepth(NamedTuple):
    """The adapters of several depths, each for its own rows: the first `sizes[0]` rows stand at the first depth ..."""

    adapters: Sequence[Beside]
    sizes: list[int]

    @property
    def reach(self) -> int | None:
        """All depths have the same kind of adapter."""
        return self.adapters[0].reach

    def __call__(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, n, d) -> (B, n, d)."""
        parts = hidden_states.split(self.sizes)
        masks = [None] * len(parts) if padding_mask is None else padding_mask.split(self.sizes)
        return torch.cat([each(part, mask) for each, part, mask in zip(self.adapters, parts, masks, strict=True)])


@dataclass(frozen=True, slots=True)
class Sublayers:
    """One layer and what stands beside it."""

    layer: EncoderLayer
    attention_adapter: Beside | None
    ffn_adapter: Beside | None
    sequential: bool

    def attend(
        self, hidden_states: Tensor, keys: Tensor, values: Tensor, masks: tuple[Tensor | None, Tensor | None],
        start: int, stop: int,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """a (B, stop - start, d) of x (B, n, d), and attention weights (B, heads, q, n) where eager keeps them.

        Args:
            masks: the encoder's attention mask, (B, 1, n, n), and the padding mask, (B, n); None where nothing is
                padding.
        """
        (attention_mask, padding_mask), length = masks, hidden_states.shape[1]
        beside = self.attention_adapter
        low, high = around(start, stop, 0 if beside is None else beside.reach, length)
        first, last = (low, high) if self.sequential else (start, stop)
        seen = attention_mask if attention_mask is None else attention_mask[:, :, first:last]
        attended, weights = self.layer.attend(cut(hidden_states, first, last), keys, values, seen)
        summed = cut(hidden_states, start, stop) + cut(attended, start - first, stop - first)
        if beside is not None:
            read = attended if self.sequential else cut(hidden_states, low, high)
            summed = summed + cut(beside(read, cut(padding_mask, low, high)), start - low, stop - low)
        return self.layer.attention_norm(summed), weights

    def transform(self, attended: Tensor, padding_mask: Tensor | None, start: int, stop: int) -> Tensor:
        """h (B, stop - start, d) of a (B, m, d), from the first position up to the last that adapters read."""
        rows = cut(attended, start, stop)
        summed = self.layer.feed_forward(rows) + rows
        if self.ffn_adapter is not None:
            low, high = around(start, stop, self.ffn_adapter.reach, attended.shape[1])
            beside = self.ffn_adapter(cut(attended, low, high), cut(padding_mask, low, high))
            summed = summed + cut(beside, start - low, stop - low)
        return self.layer.output_norm(summed)

    def attended_for(self, stop: int, length: int) -> int:
        """Of how many positions, the first ones, a is needed to know h of the first `stop`."""
        return around(0, stop, 0 if self.ffn_adapter is None else self.ffn_adapter.reach, length)[1]


def around(start: int, stop: int, reach: int | None, length: int) -> tuple[int, int]:
    """The positions that can influence those from `start` to `stop`."""
    return (0, length) if reach is None else (max(0, start - reach), min(length, stop + reach))


def cut(states: Tensor | None, start: int, stop: int) -> Tensor | None:
    """The positions from `start` to `stop` of (B, n, ...)."""
    if states is None or (start == 0 and stop >= states.shape[1]):
        return states
    return states[:, start:stop]
