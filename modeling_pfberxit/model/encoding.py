"""The layers of one call: rows go through them, and prompts join on the way. What exits make of it is the loop's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .backbones import encoder_layers, never_called
from .hooks import check_layers, check_never_called, hooked, sharded
from .rows import Rows
from .sublayers import ByDepth, Sublayers
from .token_first import finish
from .tracing import is_recorded
from .walk import Walk

if TYPE_CHECKING:
    from .pretrained import PFBerxitPreTrainedModel


class Encoding:
    """The layers of a model, for one call; on its own, for all positions of all rows, up to the last layer."""

    wide: int | None = None  # how many positions, the first ones, are read of a layer's output; None: all

    def __init__(self, model: PFBerxitPreTrainedModel, walk: Walk):
        self.depths, self.prompts, self.prompt_layer = model.depths, model.prompts, model.config.prompt_layer
        self.layers, self.execution = encoder_layers(model.backbone, model.execution.fused), model.execution
        self.walk = walk
        run = [*model.depths, *(layer.stock for layer in self.layers)]
        check_layers(run)
        check_never_called(model, never_called(model.backbone, self.layers))
        self.hooked = any(map(hooked, run))
        self.sharded = self.hooked and any(map(sharded, run))

    def encode(self, rows: Rows) -> Rows:
        """Rows in front of the first layer -> the same rows above the last one."""
        self.walk.see(rows)
        for _ in self.depths:
            rows = self.enter(rows)
            self.ascend(rows)
        return rows

    def enter(self, rows: Rows) -> Rows:
        """Into the next layer; prompts join the rows above the layer they belong to."""
        if self.prompts is not None and rows.groups[0][0] == self.prompt_layer and not rows.prompts:
            rows = rows.join(self.prompts(rows.tokens(), rows.padding_mask))
        rows.descend()
        return rows

    def ascend(self, rows: Rows) -> None:
        """Through the layer they are in."""
        hidden_states, weights = self.run_layer(rows)
        rows.advance(hidden_states, rows.groups[0][0])
        self.walk.see(rows, weights)

    def run_layer(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """The layer's output; at the last layer only for the positions its exit reads.

        Not so in a graph that is kept: how many that are depends on the length, which must stay open there.
        """
        states, depth = rows.hidden_states, rows.groups[0][0]
        if len(rows.groups) > 1:
            sublayers = self.sublayers(rows)
            return finish(sublayers, rows, *sublayers.layer.keys_values(states)), None
        queries = rows.queries(depth)
        if depth == len(self.depths) and self.wide is not None and self.execution.token_first:
            queries = None if is_recorded(states) else min(self.wide, states.shape[1])
        masks, compiled = (rows.attention_mask, rows.padding_mask), self.execution.compiled
        return self.depths[depth - 1](states, self.layers[depth - 1], *masks, queries, compiled)

    def sublayers(self, rows: Rows) -> Sublayers:
        """The layer the rows share, with the adapters of every row's depth."""
        layer = self.layers[rows.groups[0][0] - 1]
        if len(rows.groups) == 1:
            return self.depths[rows.groups[0][0] - 1].beside(layer, self.execution.compiled)
        own = [self.depths[depth - 1].beside(layer) for depth, _ in rows.groups]
        sizes, first = [size for _, size in rows.groups], own[0]
        beside_attention = first.attention_adapter and ByDepth([each.attention_adapter for each in own], sizes)
        beside_ffn = first.ffn_adapter and ByDepth([each.ffn_adapter for each in own], sizes)
        return Sublayers(layer, beside_attention, beside_ffn, first.sequential)
