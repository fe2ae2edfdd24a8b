"""Weights are known by their bytes: an encoder as it was loaded, encoders that share them, what was certified on them.

Where an encoder is found and how its files are checked is in `base_encoder`. What a certificate promises, and how one
is made, is no part of a model: `evaluation.certificates`.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import build_backbone
from .validation import is_recorded, refuse

logger = logging.get_logger(__name__)

# What a tensor may be cast to without becoming another: the base, loaded in that dtype, has the same bits.
ROUNDED = {torch.float32: (torch.bfloat16, torch.float16)}


class Fingerprint(NamedTuple):
    """What a tensor was when it was loaded."""

    shape: torch.Size
    digests: dict[torch.dtype, bytes]  # its sha256 in the dtype it was loaded in, and in those it may be rounded to


class Identity(NamedTuple):
    """What an encoder was when it was loaded."""

    file_sha256: str | None  # of the weights files it came from
    tensors: dict[str, Fingerprint]  # of every parameter and buffer


def identity_of(now: Mapping[str, Tensor], file_sha256: str | None, rounded: bool = True) -> Identity:
    """What tensors are, by name, half a second for BERT-base on two cores.

    `rounded`: in the smaller dtypes as well that they may be cast to.
    """
    wanted = [(name, tensor.dtype) for name, tensor in now.items()]
    if rounded:
        wanted += [(name, dtype) for name, tensor in now.items() for dtype in ROUNDED.get(tensor.dtype, ())]
    tensors = {name: Fingerprint(tensor.shape, {}) for name, tensor in now.items()}
    digests = hash_all([(now[name], dtype) for name, dtype in wanted])
    for (name, dtype), digest in zip(wanted, digests, strict=True):
        tensors[name].digests[dtype] = digest
    return Identity(file_sha256, tensors)


def difference(backbone: PreTrainedModel, contents: bool = True) -> str | None:
    """What is no longer as it was loaded, in words; None for an encoder that still is what it was.

    Args:
        backbone: an encoder with an `identity`.
        contents: read every weight as well; without, only names, shapes and dtypes, in no time.
    """
    return changes(backbone.identity.tensors, tensors_of(backbone), contents)


def changes(loaded: Mapping[str, Fingerprint], now: Mapping[str, Tensor], contents: bool) -> str | None:
    """What differs between tensors as they were loaded and as they are, in words; None: nothing."""
    # A pooler that no exit reads is left out after loading.
    if strange := [name for name in loaded.keys() ^ now.keys() if name in now or not name.startswith("pooler.")]:
        return f"{min(strange)} was added or removed since it was loaded"
    for name, tensor in now.items():
        shape, digests = loaded[name]
        if tensor.shape != shape:
            return f"{name} is no longer of shape {tuple(shape)}"
        if tensor.dtype not in digests:
            first, dtype = (str(each).removeprefix("torch.") for each in (next(iter(digests)), tensor.dtype))
            return f"{name} was loaded as {first} and cast to {dtype}; load with dtype={dtype!r} instead"
    if contents:
        found = hash_all([(tensor, tensor.dtype) for tensor in now.values()])
        for (name, tensor), digest in zip(now.items(), found, strict=True):
            if loaded[name].digests[tensor.dtype] != digest:
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
    for name, tensor in tensors_of(backbone).items():
        path, _, leaf = name.rpartition(".")
        place, values = shared.get_submodule(path), tensor.detach()
        if isinstance(tensor, nn.Parameter):
            place._parameters[leaf] = nn.Parameter(values, requires_grad=False)
        else:
            place._buffers[leaf] = values
    shared.identity = getattr(backbone, "identity", None)
    backbone.shared_storage = shared.shared_storage = next(backbone.parameters()).data_ptr()
    return shared


def is_shared(backbone: PreTrainedModel) -> bool:
    """Whether another model may use the very same storage; a copy, a cast or a move ends that."""
    return getattr(backbone, "shared_storage", None) == next(backbone.parameters()).data_ptr()


# ---- certificates ----------------------------------------------------------------------------------------------------

TITLE = "## What is certified"  # of a card's section
SECTION = re.compile(rf"^{re.escape(TITLE)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def certified_points(config: PreTrainedConfig) -> list[str]:
    """The names of a config's operating points that have a certificate."""
    return [name for name, point in config.operating_points.items() if "certificate" in point]


def leave_behind(config: PreTrainedConfig, hashes: dict[str, str] | None) -> None:
    """Take out of a config, with a warning, what was certified on other weights than those with these hashes."""
    points = config.operating_points
    made_on = {name: point.get("certificate", {}).get("weights_sha256") for name, point in points.items()}
    if names := [name for name, weights in made_on.items() if weights and weights != hashes]:
        config.operating_points = {name: point for name, point in points.items() if name not in names}
        logger.warning(
            f"{', '.join(names)}: left behind, since these weights are not known to be those that were certified. "
            "The exit rule stays and promises nothing; `pfberxit certify` makes a new certificate."
        )


def warn_of_training(config: PreTrainedConfig) -> None:
    """Say, once, that a model which is trained further will not keep its certificates."""
    if names := certified_points(config):
        logger.warning_once(
            f"{', '.join(names)}: a certificate speaks of the weights it was made on. This model is trained further; "
            "where it is saved, its certificates are left behind."
        )


def note_certified(model: nn.Module) -> None:
    """Note the weights of a model that was loaded with certificates, so that others are told from them."""
    if certified_points(model.config):
        identity = identity_of(tensors_of(model), None, rounded=False)
        model.certified_on = stamps(model), identity.tensors


def as_certified(model: nn.Module, request: Any) -> Any:
    """A call's policy as it is; refuses the name of an operating point that was certified on other weights."""
    point = model.config.operating_points.get(request, {}) if isinstance(request, str) else {}
    if "certificate" not in point or is_recorded(next(model.parameters())):
        return request
    check_arithmetic(model, request, point["certificate"].get("dtype"))
    noted, now = getattr(model, "certified_on", None), stamps(model)
    if noted is None or now == noted[0]:
        return request
    if changed := changes(noted[1], tensors_of(model), contents=True):
        refuse("exit_policy", request, f"used on the weights that were certified: {changed}; its fields in a dict "
               "promise nothing")  # fmt: skip
    model.certified_on = now, noted[1]
    return request


def arithmetic(model: nn.Module) -> str:
    """What a model computes in now: its weights' dtype, and what autocast makes of it where that is another.

    Example: "float32"; "float32 under autocast to bfloat16".
    """
    kind, weights = model.device.type, str(model.dtype).removeprefix("torch.")
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return weights if cast == model.dtype else f"{weights} under autocast to {str(cast).removeprefix('torch.')}"


def check_arithmetic(model: nn.Module, name: str, certified: str | None) -> None:
    """Refuse a certified point, by its name, where weights or what autocast makes of them are of another dtype."""
    if certified not in (None, now := arithmetic(model)):
        refuse("exit_policy", name, f"used in {certified}, as it was certified; this model computes in {now}")


def stamps(model: nn.Module) -> list[tuple[str, int, int]]:
    """What says in no time that no tensor was touched: where each lies, and how often it was written to."""
    now = tensors_of(model).items()
    return [(name, each.data_ptr(), 0 if each.is_inference() else each._version) for name, each in now]
