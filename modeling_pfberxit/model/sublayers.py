"""The two halves of an encoder layer, with adapters beside them, for all positions of the rows or the first ones.

    attention: a = LN1(x + y + A(x));  sequential: a = LN1(x + y + A(y));  ffn: h = LN2(a + FFN(a) + A(a)).

A half that is run for the first `stop` positions gives what the whole would give there: an adapter that looks at a
token's neighbours is shown as many of them as it reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
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
    """One layer and what stands beside it; `compiled`: run by `torch.compile`'s code."""

    layer: EncoderLayer
    attention_adapter: Beside | None
    ffn_adapter: Beside | None
    sequential: bool
    compiled: bool = False

    def output(
        self, hidden_states: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None,
        padding_mask: Tensor | None, stop: int | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The layer's output h (B, stop, d) for x (B, n, d), and attention weights where eager keeps them."""
        stop = None if stop is None or stop >= hidden_states.shape[1] else stop
        if not self.compiled:
            return both_halves(self, hidden_states, keys, values, attention_mask, padding_mask, stop)
        # What nobody reads is not handed over: every kind of mask would be a translation of its own.
        padding_mask = padding_mask if self.looks_around else None
        return compiled(both_halves)(self, hidden_states, keys, values, attention_mask, padding_mask, stop)

    def attend(
        self, hidden_states: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None,
        padding_mask: Tensor | None, stop: int | None,
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

    def transform(self, attended: Tensor, padding_mask: Tensor | None, stop: int | None) -> Tensor:
        """h (B, stop, d) of a (B, m, d), as many positions as `needed` says."""
        rows = first(attended, stop)
        summed = self.layer.feed_forward(rows) + rows
        if self.ffn_adapter is not None:
            mask = padding_mask if padding_mask is None else padding_mask[:, : attended.shape[1]]
            summed = summed + first(self.ffn_adapter(attended, mask), stop)
        return self.layer.output_norm(summed)

    @property
    def looks_around(self) -> bool:
        """Whether an adapter looks at a token's neighbours."""
        return any(each is not None and each.reach != 0 for each in (self.attention_adapter, self.ffn_adapter))

    def needed(self, stop: int | None, length: int) -> int | None:
        """Of how many positions, the first ones, a is needed to know h of the first `stop`; None: all."""
        return reached(stop, 0 if self.ffn_adapter is None else self.ffn_adapter.reach, length)


def both_halves(
    sublayers: Sublayers, hidden_states: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None,
    padding_mask: Tensor | None, stop: int | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """One after the other: what is compiled, as one."""
    needed = sublayers.needed(stop, hidden_states.shape[1])
    attended, weights = sublayers.attend(hidden_states, keys, values, attention_mask, padding_mask, needed)
    return sublayers.transform(attended, padding_mask, stop), weights


@cache
def compiled(function: Callable) -> Callable:
    """The function as `torch.compile` runs it, for all shapes and all depths."""
    return torch.compile(function, dynamic=True)


def reached(stop: int | None, reach: int | None, length: int) -> int | None:
    """How many positions, the first ones, can influence the first `stop`; None: all."""
    return None if stop is None or reach is None or stop + reach >= length else stop + reach


def first(states: Tensor | None, stop: int | None) -> Tensor | None:
    """The first positions of (B, n, ...); None: all."""
    return states if states is None or stop is None or stop >= states.shape[1] else states[:, :stop]
