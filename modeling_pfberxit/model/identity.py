"""An encoder is identified by its bytes, a model by the values it was built from; both are checked here.

Where an encoder is found and how its files are checked is in `persistence`.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import build_backbone, num_depths, shape_of
from .certified import leave_behind
from .exit_policy import configured_policy
from .exits import REGRESSION, SINGLE_LABEL
from .strategies import learns_weights, refuse_unlearned
from .validation import is_recorded, refuse

logger = logging.get_logger(__name__)

# What a tensor may be cast to without becoming another: the base, loaded in that dtype, has the same bits.
ROUNDED = {torch.float32: (torch.bfloat16, torch.float16)}
# Weights of one value mean nothing under another.
FIXED = (
    "adapter_sublearner", "adapter_placement", "adapter_dim", "adapter_layer_norm", "adapter_conv_kernel",
    "adapter_num_heads", "exit_shared", "exit_pooler", "exit_pooler_dim", "last_exit", "train_pooler", "lte_shared",
    "prompt_generator", "prompt_length", "prompt_dim",
)  # fmt: skip
REMOVABLE = ("use_lte", "use_prototypes")  # may be left out of what was trained with them, not the other way round
BUILT_FROM = (
    *FIXED, *REMOVABLE, "backbone_config", "num_labels", "exit_layers", "train_backbone", "adapter_activation",
    "adapter_scaling", "adapter_dropout", "exit_pooling", "exit_dropout", "token_exits", "token_exit_range",
    "token_exit_seed", "use_nsp",
)  # fmt: skip


class Identity(NamedTuple):
    """What an encoder was when it was loaded.

    Args:
        file_sha256: hash of the weights files it came from.
        tensors: of every parameter and buffer, the shape, and its sha256 in the dtype it was loaded in and in those
            that it may be rounded to.
    """

    file_sha256: str | None
    tensors: dict[str, tuple[torch.Size, dict[torch.dtype, bytes]]]


def identify(backbone: PreTrainedModel, file_sha256: str | None) -> None:
    """Note what the encoder is, as `backbone.identity`; half a second for BERT-base on two cores."""
    backbone.identity = identity_of(tensors_of(backbone), file_sha256)


def identity_of(now: Mapping[str, Tensor], file_sha256: str | None, rounded: bool = True) -> Identity:
    """What tensors are, by name, also rounded to smaller dtypes."""
    wanted = {
        (name, dtype): tensor
        for name, tensor in now.items()
        for dtype in (tensor.dtype, *(ROUNDED.get(tensor.dtype, ()) if rounded else ()))
    }
    digests = hash_all([(tensor, dtype) for (_, dtype), tensor in wanted.items()])
    tensors: dict[str, tuple[torch.Size, dict[torch.dtype, bytes]]]
    tensors = {name: (tensor.shape, {}) for name, tensor in now.items()}
    for (name, dtype), digest in zip(wanted, digests, strict=True):
        tensors[name][1][dtype] = digest
    return Identity(file_sha256, tensors)


def difference(backbone: PreTrainedModel, contents: bool = True) -> str | None:
    """What is no longer as it was loaded, in words; None for an encoder that still is what it was.

    Args:
        backbone: an encoder with an `identity`.
        contents: read every weight as well; without, only names, shapes and dtypes, in no time.
    """
    return changes(backbone.identity.tensors, tensors_of(backbone), contents)


def changes(
    loaded: Mapping[str, tuple[torch.Size, dict[torch.dtype, bytes]]], now: Mapping[str, Tensor], contents: bool
) -> str | None:
    """What differs between tensors as they were loaded and as they are, in words; None: nothing."""
    # A pooler that no exit reads is left out after loading.
    if strange := [name for name in loaded.keys() ^ now.keys() if name in now or not name.startswith("pooler.")]:
        return f"{sorted(strange)[0]} was added or removed since it was loaded"
    for name, tensor in now.items():
        shape, digests = loaded[name]
        if tensor.shape != shape:
            return f"{name} is no longer of shape {tuple(shape)}"
        if tensor.dtype not in digests:
            dtypes = [str(dtype).removeprefix("torch.") for dtype in (next(iter(digests)), tensor.dtype)]
            return f"{name} was loaded as {dtypes[0]} and cast to {dtypes[1]}; load with dtype={dtypes[1]!r} instead"
    if contents:
        found = hash_all([(tensor, tensor.dtype) for tensor in now.values()])
        for (name, tensor), digest in zip(now.items(), found, strict=True):
            if loaded[name][1][tensor.dtype] != digest:
                return f"{name} no longer has the weights that were loaded"
    return None


def tensors_of(backbone: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name."""
    return dict((*backbone.named_parameters(), *backbone.named_buffers()))


def hash_all(tensors: list[tuple[Tensor, torch.dtype]]) -> list[bytes]:
    """The sha256 of every tensor's bytes in a dtype."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
        return list(pool.map(lambda pair: sha256_of_tensor(*pair), tensors))


def sha256_of_tensor(tensor: Tensor, dtype: torch.dtype) -> bytes:
    """The hash of a tensor's bytes, rounded to the dtype."""
    return hashlib.sha256(tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()).digest()


# ---- one encoder in several models ----------------------------------------------------------------------------------


def share(backbone: PreTrainedModel) -> PreTrainedModel:
    """The same weights in another encoder: own modules and `Parameter`s over the same storage.

    So neither mode, dtype, device, gradients, attention kernel nor hooks of the one are the other's: a cast or a move
    gives the one that asked a copy.
    """
    with torch.device("meta"):
        shared = build_backbone(copy.deepcopy(backbone.config), getattr(backbone, "pooler", None) is not None)
    for name, parameter in backbone.named_parameters():
        place, leaf = parent_of(shared, name)
        place._parameters[leaf] = nn.Parameter(parameter.detach(), requires_grad=False)
    for name, buffer in backbone.named_buffers():
        place, leaf = parent_of(shared, name)
        place._buffers[leaf] = buffer.detach()
    shared.identity = getattr(backbone, "identity", None)
    backbone.shared_storage = shared.shared_storage = next(backbone.parameters()).data_ptr()
    return shared


def is_shared(backbone: PreTrainedModel) -> bool:
    """Whether another model may use the very same storage; a copy, a cast or a move ends that."""
    return getattr(backbone, "shared_storage", None) == next(backbone.parameters()).data_ptr()


def parent_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and the tensor's name in it."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


# ---- what a model was built from -------------------------------------------------------------------------------------


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
    if "both" in (poolings := {stored.exit_pooling, wanted.exit_pooling}) and len(poolings) > 1:
        refuse("exit_pooling", wanted.exit_pooling, f"{stored.exit_pooling!r}, as in the checkpoint: it reads as much")
    shape = shape_of(wanted.encoder_config())
    for name, was in shape_of(stored.encoder_config()).items():
        if shape.get(name) != was:
            refuse(name, shape.get(name), f"{was!r}, as in the checkpoint")
    for name in FIXED:
        if name == "lte_shared" and not wanted.use_lte or name == "train_pooler" and wanted.exit_pooler != "backbone":
            continue
        was, value = getattr(stored, name), getattr(wanted, name)
        if value != was:
            refuse(name, value, f"{was!r}, as in the checkpoint: its weights fit no other")
    for name in REMOVABLE:
        if getattr(wanted, name) and not getattr(stored, name):
            refuse(name, True, "False, as in the checkpoint: it has no weights for them")
    if wanted.adapter_only and not stored.adapter_only:
        refuse("adapter_only", True, "False, as in the checkpoint: it holds its encoder")
    check_exit_layers(stored, wanted)


def check_exit_layers(stored: PreTrainedConfig, wanted: PreTrainedConfig) -> None:
    """Refuse exits at layers for which the checkpoint has no head."""
    had, layers = stored_depths(stored), stored_depths(wanted)
    everywhere = stored.exit_shared and not parts_per_exit(stored)
    if not everywhere and (missing := sorted(set(layers) - set(had))):
        refuse("exit_layers", wanted.exit_layers, f"out of {had}, where the checkpoint has exits: not {missing}")


def loadable(stored: PreTrainedConfig, wanted: PreTrainedConfig) -> PreTrainedConfig:
    """The config under which every weight of the checkpoint finds its place, else like `wanted`."""
    config = copy.deepcopy(wanted)
    config.adapter_only = stored.adapter_only
    if set(stored_depths(wanted)) <= set(stored_depths(stored)):
        config.exit_layers = stored.exit_layers
    return config


def stored_depths(config: PreTrainedConfig) -> list[int]:
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
    own, left_out = model.state_dict().keys(), set(model._keys_to_ignore_on_save or ())  # read from the base
    for part in ("depths", "exits", "prompts", "token_exits"):
        given = {name for name in state_dict if name.startswith(f"{part}.")}
        if given and (odd := (given ^ {name for name in own if name.startswith(f"{part}.")}) - left_out):
            place = "this model has none" if min(odd) in given else "they lack one this model has"
            raise ValueError(f"state_dict: its {part} are those of a model of another config: {min(odd)}, {place}.")


def keep_exits(model: nn.Module, layers: list[int]) -> None:
    """Leave a model the exits after these layers, each with all it had."""
    if layers == model.exit_depths:
        return
    if model.exits is not None:
        model.exits.keep([model.exit_depths.index(layer) for layer in layers])
    model.exit_depths = list(layers)


def drop_measured(stored: PreTrainedConfig, wanted: PreTrainedConfig, given: Iterable[str]) -> None:
    """Take out of `wanted` what was measured or set for exits or heads that it no longer has, with a warning.

    Args:
        given: fields that were set for this load; they are left as they are.
    """
    leave_behind(wanted, wanted.weights_sha256 and stored.weights_sha256)
    had, layers = stored_depths(stored), stored_depths(wanted)
    gone, new_heads = set(had) - set(layers), wanted.num_labels != stored.num_labels
    if layers == had and not new_heads:
        return
    dropped: dict[str, Any] = {}
    if wanted.operating_points:
        dropped["operating_points"] = {}
    if wanted.exit_threshold is not None and (new_heads or isinstance(wanted.exit_threshold, list)):
        dropped["exit_threshold"] = None
    if wanted.exit_appointed_layer in gone:
        dropped["exit_appointed_layer"] = None
        stops_there = "appointed_layer" in configured_policy(wanted).stated()
        dropped |= {"exit_criterion": None} if stops_there else {}
    if gone & {layer for group in wanted.exit_groups or () for layer in group}:
        dropped["exit_groups"] = None
    if new_heads:  # one value for each class that was
        dropped |= {"class_weights": None, "pos_weight": None, "exit_label_thresholds": None}
    if new_heads and wanted.problem_type == (SINGLE_LABEL if wanted.num_labels == 1 else REGRESSION):
        dropped["problem_type"] = None
    dropped = {
        name: value for name, value in dropped.items()
        if name not in given and getattr(wanted, name) == getattr(stored, name) != value
    }  # fmt: skip
    for name, value in dropped.items():
        setattr(wanted, name, value)
    if dropped:
        logger.warning(
            f"{', '.join(dropped)}: left behind, since they were measured or set for "
            f"{'heads' if new_heads else 'exits'} that this model no longer has."
        )


# ---- what was certified ----------------------------------------------------------------------------------------------


def note_certified(model: nn.Module) -> None:
    """Note the weights of a model that was loaded with certificates, so that others are told from them."""
    if any("certificate" in point for point in model.config.operating_points.values()):
        identity = identity_of(tensors_of(model), None, rounded=False)
        model.certified_on = stamps(model), identity.tensors


def as_certified(model: nn.Module, request: Any) -> Any:
    """A call's policy as it is; refuses the name of an operating point that was certified on other weights."""
    point = model.config.operating_points.get(request, {}) if isinstance(request, str) else {}
    if "certificate" not in point or is_recorded(next(model.parameters())):
        return request
    dtype = str(model.dtype).removeprefix("torch.")
    if (certified := point["certificate"].get("dtype", dtype)) != dtype:
        refuse("exit_policy", request, f"used on {certified} weights, as it was certified; these are {dtype}")
    noted, now = getattr(model, "certified_on", None), stamps(model)
    if noted is None or now == noted[0]:
        return request
    if changed := changes(noted[1], tensors_of(model), contents=True):
        refuse("exit_policy", request, f"used on the weights that were certified: {changed}; its fields in a dict "
               "promise nothing")  # fmt: skip
    model.certified_on = now, noted[1]
    return request


def stamps(model: nn.Module) -> list[tuple[str, int, int]]:
    """What says in no time that no tensor was touched: where each lies, and how often it was written to."""
    now = tensors_of(model).items()
    return [(name, each.data_ptr(), 0 if each.is_inference() else each._version) for name, each in now]
