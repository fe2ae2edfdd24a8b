"""One stock encoder layer in four steps: project, attend, add, transform; and the context it attends in.

    post-norm: y = O(attention(Q x, K x, V x));  a = LN1(x + y);  h = LN2(a + FFN(a))
    pre-norm:  y = the same of LN1(x);           a = x + y;       h = a + FFN(LN2(a))

    FFN(x) = W2 act(W1 x), or W2 (act(W1 x) * W3 x) where it is gated

The stock modules keep the weights and do the work; a view only knows which is which. Keys and values are projected
apart from the rows that query them, so that a layer can be run for some positions and not others. Adapters are added
in `layers`; which module of a family is what stands in `families`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_function
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

FUSED: dict[type, nn.Module] = {NewGELUActivation: nn.GELU("tanh")}  # one operation for ALBERT's eight
FULL = "full_attention"  # as configs of `transformers` name the types of their layers
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether any hook is registered on the module itself."""
    return any(module.__dict__[kind] for kind in HOOKS)


def same(states: Tensor) -> Tensor:
    """Where a layer has no norm, or no dropout."""
    return states


def reorder(states: Tensor, order: Tensor) -> Tensor:
    """The positions of every row in another order: (B, n, d) and (B, n) -> (B, n, d)."""
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[2]))


def as_summand(attended: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that only positions that are True are attended to: 0, elsewhere the lowest number."""
    return torch.zeros_like(attended, dtype=dtype).masked_fill(~attended, torch.finfo(dtype).min)


class Norms(NamedTuple):
    """Where a layer normalises: what its halves read, or what they leave."""

    before_attention: Callable[[Tensor], Tensor]
    after_attention: Callable[[Tensor], Tensor]
    before_ffn: Callable[[Tensor], Tensor]
    after_ffn: Callable[[Tensor], Tensor]


def post_norm(attention: nn.Module, ffn: nn.Module) -> Norms:
    """BERT's: each half reads the states as they are, and its sum is normalised."""
    return Norms(same, attention, same, ffn)


def pre_norm(attention: nn.Module, ffn: nn.Module) -> Norms:
    """ModernBERT's: each half reads normalised states, its sum is left as it is."""
    return Norms(attention, same, ffn, same)


class Context(NamedTuple):
    """What attention needs beside queries, keys and values: it depends on the rows, not on the layer's number."""

    mask: Tensor | None = None  # (1 or B, 1 or heads, 1 or n, n) who attends to whom, or a summand; None: all to all
    distances: Tensor | None = None  # (2n + 1,) for -n ... n, its row of the encoder's table, where scores depend on it
    places: Tensor | None = None  # (B, n) of the positions in the text, where they are in another order
    rotary: tuple[Tensor, Tensor] | None = None  # cosines and sines (1 or B, n, d/heads); None: nothing is rotated


class Places(Protocol):
    """Of the rows of a batch, what a context is made of."""

    hidden_states: Tensor  # (B, n, d)
    padding_mask: Tensor | None  # (B, n) 0 for padding; None where nothing is padding
    order: Tensor | None  # (B, n) the tokens' places in the text, where positions are sorted

    def places(self) -> Tensor:
        """The place of every position in its row, (1 or B, n)."""
        ...

    def positions(self) -> Tensor:
        """Its number: its place, or what the call says, (1 or B, n)."""
        ...


def padding_alone(backbone: PreTrainedModel, rows: Places, kind: str = FULL) -> Context:
    """All positions attend to all that are not padding."""
    if rows.padding_mask is None:
        return Context()
    mask = create_bidirectional_mask(
        config=backbone.config,
        inputs_embeds=rows.hidden_states,
        attention_mask=rows.padding_mask,
        allow_is_bidirectional_skip=False,  # it would look once more whether anything is padding
    )
    return Context(mask)


@dataclass(frozen=True, slots=True)
class StockLayer:
    """A layer with linear layers for queries, keys and values, and an FFN of two, or of three where it is gated.

    A layer that does something else in one of its steps overrides that step. Sums of states, sub-layers and adapters
    are not its business; where it normalises, `norms` says.
    """

    stock: nn.Module  # its hooks are called
    containers: tuple[nn.Module, ...]  # modules inside it that are never called: their parts are
    attention: nn.Module  # the stock attention: whether it is trained, and whatever else an attention kernel asks it
    head_size: int
    scaling: float
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    up: nn.Module
    activation: Callable[[Tensor], Tensor]
    down: nn.Module
    norms: Norms
    attention_dropout: float = 0.0
    out_dropout: Callable[[Tensor], Tensor] = same
    ffn_dropout: Callable[[Tensor], Tensor] = same
    gate: nn.Module | None = None
    inner_dropout: Callable[[Tensor], Tensor] = same
    groups: int = 1  # heads that share keys and values
    kind: str = FULL  # which of the family's contexts it attends in
    implementation: str = "eager"

    def set_up(self, implementation: str, fused: bool) -> StockLayer:
        """The same view with this implementation of attention; `fused`: an activation as one operation if it can be."""
        activation = FUSED.get(type(self.activation), self.activation) if fused else self.activation
        return replace(self, implementation=implementation, activation=activation)

    def project(self, read: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the attention reads, (B, n, d) -> keys and values of all positions, (B, n, d) each."""
        keys, values = self.keys_values(read)
        return self.rotate(keys, context), values

    def attend(self, read: Tensor, keys: Tensor, values: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """Attention's output y of the first q positions, (B, q, d); weights (B, heads, q, n) where eager keeps them."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.attention.training else 0.0
        queries = self.rotate(self.queries(read), context)
        bias = self.bias(queries, keys, context)
        parts = [self.heads(part) for part in (queries, keys, values)]
        if self.groups > 1 and self.implementation == "eager":  # sdpa looks at `num_key_value_groups` itself
            parts[1:] = (repeat_kv(part, self.groups) for part in parts[1:])
        mixed, weights = attention(self.attention, *parts, bias, dropout=dropout, scaling=self.scaling, is_causal=False)
        return self.out_dropout(self.out(mixed.flatten(2))), weights  # mixed: (B, q, heads, d/heads)

    def bias(self, queries: Tensor, keys: Tensor, context: Context) -> Tensor | None:
        """Who attends to whom, or what is added to the scores, (B, heads, q, n), for (B, q, d) and (B, n, d)."""
        return context.mask if context.mask is None else context.mask[:, :, : queries.shape[1]]

    def transform(self, read: Tensor) -> Tensor:
        """The FFN's output, (B, q, d) -> (B, q, d)."""
        inner = self.activation(self.up(read))
        inner = inner if self.gate is None else inner * self.gate(read)
        return self.ffn_dropout(self.down(self.inner_dropout(inner)))

    def queries(self, read: Tensor) -> Tensor:
        """(B, q, d) -> queries of all heads, (B, q, d)."""
        return self.query(read)

    def keys_values(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, d) -> keys and values of all heads, before keys are rotated."""
        return self.key(read), self.value(read)

    def behind(self, states: Tensor, output: Tensor, context: Context) -> Tensor:
        """What follows the layer, (B, q, d), for what it read (B, n, d) and its output (B, q, d): nothing."""
        return output

    def heads(self, projected: Tensor) -> Tensor:
        """(B, n, heads * size) -> (B, heads, n, size)."""
        # Not `unflatten`: the older of the two ONNX exporters would hold on to this call's length.
        return projected.view(*projected.shape[:-1], -1, self.head_size).transpose(1, 2)

    def rotate(self, projected: Tensor, context: Context) -> Tensor:
        """Queries or keys of the first positions, (B, q, heads * size), turned by their positions."""
        if context.rotary is None:
            return projected
        cosines, sines = (part[:, : projected.shape[1], None] for part in context.rotary)
        states = projected.view(*projected.shape[:-1], -1, self.head_size).float()
        left, right = states.chunk(2, dim=-1)
        turned = states * cosines + torch.cat([-right, left], dim=-1) * sines
        return turned.to(projected.dtype).flatten(2)


@dataclass(frozen=True, slots=True)
class FusedLayer(StockLayer):
    """A layer with one linear layer for queries, keys and values, and one for both sides of a gated FFN."""

    def queries(self, read: Tensor) -> Tensor:
        """(B, q, d) -> queries of all heads, (B, q, d)."""
        return outputs(self.query, read, slice(0, read.shape[-1]))

    def keys_values(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, d) -> keys and values of all heads, before keys are rotated."""
        keys, values = outputs(self.query, read, slice(read.shape[-1], None)).chunk(2, dim=-1)
        return keys, values

    def transform(self, read: Tensor) -> Tensor:
        """(B, q, d) -> (B, q, d)."""
        inner, gate = self.up(read).chunk(2, dim=-1)
        return self.down(self.inner_dropout(self.activation(inner) * gate))


def outputs(linear: nn.Module, states: Tensor, which: slice) -> Tensor:
    """Some outputs of a linear layer, (..., d) -> (..., m); one with hooks or adapters of its own is called whole."""
    if type(linear) is not nn.Linear or hooked(linear):
        return linear(states)[..., which]
    return linear_function(states, linear.weight[which], None if linear.bias is None else linear.bias[which])
