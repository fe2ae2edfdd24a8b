"""What a model was built from: the values of its config that may no longer change, nor differ from a checkpoint's.

A checkpoint's weights mean something under the values they were trained with. Some of them may be others at a load,
heads may be left out, and what was measured on a head that is gone goes with it. Weights themselves are in `identity`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from .backbones import num_depths, shape_of
from .evidence import REGRESSION, SINGLE_LABEL
from .exit_policy import configured_policy
from .identity import leave_behind
from .strategies import learns_weights, refuse_unlearned
from .systems import system_values
from .validation import refuse

logger = logging.get_logger(__name__)

# Weights of one value mean nothing under another.
FIXED = (
    "adapter_sublearner", "adapter_placement", "adapter_dim", "adapter_layer_norm", "adapter_conv_kernel",
    "adapter_num_heads", "exit_shared", "exit_pooler", "exit_pooler_dim", "last_exit", "train_pooler", "lte_shared",
    "prompt_generator", "prompt_length", "prompt_dim",
)  # fmt: skip
REMOVABLE = ("use_lte", "use_prototypes")  # may be left out of what was trained with them, not the other way round
KEPT = ("depths", "exits", "prompts", "token_exits")  # the parts of a model that a checkpoint without the encoder holds
BUILT_FROM = (
    *FIXED, *REMOVABLE, "backbone_config", "num_labels", "exit_layers", "train_backbone", "adapter_activation",
    "adapter_scaling", "adapter_dropout", "exit_pooling", "exit_dropout", "token_exits", "token_exit_range",
    "token_exit_seed", "use_nsp",
)  # fmt: skip


def blueprint(config: PreTrainedConfig) -> dict[str, Any]:
    """The values a model made now is built from, by field."""
    return {name: copy.deepcopy(getattr(config, name)) for name in BUILT_FROM}


def check_blueprint(model: nn.Module) -> None:
    """Refuse a value that was assigned after the model was built from another.

    Raises:
        ValueError: it names the field, the value and the one the model has.
    """
    config = model.config
    for name, built in model.built_from.items():
        if (value := getattr(config, name)) == built:
            continue
        if name == "backbone_config":  # named by the encoder's own field
            name, built, value = first_difference(built, value)
        refuse(name, value, f"{built!r}, as when the model was made: give another to from_backbone or from_pretrained")
    if learns_weights(config) and model.exits is not None and model.exits.loss_weights is None:
        refuse_unlearned(config.exit_weights)


def first_difference(built: dict[str, Any], value: dict[str, Any] | None) -> tuple[str, Any, Any]:
    """The first field in which two encoders' configs differ, with both values."""
    value = value or {}
    name = min(key for key in built.keys() | value.keys() if built.get(key) != value.get(key))
    return name, built.get(name), value.get(name)


def rebuilt(model: nn.Module, **values: Any) -> None:
    """Record that the model was changed in place to have these values."""
    for name, value in values.items():
        setattr(model.config, name, value)
    model.built_from |= {name: copy.deepcopy(getattr(model.config, name)) for name in values}


# ---- at a load ------------------------------------------------------------------------------------------------------


def check_carried_over(stored: PreTrainedConfig, wanted: PreTrainedConfig) -> None:
    """Refuse values under which a checkpoint's weights would mean something else.

    Args:
        stored: the checkpoint's own config.
        wanted: the one it is to be loaded with.
    """
    pooling = stored.exit_pooling
    if wanted.exit_pooling != pooling and "both" in (wanted.exit_pooling, pooling):
        refuse("exit_pooling", wanted.exit_pooling, f"{pooling!r}, as in the checkpoint: it reads as much")
    shape = shape_of(wanted.encoder_config())
    for name, was in shape_of(stored.encoder_config()).items():
        if shape.get(name) != was:
            refuse(name, shape.get(name), f"{was!r}, as in the checkpoint")
    idle = {"lte_shared": not wanted.use_lte, "train_pooler": wanted.exit_pooler != "backbone"}
    for name in FIXED:
        was, value = getattr(stored, name), getattr(wanted, name)
        if value != was and not idle.get(name):
            refuse(name, value, f"{was!r}, as in the checkpoint: its weights fit no other")
    for name in REMOVABLE:
        if getattr(wanted, name) and not getattr(stored, name):
            refuse(name, True, "False, as in the checkpoint: it has no weights for them")
    if wanted.adapter_only and not stored.adapter_only:
        refuse("adapter_only", True, "False, as in the checkpoint: it holds its encoder")
    check_exit_layers(stored, wanted)
    check_system(stored, wanted)


def check_system(stored: PreTrainedConfig, wanted: PreTrainedConfig) -> None:
    """Refuse the name of a system whose values the config does not have: a load changes the name alone."""
    if wanted.system not in (None, stored.system):
        values = system_values(wanted.system, num_depths(wanted.encoder_config()))
        if other := [name for name, value in values.items() if getattr(wanted, name) != value]:
            allowed = f"{stored.system!r}, as in the checkpoint, or None: {', '.join(other)} are not that system's"
            refuse("system", wanted.system, allowed)


def check_exit_layers(stored: PreTrainedConfig, wanted: PreTrainedConfig) -> None:
    """Refuse exits at layers for which the checkpoint has no head."""
    had, layers = depths_of(stored), depths_of(wanted)
    everywhere = stored.exit_shared and not parts_per_exit(stored)
    if not everywhere and (missing := sorted(set(layers) - set(had))):
        refuse("exit_layers", wanted.exit_layers, f"out of {had}, where the checkpoint has exits: not {missing}")


def loadable(stored: PreTrainedConfig, wanted: PreTrainedConfig) -> PreTrainedConfig:
    """The config under which every weight of the checkpoint finds its place, else like `wanted`."""
    config = copy.deepcopy(wanted)
    config.adapter_only = stored.adapter_only
    if set(depths_of(wanted)) <= set(depths_of(stored)):
        config.exit_layers = stored.exit_layers
    return config


def depths_of(config: PreTrainedConfig) -> list[int]:
    """The layers of a config's exits."""
    return config.exit_depths(num_depths(config.encoder_config()))


def parts_per_exit(config: PreTrainedConfig) -> bool:
    """Whether exits that share their heads have something of their own nevertheless."""
    own_lte = config.use_lte and not config.lte_shared
    return own_lte or config.use_prototypes or config.adapter_placement == "bypass" or learns_weights(config)


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Refuse weights of which some parts are another model's, where missing and unexpected ones would be passed over.

    Trainer resumes like that: heads of other exits would be taken for those with the same numbers.
    """
    names = model.state_dict().keys()
    left_out = set(model._keys_to_ignore_on_save or ())  # read from the base
    if state_dict and not names & state_dict.keys():
        raise ValueError(f"state_dict: none of its names is one of this model's, {min(state_dict)!r} for one.")
    for part in KEPT:
        own = {name for name in names if name.startswith(f"{part}.")}
        given = {name for name in state_dict if name.startswith(f"{part}.")}
        if given and (odd := (given ^ own) - left_out):
            place = "this model has none" if min(odd) in given else "they lack one this model has"
            raise ValueError(f"state_dict: its {part} are those of a model of another config: {min(odd)}, {place}.")


def keep_exits(model: nn.Module, wanted: PreTrainedConfig) -> None:
    """Leave a model the exits that a config wants, each with all it had."""
    layers = depths_of(wanted)
    if layers != model.exit_depths and model.exits is not None:
        model.exits.keep([model.exit_depths.index(layer) for layer in layers])
    model.exit_depths = list(layers)
    rebuilt(model, exit_layers=wanted.exit_layers)


def drop_measured(stored: PreTrainedConfig, wanted: PreTrainedConfig, given: Iterable[str]) -> None:
    """Take out of `wanted` what was measured or set for exits or heads that it no longer has, with a warning.

    Args:
        given: fields that were set for this load; they are left as they are.
    """
    leave_behind(wanted, wanted.weights_sha256 and stored.weights_sha256)
    had, layers = depths_of(stored), depths_of(wanted)
    new_heads = wanted.num_labels != stored.num_labels
    if layers == had and not new_heads:
        return
    dropped = {
        name: value for name, value in outdated(wanted, set(had) - set(layers), new_heads).items()
        if name not in given and getattr(wanted, name) == getattr(stored, name) != value
    }  # fmt: skip
    for name, value in dropped.items():
        setattr(wanted, name, value)
    if dropped:
        logger.warning(
            f"{', '.join(dropped)}: left behind, since they were measured or set for "
            f"{'heads' if new_heads else 'exits'} that this model no longer has."
        )


def outdated(config: PreTrainedConfig, gone: set[int], new_heads: bool) -> dict[str, Any]:
    """The fields that speak of exits after the layers that are `gone`, or of other heads, and what they become."""
    values: dict[str, Any] = {"operating_points": {}}
    if new_heads or isinstance(config.exit_threshold, list):
        values["exit_threshold"] = None
    if config.exit_appointed_layer in gone:
        values["exit_appointed_layer"] = None
        if "appointed_layer" in configured_policy(config).stated():
            values["exit_criterion"] = None
    if gone & {layer for group in config.exit_groups or () for layer in group}:
        values["exit_groups"] = None
    if new_heads:  # one value for each class that was
        values |= {"class_weights": None, "pos_weight": None, "exit_label_thresholds": None}
    if new_heads and config.problem_type == (SINGLE_LABEL if config.num_labels == 1 else REGRESSION):
        values["problem_type"] = None
    return values
