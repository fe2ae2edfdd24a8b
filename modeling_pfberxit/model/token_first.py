"""Token first: an exit that reads one token needs no other position of its layer's output.

Where a row may leave, the layer is run for that token alone: keys and values of all positions, all the rest for the
token and what its exit and adapters reach. For rows that leave, most of the layer is never computed; for those that
stay it is run then, from the same keys and values. The token is computed once more: leaving it out would cost copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .sublayers import Sublayers

if TYPE_CHECKING:
    from .rows import Rows


@dataclass(frozen=True, slots=True)
class Begun:
    """A layer that has been run for the first positions of its rows."""

    keys: Tensor  # (B, n, d)
    values: Tensor
    output: Tensor  # (B, w, d)

    def select(self, keep: Tensor, longest: int) -> Begun:
        """The rows whose numbers are given, cut to the longest of them."""
        keys, values = (part[:, :longest].index_select(0, keep) for part in (self.keys, self.values))
        return Begun(keys, values, self.output.index_select(0, keep))


def begin(sublayers: Sublayers, rows: Rows, wide: int) -> Begun:
    """Run the layer for the first `wide` positions of every row."""
    keys, values = sublayers.layer.keys_values(rows.hidden_states)
    return Begun(keys, values, finish(sublayers, rows, keys, values, wide))


def finish(sublayers: Sublayers, rows: Rows, keys: Tensor, values: Tensor, wide: int | None = None) -> Tensor:
    """The layer's output from its keys and values: (B, n, d), or the first `wide` positions of it."""
    return sublayers.output(rows.hidden_states, keys, values, rows.attention_mask, rows.padding_mask, wide)[0]
