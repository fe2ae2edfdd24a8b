"""Hooks on an encoder's stock layers, which are taken apart to be run for some positions and not others.

Their own `forward` is never called, yet whoever hooked a layer is called: around our arithmetic, adapters included, for
the rows that are still on their way. `fully_shard` on a layer works the same way. What is inside a layer and is not
called as a module (BERT's `attention`, `intermediate`, `output` ...) is named in a warning; its linear layers and
norms are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers.utils import logging

from .validation import refuse

logger = logging.get_logger(__name__)
KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether someone wants to be called when the module is."""
    own = module.__dict__
    return any(own[kind] for kind in KINDS)


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
