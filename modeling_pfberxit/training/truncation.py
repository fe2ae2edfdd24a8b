"""Static use: the first k layers of a model as a plain smaller model (ElasticBERT's other way to be faster)."""

import torch

from ..configuration_pfberxit import architecture
from ..modeling_pfberxit import PFBerxitForSequenceClassification
from ..validation import refuse


@torch.no_grad()
def truncate(model: PFBerxitForSequenceClassification, layers: int) -> PFBerxitForSequenceClassification:
    """A model of the first `layers` layers that ends in the exit there, with the same answers as stopping at it.

    It holds its own encoder (`adapter_only=False`), so it saves and loads like any other.

    Raises:
        ValueError: there is no exit at that layer, or the encoder's layers cannot be counted off one by one.
    """
    if layers not in model.exit_depths:
        refuse("layers", layers, f"a layer with an exit: {model.exit_depths}")
    encoder = model.config.encoder_config()
    if getattr(encoder, "num_hidden_groups", 1) * getattr(encoder, "inner_group_num", 1) > 1:
        refuse(
            "num_hidden_groups", encoder.num_hidden_groups, "1: which group a layer is of depends on how many there are"
        )
    encoder.num_hidden_layers = layers
    smaller = type(model)(truncated_config(model, architecture(encoder), layers))
    kept = model.state_dict()
    for name, value in smaller.state_dict().items():
        source = kept[name]
        if name == "exits.loss_weights.theta":
            source = source[: len(value)]
        value.copy_(source.clamp(max=layers) if name == "token_exits.depths" else source)
    return smaller.to(model.device, model.dtype).eval()


def truncated_config(model: PFBerxitForSequenceClassification, encoder: dict, layers: int):
    """The model's config for the smaller encoder; what was measured on the larger one is left behind."""
    values = model.config.to_dict()
    for name in ("base_model_name_or_path", "base_model_revision", "base_model_sha256", "weights_sha256"):
        values[name] = None
    values |= {
        "backbone_config": encoder,
        "exit_layers": [depth for depth in model.exit_depths if depth <= layers],
        "exit_criterion": None,
        "adapter_only": False,
        "operating_points": {},
        "exit_groups": None,
        "token_exit_range": None,
        "exit_min_layer": min(model.config.exit_min_layer, layers),
    }
    return type(model.config).from_dict(values)
