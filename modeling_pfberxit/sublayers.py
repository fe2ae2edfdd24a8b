"""The two halves of an encoder layer, with adapters beside them, for all positions of the rows or the first ones.

    attention: a = LN1(x + y + A(x));  sequential: a = LN1(x + y + A(y));  ffn: h = LN2(a + FFN(a) + A(a)).

A half that is run for the first `stop` positions gives what the whole would give there: an adapter that looks at a
token's neighbours is shown as many of them as it reaches.
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
        self, hidden_states: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None,
        padding_mask: Tensor | None, stop: int,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """a (B, stop, d) of x (B, n, d), and attention weights (B, heads, q, n) where eager keeps them.

        Args:
            attention_mask, padding_mask: (B, 1, n, n) and (B, n); None where nothing is padding.
        """
        beside, length = self.attention_adapter, hidden_states.shape[1]
        read = reached(stop, 0 if beside is None else beside.reach, length)
        queries = read if self.sequential else stop
        mask = attention_mask if attention_mask is None else attention_mask[:, :, :queries]
        attended, weights = self.layer.attend(first(hidden_states, queries), keys, values, mask)
        summed = first(hidden_states, stop) + first(attended, stop)
        if beside is not None:
            source = attended if self.sequential else first(hidden_states, read)
            summed = summed + first(beside(source, first(padding_mask, read)), stop)
        return self.layer.attention_norm(summed), weights

    def transform(self, attended: Tensor, padding_mask: Tensor | None, stop: int) -> Tensor:
        """h (B, stop, d) of a (B, m, d), as many positions as `needed` says."""
        rows = first(attended, stop)
        summed = self.layer.feed_forward(rows) + rows
        if self.ffn_adapter is not None:
            summed = summed + first(self.ffn_adapter(attended, first(padding_mask, attended.shape[1])), stop)
        return self.layer.output_norm(summed)

    def needed(self, stop: int, length: int) -> int:
        """Of how many positions, the first ones, a is needed to know h of the first `stop`."""
        return reached(stop, 0 if self.ffn_adapter is None else self.ffn_adapter.reach, length)


def reached(stop: int, reach: int | None, length: int) -> int:
    """How many positions, the first ones, can influence the first `stop`."""
    return length if reach is None else min(length, stop + reach)


def first(states: Tensor | None, stop: int) -> Tensor | None:
    """The first positions of (B, n, ...)."""
    return states if states is None or stop >= states.shape[1] else states[:, :stop]
