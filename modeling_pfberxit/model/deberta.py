"""DeBERTa-v2, v3 and mDeBERTa: attention that reads what tokens say and, apart from it, how far apart they stand.

The score of query i and key j is a sum of three products, or of those of them that `pos_att_type` names, over the root
of the head's size times their number:

    q_i . k_j    +    q_i . K[i - j]  (content to position)    +    k_j . Q[i - j]  (position to content)

K and Q are one table of distances through linear layers of the layer. The stock layer projects the whole table, copies
it for every row of the batch, multiplies all of it and gathers what it reads. Here only distances that occur are
projected and multiplied. Row by row, the products that are read begin one place earlier: reading them is a view. The
rest is one fused attention that adds them to its scores, for the first queries alone where no others are asked for.

K and Q last for a call: no check would be cheaper than making them again and still notice every change of a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from .encoder_layer import Context, Places, StockLayer, as_summand, post_norm, reorder, same
from .validation import is_recorded

# ---- distances -------------------------------------------------------------------------------------------------------


def deberta_context(backbone: PreTrainedModel, rows: Places, kind: str) -> Context:
    """What is added to the scores of padding, (B, 1, 1, n), and the distances."""
    states, encoder = rows.hidden_states, backbone.encoder
    mask = None if rows.padding_mask is None else as_summand(rows.padding_mask != 0, states.dtype)[:, None, None]
    apart = table_rows(encoder, states.shape[1], states.device) if encoder.relative_attention else None
    return Context(mask, apart, None if rows.order is None else rows.places())


def table_rows(encoder: nn.Module, farthest: int, device: torch.device) -> Tensor:
    """The row of an encoder's table for every distance from -N to N, (2N + 1,)."""
    apart, span = torch.arange(-farthest, farthest + 1, device=device), encoder.max_relative_positions
    if (buckets := encoder.position_buckets) > 0:
        apart, span = make_log_bucket_position(apart, buckets, span).long(), buckets
    return (apart + span).clamp(0, 2 * span - 1)


def products(states: Tensor, table: Tensor, columns: int, places: Tensor | None = None) -> Tensor:
    """Each position's product with the table's entry for how far each of the first `columns` positions is behind it.

    Args:
        states: (B, r, heads * size), the first r positions.
        table: (heads, size, 2N + 1), for column - row = -N ... N; none is farther.
        places: (B, n) of all positions, where they are not in order.

    Returns:
        (heads, B, r, columns); a view of the products where positions are in order.
    """
    (batch, rows), (heads, size, width) = states.shape[:2], table.shape
    middle = width // 2
    if places is None:
        table = table[..., middle + 1 - rows : middle + 1 + columns]
    found = torch.bmm(states.reshape(batch * rows, heads, size).transpose(0, 1), table)
    found = found.view(heads, batch, rows, -1)
    if places is None:
        return shifted(found)[..., :columns]
    behind = places[:, None, :columns] - places[:, :rows, None]
    return found.gather(-1, (behind + middle).expand(heads, -1, -1, -1))


def shifted(matrix: Tensor) -> Tensor:
    """Row i of r from its place r - 1 - i on: (..., r, w) -> (..., r, w - 1), a view."""
    rows, width = matrix.shape[-2:]
    flat = matrix.flatten(-2)[..., rows - 1 : rows * width - 1]
    if is_recorded(flat):  # how many rows are left, a graph may not know: a copy it can view without asking
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(*flat.shape[:-1], rows, width - 1)


# ---- the layer -------------------------------------------------------------------------------------------------------


class Positions(NamedTuple):
    """K and Q of a layer over the root that scores are divided by, (heads, size, 2N + 1); None: not in its scores."""

    farthest: int  # N
    keys: Tensor | None  # by j - i
    queries: Tensor | None  # by i - j


@dataclass(frozen=True, slots=True)
class DebertaLayer(StockLayer):
    """BERT's layer, with products of positions in the scores of its attention."""

    table: nn.Embedding | None = None  # of all layers; None: without relative attention
    table_norm: Callable[[Tensor], Tensor] = same
    table_dropout: Callable[[Tensor], Tensor] = same
    position_key: nn.Module | None = None
    position_query: nn.Module | None = None
    convolution: nn.Module | None = None  # stock, behind the first layer of large encoders
    kept: list[Positions] = field(default_factory=list)  # one at most, of this call: a view lives no longer

    def bias(self, queries: Tensor, keys: Tensor, context: Context) -> Tensor | None:
        """What is added to the scores of queries (B, q, d) and keys (B, n, d): (B, heads, q, n) or (B, 1, 1, n)."""
        if context.distances is None or self.position_key is self.position_query is None:
            return context.mask
        parts, (_, to_keys, to_queries) = [], self.positions(context.distances)
        if to_keys is not None:
            parts.append(products(queries, to_keys, keys.shape[1], context.places))
        if to_queries is not None:
            parts.append(products(keys, to_queries, queries.shape[1], context.places).transpose(-1, -2))
        bias = sum(parts[1:], parts[0]).transpose(0, 1)
        return bias if context.mask is None else bias + context.mask

    def positions(self, rows: Tensor) -> Positions:
        """K and Q for these rows of the table, (2N + 1,) by distance, or for a wider choice that was kept."""
        farthest = rows.shape[0] // 2
        if self.kept and self.kept[0].farthest >= farthest:
            return self.kept[0]
        made = Positions(farthest, self.project_table(self.position_key, rows.flip(0)),
                         self.project_table(self.position_query, rows))  # fmt: skip
        if self.lasting():
            self.kept[:] = [made]
        return made

    def project_table(self, linear: nn.Module | None, rows: Tensor) -> Tensor | None:
        """Rows (w,) of the table through a linear layer: (heads, size, w)."""
        if linear is None or self.table is None:
            return None
        table = self.table.weight
        if is_recorded(rows) or rows.shape[0] > table.shape[0]:  # a graph that is kept must not depend on the length
            projected = linear(self.table_dropout(self.table_norm(table)))[rows]
        else:
            projected = linear(self.table_dropout(self.table_norm(table[rows])))
        return (projected * self.scaling).view(rows.shape[0], -1, self.head_size).permute(1, 2, 0)

    def behind(self, states: Tensor, output: Tensor, context: Context) -> Tensor:
        """The first layer's output and a convolution over what it read, (B, q, d)."""
        return output if self.convolution is None else convolve(self.convolution, states, output, context)

    def lasting(self) -> bool:
        """Whether K and Q are the same throughout a call, and without gradients."""
        if torch.compiler.is_compiling():
            return False
        parts = [self.table, self.table_norm, self.position_key, self.position_query]
        weights = [each for part in parts if isinstance(part, nn.Module) for each in part.parameters()]
        frozen = torch.is_inference_mode_enabled() or not any(each.requires_grad for each in weights)
        return frozen and not getattr(self.table_dropout, "training", False)


def convolve(stock: nn.Module, states: Tensor, output: Tensor, context: Context) -> Tensor:
    """The norm of (B, q, d) and a convolution over (B, n, d), in the text's order, padding read as 0."""
    asked, places = output.shape[1], context.places
    padding = None if context.mask is None else context.mask[:, 0, 0, :, None] != 0
    read = states if padding is None else states.masked_fill(padding, 0)
    if places is None:
        found = stock.conv(read[:, : asked + stock.conv.kernel_size[0] // 2].transpose(1, 2)).transpose(1, 2)
    else:
        found = reorder(stock.conv(reorder(read, places.argsort(1)).transpose(1, 2)).transpose(1, 2), places)
    return stock.LayerNorm(output + ACT2FN[stock.conv_act](stock.dropout(found[:, :asked])))


def deberta_layer(layer: nn.Module, encoder: nn.Module) -> DebertaLayer:
    """A stock layer of an encoder."""
    attention, output = layer.attention, layer.output
    own = attention.self
    relative, kinds = own.relative_attention, own.pos_att_type
    position_key = position_query = None
    if relative and "c2p" in kinds:
        position_key = own.key_proj if own.share_att_key else own.pos_key_proj
    if relative and "p2c" in kinds:
        position_query = own.query_proj if own.share_att_key else own.pos_query_proj
    return DebertaLayer(
        stock=layer, containers=(attention, own, attention.output, layer.intermediate, output),
        attention=own, head_size=own.attention_head_size,
        scaling=(own.attention_head_size * (1 + ("c2p" in kinds) + ("p2c" in kinds))) ** -0.5,
        query=own.query_proj, key=own.key_proj, value=own.value_proj, out=attention.output.dense,
        up=layer.intermediate.dense, activation=layer.intermediate.intermediate_act_fn, down=output.dense,
        norms=post_norm(attention.output.LayerNorm, output.LayerNorm),
        attention_dropout=own.dropout.p, out_dropout=attention.output.dropout, ffn_dropout=output.dropout,
        table=encoder.rel_embeddings if relative else None,
        table_norm=encoder.LayerNorm if relative and "layer_norm" in encoder.norm_rel_ebd else same,
        table_dropout=own.pos_dropout if relative else same,
        position_key=position_key, position_query=position_query,
        convolution=encoder.conv if layer is encoder.layer[0] else None,
    )  # fmt: skip


def deberta_containers(backbone: PreTrainedModel) -> list[nn.Module]:
    """The table of distances too is read, not called, as in the stock encoder."""
    own = (getattr(backbone.encoder, name, None) for name in ("rel_embeddings", "conv"))
    return [backbone.encoder, *(module for module in own if module is not None)]


def deberta_distances(config: PreTrainedConfig) -> tuple[int, int]:
    """How many products with the table of distances are in the scores, of queries and of keys."""
    kinds = (config.pos_att_type or ()) if config.relative_attention else ()
    return int("c2p" in kinds), int("p2c" in kinds)
