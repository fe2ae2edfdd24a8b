"""An encoder is known by its bytes: what it was when loaded, whether it still is that, and how two models share it."""

from __future__ import annotations

import copy
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .backbones import build_backbone

# What a tensor may have become without being another: the base, loaded again in that dtype, is the same bits.
ROUNDED = {torch.float32: (torch.bfloat16, torch.float16)}


class Identity(NamedTuple):
    """What an encoder was when it was loaded.

    Args:
        file_sha256: hash of the weights files it came from.
        tensors: of every parameter and buffer, the shape, and its sha256 in the dtype it was loaded in and in those
            that it may be rounded to.
    """

    file_sha256: str
    tensors: dict[str, tuple[torch.Size, dict[torch.dtype, bytes]]]


def identify(backbone: PreTrainedModel, file_sha256: str) -> None:
    """Note what the encoder is, as `backbone.identity`; half a second for BERT-base on two cores."""
    wanted = {
        (name, dtype): tensor
        for name, tensor in tensors_of(backbone).items()
        for dtype in (tensor.dtype, *ROUNDED.get(tensor.dtype, ()))
    }
    digests = hash_all([(tensor, dtype) for (_, dtype), tensor in wanted.items()])
    tensors = {name: (tensor.shape, {}) for name, tensor in tensors_of(backbone).items()}
    for (name, dtype), digest in zip(wanted, digests, strict=True):
        tensors[name][1][dtype] = digest
    backbone.identity = Identity(file_sha256, tensors)


def difference(backbone: PreTrainedModel, contents: bool = True) -> str | None:
    """What is no longer as it was loaded, in words; None for an encoder that still is what it was.

    Args:
        backbone: an encoder with an `identity`.
        contents: read every weight as well; without, only names, shapes and dtypes, in no time.
    """
    loaded, now = backbone.identity.tensors, tensors_of(backbone)
    # A pooler that nobody reads is left out after loading.
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
        digests = hash_all([(tensor, tensor.dtype) for tensor in now.values()])
        for (name, tensor), digest in zip(now.items(), digests, strict=True):
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
    """Whether another model may stand on the very same weights: a copy, a cast or a move ends that."""
    return getattr(backbone, "shared_storage", None) == next(backbone.parameters()).data_ptr()


def parent_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and the tensor's name in it."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
