"""Certificates are bound to the weights they were made on: with others they are left behind, and this is said.

What a certificate promises, and how one is made, is no part of a model: `evaluation.certificates`.
"""

import re
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

TITLE = "## What is certified"  # of a card's section
SECTION = re.compile(rf"^{re.escape(TITLE)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def made_on_others(points: dict[str, dict[str, Any]], hashes: dict[str, str] | None) -> list[str]:
    """The operating points whose certificates are of other weights than those with these hashes, or of unknown ones."""
    bound = {name: point.get("certificate", {}).get("weights_sha256") for name, point in points.items()}
    return [name for name, made_on in bound.items() if made_on and made_on != hashes]


def leave_behind(config: PreTrainedConfig, hashes: dict[str, str] | None) -> list[str]:
    """Take the operating points that were certified on other weights out of a config, with a warning; their names."""
    if names := made_on_others(config.operating_points, hashes):
        config.operating_points = {name: each for name, each in config.operating_points.items() if name not in names}
        logger.warning(
            f"{', '.join(names)}: left behind, since these weights are not known to be those that were certified. "
            "The exit rule stays and promises nothing; `pfberxit certify` makes a new certificate."
        )
    return names


def warn_of_training(config: PreTrainedConfig) -> None:
    """Say, once, that a model which is trained further will not keep its certificates."""
    if names := [name for name, point in config.operating_points.items() if "certificate" in point]:
        logger.warning_once(
            f"{', '.join(names)}: a certificate speaks of the weights it was made on. This model is trained further; "
            "where it is saved, its certificates are left behind."
        )
