"""Systems as they are compared: what their exits read is common to all, what it takes to train them is their own."""

from typing import Any

from ..model.backbones import num_depths
from ..model.configuration_pfberxit import PFBerxitConfig

# Every system's exits read the same thing, so that rules and training are compared and not what is read.
COMMON = {"exit_pooling": "mean", "exit_pooler": "none"}


def compared_config(system: str, backbone: str, **knobs: Any) -> PFBerxitConfig:
    """A system as it is compared: with the common reading, and late prompts with exits above the layer they join at."""
    config = PFBerxitConfig.for_system(system, backbone, **{**COMMON, **knobs})
    layers = num_depths(config.encoder_config())
    if config.prompt_generator != "none":
        config.exit_layers = list(range(config.prompt_layer + 1, layers + 1))
        config.exit_criterion = "entropy"
    return config


def token_range(config: PFBerxitConfig, goal: float) -> list[int]:
    """Lowest and highest layer for tokens, so that about the share asked for is saved.

    Frequent tokens make up most of a text and leave first, so the lowest layer settles the share.
    """
    layers = num_depths(config.encoder_config())
    low = max(1, min(layers, round(layers * (1 - goal))))
    return [low, layers]
