"""Certificates are bound to the weights they were made on: with others they are left behind or refused.

What a certificate promises, and how one is made, is no part of a model: `evaluation.certificates`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from .identity import changes, identity_of, tensors_of
from .validation import is_recorded, refuse

logger = logging.get_logger(__name__)

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


# ---- a loaded model --------------------------------------------------------------------------------------------------


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


def check_arithmetic(model: nn.Module, name: str, certified: str | None) -> None:
    """Refuse a certified point, by its name, where weights or what autocast makes of them are of another dtype."""
    dtype, kind = str(model.dtype).removeprefix("torch."), model.device.type
    if certified not in (None, dtype):
        refuse("exit_policy", name, f"used on {certified} weights, as it was certified; these are {dtype}")
    if torch.is_autocast_enabled(kind) and (cast := torch.get_autocast_dtype(kind)) != model.dtype:
        within = str(cast).removeprefix("torch.")
        refuse("exit_policy", name, f"used on {dtype} weights outside autocast to {within}, as it was certified")


def stamps(model: nn.Module) -> list[tuple[str, int, int]]:
    """What says in no time that no tensor was touched: where each lies, and how often it was written to."""
    now = tensors_of(model).items()
    return [(name, each.data_ptr(), 0 if each.is_inference() else each._version) for name, each in now]
