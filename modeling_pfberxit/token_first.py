"""Token first: an exit that reads one token needs no other position of its layer's output.

Where a row may leave, the layer is run for that token alone: keys and values of all positions, all the rest for the
token and what its exit and adapters reach. Rows that stay have their other positions run then, from the same keys and
values, so nothing is computed twice; for rows that leave, most of the layer is never computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .sublayers import Sublayers

if TYPE_CHECKING:
    from .rows import Rows


@dataclass(frozen=True, slots=True)
class Begun:
    """A layer that has been run for the first positions of its rows."""

    keys: Tensor  # (B, heads, n, d/heads)
    values: Tensor
    attended: Tensor  # (B, a, d) of the first half: the w positions and what adapters read around them
    output: Tensor  # (B, w, d)

    def select(self, keep: Tensor, longest: int) -> Begun:
        """The rows whose numbers are given, cut to the longest of them."""
        keys, values = (part.index_select(0, keep)[:, :, :longest] for part in (self.keys, self.values))
        attended, output = (part.index_select(0, keep)[:, :longest] for part in (self.attended, self.output))
        return Begun(keys, values, attended, output)


def begin(sublayers: Sublayers, rows: Rows, wide: int) -> Begun:
    """Run the layer for the first `wide` positions of every row."""
    states, masks = rows.hidden_states, (rows.attention_mask, rows.padding_mask)
    length = states.shape[1]
    wide = min(wide, length)
    keys, values = sublayers.layer.keys_values(states)
    needed = sublayers.attended_for(wide, length)
    attended, _ = sublayers.attend(states, keys, values, masks, 0, needed)
    return Begun(keys, values, attended, sublayers.transform(attended, rows.padding_mask, 0, wide))


def finish(sublayers: Sublayers, rows: Rows, begun: Begun) -> Tensor:
    """Run the other positions as well: the layer's whole output, (B, n, d)."""
    states, masks = rows.hidden_states, (rows.attention_mask, rows.padding_mask)
    length, attended, wide = states.shape[1], begun.attended, begun.output.shape[1]
    if attended.shape[1] < length:
        rest, _ = sublayers.attend(states, begun.keys, begun.values, masks, attended.shape[1], length)
        attended = torch.cat([attended, rest], dim=1)
    if wide == length:
        return begun.output
    return torch.cat([begun.output, sublayers.transform(attended, rows.padding_mask, wide, length)], dim=1)
