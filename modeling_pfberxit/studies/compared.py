"""The configs of systems as they are compared: exits read the same states, training and rules are each system's own."""

from typing import Any

from ..model.backbones import num_depths
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.positions import GENERATORS

# The same for all systems, so that rules and training are compared and not what exits read.
COMMON = {"exit_pooling": "mean", "exit_pooler": "none"}


def compared_config(system: str, backbone: str, **knobs: Any) -> PFBerxitConfig:
    """A system's config for the comparison; with late prompts, exits are above the layer that prompts join at."""
    config = PFBerxitConfig.for_system(system, backbone, **{**COMMON, **knobs})
    layers = num_depths(config.encoder_config())
    if GENERATORS[config.prompt_generator] is not None:
        config.exit_layers = list(range(config.prompt_layer + 1, layers + 1))
        config.exit_criterion = "entropy"
    return config


def token_range(config: PFBerxitConfig, goal: float) -> list[int]:
    """The lowest and the highest layer tokens exit after, so that about the share `goal` of the layers is saved.

    Frequent tokens make up most of a text and exit first, so the lowest layer decides the share.
    """
    layers = num_depths(config.encoder_config())
    low = max(1, min(layers, round(layers * (1 - goal))))
    return [low, layers]
