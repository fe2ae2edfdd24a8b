"""One depth: a stock encoder layer with adapters beside its two halves, run for all positions or the first ones.

    attention: a = LN1(x + y + A(x));  sequential: a = LN1(x + y + A(y));  ffn: h = LN2(a + FFN(a) + A(a)).

Where a layer normalises first, an adapter reads what its sub-layer reads, the normed states: h = a + FFN(LN2(a)) +
A(LN2(a)).

A half that is run for the first `stop` positions gives what the whole would give there: an adapter that reads a
token's neighbours is given as many of them as it reaches. When to run a few positions first is decided in `loop`; what
is inside an encoder's layer is in `encoder_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .adapters import PLACEMENTS, Adapter
from .encoder_layer import Context, StockLayer, hooked
from .validation import refuse

logger = logging.get_logger(__name__)


def sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has spread the module's weights over processes; they are whole only while it is called."""
    return hasattr(module, "unshard")


def check_predictable(model: nn.Module) -> None:
    """Refuse to run layers in an order that differs between the processes that share their weights."""
    if any(map(sharded, model.modules())):
        refuse("predict", "...", "called before fully_shard: processes that share weights must run the same layers; "
               "model(**batch) does so")  # fmt: skip


def through(module: nn.Module, function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)` in the place of the module's `forward`: its hooks are called, and may change what passes.

    They are handed a stand-in: an object of the module's class with the module's own parts, of which only `forward` is
    another. Nothing is ever changed on the module itself.
    """
    if not hooked(module):
        return function(*inputs)
    stand_in = object.__new__(type(module))
    stand_in.__dict__.update(module.__dict__)
    stand_in.forward = function
    return nn.Module.__call__(stand_in, *inputs)  # not the class's own: the depth is checkpointed already


def check_layers(layers: Iterable[nn.Module]) -> None:
    """Refuse layers that FSDP's first version has wrapped: it gathers their weights in its own `forward`."""
    if any("_fsdp_wrapped_module" in layer._modules for layer in layers):
        refuse("fsdp_version", 1, "2: fully_shard")


def check_never_called(root: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Name the modules that are hooked in vain: a warning, or a `ValueError` where their weights are sharded."""
    for module in modules:
        if hooked(module):
            name = next(name for name, each in root.named_modules() if each is module) or type(root).__name__
            if sharded(module):
                refuse("fully_shard", name, "the whole model, its encoder layers, its depths or its embeddings")
            logger.warning_once(
                f"{name}: its hooks are never called, since the encoder is run layer by layer and its layers in parts. "
                "Hook a layer, model.depths[i] (the layer with its adapters), or the linear layers and norms inside."
            )


# ---- the two halves --------------------------------------------------------------------------------------------------


class ByDepth(NamedTuple):
    """The adapters of several depths, each for its own rows: the first `sizes[0]` rows are at the first depth ..."""

    adapters: Sequence[Adapter]
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


Beside = Adapter | ByDepth  # what may stand beside a half of a layer


@dataclass(frozen=True, slots=True)
class Sublayers:
    """One layer and the adapters beside it; `compiled`: run as `torch.compile` translates it."""

    layer: StockLayer
    attention_adapter: Beside | None
    ffn_adapter: Beside | None
    sequential: bool
    compiled: bool = False

    def output(
        self, hidden_states: Tensor, keys: Tensor, values: Tensor, context: Context,
        padding_mask: Tensor | None, stop: int | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The layer's output h (B, stop, d) for x (B, n, d), and attention weights where eager keeps them."""
        stop = None if stop is None or stop >= hidden_states.shape[1] else stop
        if not self.compiled:
            return both_halves(self, hidden_states, keys, values, context, padding_mask, stop)
        # A mask that no adapter reads is not handed over: every kind of mask would be a translation of its own.
        padding_mask = padding_mask if self.looks_around else None
        return compiled(both_halves)(self, hidden_states, keys, values, context, padding_mask, stop)

    def begin(
        self, hidden_states: Tensor, context: Context, padding_mask: Tensor | None, positions: int | None = None
    ) -> FirstPositions:
        """Run the layer for the first `positions` of every row; None: for all."""
        keys, values = self.project(hidden_states, context)
        output, _ = self.output(hidden_states, keys, values, context, padding_mask, positions)
        return FirstPositions(keys, values, output)

    def finish(
        self, begun: FirstPositions, hidden_states: Tensor, context: Context, padding_mask: Tensor | None
    ) -> Tensor:
        """The layer's output for all positions, (B, n, d), from the keys and values it was begun with."""
        return self.output(hidden_states, begun.keys, begun.values, context, padding_mask, None)[0]

    def project(self, hidden_states: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions of x (B, n, d)."""
        return self.layer.project(self.layer.norms.before_attention(hidden_states), context)

    def attend(
        self, hidden_states: Tensor, keys: Tensor, values: Tensor, context: Context,
        padding_mask: Tensor | None, stop: int | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The first half: x (B, n, d) -> a (B, stop, d), and attention weights (B, heads, q, n) where eager keeps them.

        Args:
            padding_mask: (B, n); None where nothing is padding.
        """
        norms, beside, length = self.layer.norms, self.attention_adapter, hidden_states.shape[1]
        around = reached(stop, 0 if beside is None else beside.reach, length)
        queries = around if self.sequential else stop
        read = norms.before_attention(first(hidden_states, around))  # once more for the first ones: cheaper than kept
        attended, weights = self.layer.attend(first(read, queries), keys, values, context)
        summed = first(hidden_states, stop) + first(attended, stop)
        if beside is not None:
            padding = None if padding_mask is None else first(padding_mask, around)
            summed = summed + first(beside(attended if self.sequential else read, padding), stop)
        return norms.after_attention(summed), weights

    def transform(self, attended: Tensor, padding_mask: Tensor | None, stop: int | None) -> Tensor:
        """The second half: a (B, m, d) -> h (B, stop, d), with m from `needed`."""
        norms, states = self.layer.norms, first(attended, stop)
        read = norms.before_ffn(attended)
        summed = self.layer.transform(first(read, stop)) + states
        if self.ffn_adapter is not None:
            mask = padding_mask if padding_mask is None else padding_mask[:, : attended.shape[1]]
            summed = summed + first(self.ffn_adapter(read, mask), stop)
        return norms.after_ffn(summed)

    @property
    def looks_around(self) -> bool:
        """Whether an adapter reads a token's neighbours."""
        return any(each is not None and each.reach != 0 for each in (self.attention_adapter, self.ffn_adapter))

    def needed(self, stop: int | None, length: int) -> int | None:
        """Of how many positions, the first ones, a is needed to know h of the first `stop`; None: all."""
        return reached(stop, 0 if self.ffn_adapter is None else self.ffn_adapter.reach, length)


def both_halves(
    sublayers: Sublayers, hidden_states: Tensor, keys: Tensor, values: Tensor, context: Context,
    padding_mask: Tensor | None, stop: int | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """One after the other; a function of its own, so that both are compiled as one."""
    needed = sublayers.needed(stop, hidden_states.shape[1])
    attended, weights = sublayers.attend(hidden_states, keys, values, context, padding_mask, needed)
    output = sublayers.transform(attended, padding_mask, stop)
    return sublayers.layer.behind(hidden_states, output, context), weights


@cache
def compiled(function: Callable) -> Callable:
    """The function as `torch.compile` runs it, for all shapes and all depths."""
    return torch.compile(function, dynamic=True)


def reached(stop: int | None, reach: int | None, length: int) -> int | None:
    """How many positions, the first ones, can influence the first `stop`; None: all."""
    return None if stop is None or reach is None or stop + reach >= length else stop + reach


def first(states: Tensor, stop: int | None) -> Tensor:
    """The first positions of (B, n, ...); None: all."""
    return states if stop is None or stop >= states.shape[1] else states[:, :stop]


@dataclass(frozen=True, slots=True)
class FirstPositions:
    """What is known of a layer that has been run for the first positions of its rows."""

    keys: Tensor  # (B, n, d), of all positions
    values: Tensor  # (B, n, d)
    output: Tensor  # (B, w, d), of the first w

    def select(self, keep: Tensor, longest: int) -> FirstPositions:
        """The rows with the numbers `keep` (B',), cut to `longest` positions."""
        keys, values = (part[:, :longest].index_select(0, keep) for part in (self.keys, self.values))
        return FirstPositions(keys, values, self.output.index_select(0, keep))


# ---- one depth -------------------------------------------------------------------------------------------------------


class AdaptedLayer(GradientCheckpointingLayer):
    """The adapters of one depth. The backbone layer is handed in, since ALBERT shares it between depths."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int) -> None:
        super().__init__()
        place = PLACEMENTS[config.adapter_placement]
        self.sequential = place.sequential
        self.attention_adapter = Adapter(config, hidden_size) if place.attention else None
        self.ffn_adapter = Adapter(config, hidden_size) if place.ffn else None

    def beside(self, layer: StockLayer, compiled: bool = False) -> Sublayers:
        """The layer with this depth's adapters."""
        return Sublayers(layer, self.attention_adapter, self.ffn_adapter, self.sequential, compiled)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, context: Context, padding_mask: Tensor | None,
        layer: StockLayer, queries: int | None = None, compiled: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """(B, n, d) -> (B, n, d), and the attention weights where there are any; the first `queries` positions only.

        Args:
            mask: the context's. It may be learned (MPNet's bias), and reentrant checkpointing knows of arguments alone.
        """
        weights = None

        def run(hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            """In the place of the stock layer's forward."""
            nonlocal weights
            sublayers, around = self.beside(layer, compiled), context._replace(mask=attention_mask)
            kept = sublayers.project(hidden_states, around)
            states, weights = sublayers.output(hidden_states, *kept, around, padding_mask, queries)
            return states

        return through(layer.stock, run, hidden_states, mask), weights
