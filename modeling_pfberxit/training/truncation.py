"""Static exits: the first k layers of a model as a smaller model (ElasticBERT's static usage)."""

import torch

from ..model.backbones import architecture, cast
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.families import family_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse


@torch.no_grad()
def truncate(model: PFBerxitForSequenceClassification, layers: int) -> PFBerxitForSequenceClassification:
    """A model of the first `layers` layers that ends in the exit there, with the same answers as stopping at it.

    It holds its own encoder (`adapter_only=False`), so it saves and loads like any other.

    Raises:
        ValueError: there is no exit at that layer, or the encoder shares layers between depths in groups.
    """
    if layers not in model.exit_depths:
        refuse("layers", layers, f"a layer with an exit: {model.exit_depths}")
    encoder = model.config.encoder_config()
    for name in ("num_hidden_groups", "inner_group_num"):
        if getattr(encoder, name, 1) > 1:
            refuse(name, getattr(encoder, name), "1: which group a layer is of depends on how many there are")
    encoder.num_hidden_layers = layers
    for name in family_of(encoder).per_layer:
        setattr(encoder, name, getattr(encoder, name)[:layers])
    config = truncated_config(model, architecture(encoder), layers)
    config._attn_implementation = model.config._attn_implementation
    smaller = type(model)(config)
    kept = model.state_dict()
    for name, value in smaller.state_dict().items():
        source = kept[name]
        if name == "exits.loss_weights.theta":
            source = source[: len(value)]
        value.copy_(source)
    return cast(smaller, model.dtype).to(model.device).eval()


def truncated_config(model: PFBerxitForSequenceClassification, encoder: dict, layers: int) -> PFBerxitConfig:
    """The model's config for the smaller encoder; operating points and hashes of the larger one are dropped."""
    values = model.config.to_diff_dict()
    for name in ("base_model_name_or_path", "base_model_revision", "base_model_sha256", "weights_sha256"):
        values[name] = None
    values |= {
        "backbone_config": encoder,
        "exit_layers": [depth for depth in model.exit_depths if depth <= layers],
        "exit_criterion": None,
        "adapter_only": False,
        "last_exit": model.config.last_exit if layers == model.exit_depths[-1] else "alike",
        "operating_points": {},
        "exit_groups": None,
        "token_exit_range": model.token_exits
        and [model.token_exits.low, model.token_exits.high],  # they draw as before
        "prompt_generator": model.config.prompt_generator if layers > model.config.prompt_layer else "none",
        "exit_min_layer": min(model.config.exit_min_layer, layers),
    }
    return type(model.config).from_dict(values)
