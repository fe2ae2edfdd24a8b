"""Multiply-adds as ELUE counts them."""

import math

import pytest
import torch
from tiny import hooked, tiny_batch, tiny_config, tiny_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, BertConfig

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.evaluation.frontier import sweep
from modeling_pfberxit.evaluation.macs import adapter_macs, depth_macs, exit_macs, layer_macs, token_macs
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import SINGLE_LABEL, Evidence
from modeling_pfberxit.model.exit_policy import ExitPolicy


def test_a_layer_of_bert_base_over_128_tokens_costs_what_elue_publishes():
    assert round(layer_macs(BertConfig(), 128) / 1e6, 1) == 931.9
    albert = AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    assert layer_macs(albert, 128) == layer_macs(BertConfig(), 128)


@pytest.mark.parametrize(
    ("sublearner", "millions"), [("identity", 6.49), ("mlp", 6.62), ("conv", 6.63), ("self_attention", 8.20)]
)
def test_an_adapter_of_r_32_costs_less_than_a_hundredth_of_it(sublearner, millions):
    assert adapter_macs(PFBerxitConfig(adapter_sublearner=sublearner), 768, 128) / 1e6 == pytest.approx(
        millions, abs=0.01
    )


@pytest.mark.parametrize(("family", "size"), [
    *((family, 8) for family in ("bert", "albert", "distilbert", "electra", "mpnet", "gte", "jina_embeddings_v3")),
    ("eurobert", 8), ("eurobert", 16),
])  # fmt: skip
def test_the_linear_part_is_what_the_linear_modules_do(family, size):
    changes = {} if size == 8 else {"head_dim": size}
    model, tokens, seen = tiny_model(family, adapter_placement="none", backbone_changes=changes), 11, []

    def count(module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        seen.append(inputs[0].shape[:-1].numel() * module.in_features * module.out_features)

    inside = [m for name, m in model.backbone.named_modules() if isinstance(m, nn.Linear) and "layer" in name]
    hooks = [module.register_forward_hook(count) for module in inside]
    batch = tiny_batch(1, longest=tokens, shortest=tokens)
    model(**batch)
    for hook in hooks:
        hook.remove()
    encoder, d, heads = model.backbone.config, 32, 4
    beside = heads * 2 * tokens * tokens * (1 + size) + 2 * 2 * tokens * d  # attention and norms
    assert sum(seen) == 6 * (layer_macs(encoder, tokens) - beside)


@pytest.mark.parametrize("kinds", [["c2p"], ["p2c"], ["c2p", "p2c"], None])
def test_products_with_distances_cost_what_deberta_multiplies(kinds):
    tokens, batch, counted = 11, tiny_batch(1, longest=11, shortest=11), {}
    for relative in (True, False):
        encoder = tiny_config("deberta-v2", relative_attention=relative, pos_att_type=kinds)
        model = PFBerxitForSequenceClassification.from_backbone(encoder, adapter_placement="none").eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(**batch)
        bmm = sum(n for operation, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(operation))
        counted[relative] = bmm / 2, layer_macs(model.backbone.config, tokens)
    (seen, layer), (seen_without, layer_without) = counted[True], counted[False]
    assert seen - seen_without == 6 * (layer - layer_without) == 6 * len(kinds or ()) * tokens * 2 * tokens * 32


def linear_macs(model: torch.nn.Module, tokens: int) -> int:
    """Multiply-adds of all linear and convolution modules that run for a row of so many tokens, by their shapes."""
    seen = []

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        per_value = module.in_features if isinstance(module, nn.Linear) else math.prod(module.weight.shape[1:])
        seen.append(output.numel() * per_value)

    batch = tiny_batch(1, longest=tokens, shortest=tokens)
    with hooked([m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d))], after=count):
        model(**batch, exit_policy={"criterion": None})
    return sum(seen)


@pytest.mark.parametrize("sublearner", ["identity", "mlp", "conv", "self_attention"])
@pytest.mark.parametrize("placement", ["none", "ffn", "attention", "sequential", "both", "bypass"])
def test_adapters_and_exits_cost_what_their_modules_do(placement, sublearner):
    tokens, d, r, heads = 11, 32, 8, 2
    knobs = {"adapter_placement": placement, "adapter_sublearner": sublearner, "exit_layers": [2, 5, 6]}
    model = tiny_model("bert", exit_pooler="own", use_lte=True, lte_shared=False, num_labels=3, **knobs)
    norms = 2 * d + (2 * r + 2 * tokens * (heads + r) if sublearner == "self_attention" else 0)
    adapters = {"none": 0, "both": 12, "bypass": 3}.get(placement, 6)  # so many run, one at each place
    beside = 6 * (4 * 2 * tokens * tokens + 2 * tokens * tokens * d + 2 * 2 * tokens * d) + adapters * tokens * norms
    costs = depth_macs(model.config, tokens, [2, 5, 6])
    assert linear_macs(model, tokens) + beside == costs[-1]
    assert costs[3] - costs[2] == costs[1] - costs[0], "a layer without an exit costs the same everywhere"


def test_a_token_that_left_costs_its_key_and_value_alone():
    encoder, d = tiny_config("bert"), 32
    stay, leave = torch.tensor([[6, 6, 6, 6]]), torch.tensor([[6, 2, 6, 6]])
    after = 4 * (layer_macs(encoder, 4) - layer_macs(encoder, 4, queries=3))
    assert int(token_macs(encoder, stay) - token_macs(encoder, leave)) == after
    # a query and an output projection, one line of attention, the feed-forward network, two norms
    assert after == 4 * (2 * d * d + 4 * 2 * 4 + 2 * 4 * d + 2 * d * 64 + 2 * 2 * d)
    assert int(token_macs(encoder, torch.tensor([[6, 6, 6, 6, 0, 0]]))) == int(token_macs(encoder, stay)), (
        "padding is free"
    )


@pytest.mark.parametrize("family", ["bert", "albert-groups"])
@pytest.mark.parametrize(
    "knobs",
    [
        {"adapter_placement": "both"},
        {"adapter_placement": "bypass", "adapter_sublearner": "self_attention"},
        {"use_lte": True},
    ],
)
def test_rows_of_many_lengths_cost_what_each_costs_layer_by_layer(family, knobs):
    config = PFBerxitConfig.from_backbone(tiny_config(family), adapter_dim=8, **knobs)
    encoder, depths, lengths = config.encoder_config(), [2, 5, 6], torch.tensor([3, 16, 3, 1, 80])
    beside = {"both": 2, "bypass": 0}.get(config.adapter_placement, 1)
    found = depth_macs(config, lengths, depths)
    assert found.shape == (5, 1 + 6 * (2 if family == "albert-groups" else 1))
    for tokens, costs in zip(lengths.tolist(), found.tolist(), strict=True):
        spent = [0]
        for depth in range(1, len(costs)):
            layer = layer_macs(encoder, tokens) + beside * adapter_macs(config, 32, tokens)
            spent.append(spent[-1] + layer + (exit_macs(config, 32, tokens) if depth in depths else 0))
        assert costs == spent


def test_the_encoder_s_shape_is_looked_up_once_however_many_settings_are_priced(monkeypatch):
    config, asked = PFBerxitConfig.from_backbone(tiny_config("bert")), []
    lengths, depths, original = torch.tensor([4, 9, 30]), [2, 4, 6], PFBerxitConfig.encoder_config
    kept = Recording(Evidence(torch.randn(3, 3, 2)), lengths, torch.tensor([0, 1, 1]), depths, SINGLE_LABEL)
    monkeypatch.setattr(PFBerxitConfig, "encoder_config", lambda self: asked.append(1) or original(self))
    points = sweep(kept, [ExitPolicy("appointed", appointed_layer=depth) for depth in depths], "accuracy", config)
    assert len(asked) == 1
    costs = depth_macs(config, lengths, depths)
    for point, depth in zip(points, depths, strict=True):
        assert point.macs == pytest.approx((costs[:, depth].sum() / costs[:, 6].sum()).item())
