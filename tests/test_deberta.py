"""DeBERTa-v2, v3 and mDeBERTa: the stock encoder's states in every variant, constants that outlive no weight."""

import pytest
import torch
from tiny import tiny_batch, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import AutoModel

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PADDED = tiny_batch(5, longest=23, shortest=2)
VARIANTS = {
    "v3": {},
    "v2, large": {"conv_kernel_size": 3, "conv_act": "gelu", "pos_att_type": "p2c|c2p"},
    "wide convolution in groups": {"conv_kernel_size": 5, "conv_groups": 4},
    "own projections of positions": {"share_att_key": False},
    "content to position alone": {"pos_att_type": ["c2p"]},
    "position to content alone": {"pos_att_type": ["p2c"], "share_att_key": False},
    "neither": {"pos_att_type": []},
    "every distance its own row": {"position_buckets": -1},
    "far ones share the last row": {"position_buckets": -1, "max_relative_positions": 6},
    "buckets up to a distance": {"position_buckets": 6, "max_relative_positions": 12},
    "table as it is": {"norm_rel_ebd": "none"},
    "absolute positions": {"relative_attention": False, "position_biased_input": True},
    "both, with token types": {"position_biased_input": True, "type_vocab_size": 2},
    "narrow embeddings": {"embedding_size": 16},
}


def stock_and_ours(changes: dict, attention: str = "sdpa", **knobs):
    model = tiny_model("deberta-v2", liven=False, attn_implementation=attention, backbone_changes=changes, **knobs)
    stock = AutoModel.from_config(tiny_config("deberta-v2", **changes)).eval()
    stock.load_state_dict(model.backbone.state_dict())
    return stock, model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_has_the_stock_encoders_states(changes, attention):
    stock, model = stock_and_ours(changes, attention)
    for batch in (PADDED, {"input_ids": PADDED["input_ids"][:1]}):
        tokens = batch.get("attention_mask", torch.ones(1, 23)).bool()
        expected = stock(**batch, output_hidden_states=True, output_attentions=True)
        found = model(**batch, output_hidden_states=True, output_attentions=attention == "eager")
        for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert_close(ours[tokens], theirs[tokens], **CLOSE)
        for ours, theirs in zip(found.attentions or (), expected.attentions):
            assert_close(ours.transpose(1, 2)[tokens], theirs.transpose(1, 2)[tokens], **CLOSE)
