"""DeBERTa-v2, v3 and mDeBERTa: the stock encoder's states in every variant, constants that outlive no weight."""

from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from test_criteria_promises import setting
from test_token_first import EAGER, alone, cls_model, run, same
from tiny import CHECKPOINTING, hooked, rows_of, tiny_batch, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import AutoModel

from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model.backbones import encoder_layers
from modeling_pfberxit.model.evidence import SINGLE_LABEL
from modeling_pfberxit.model.rows import Rows, reorder

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
    torch.nn.init.normal_(model.backbone.embeddings.LayerNorm.bias)  # at first, padding is embedded as 0
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


# ---- fewer queries than keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 2, 7])
@pytest.mark.parametrize("changes", [VARIANTS["v3"], VARIANTS["v2, large"], VARIANTS["position to content alone"]])
def test_the_first_queries_get_what_they_get_among_all(changes, queries):
    _, model = stock_and_ours(changes)
    ids, mask = PADDED.values()
    rows = Rows.start(model.backbone, model.get_input_embeddings()(ids) * mask[..., None], mask)
    sublayers = model.depths[0].beside(encoder_layers(model.backbone)[0])
    whole, part = (sublayers.begin(*rows.inputs(sublayers.layer.kind), stop).output for stop in (None, queries))
    assert part.shape[1] == queries
    assert_close(part[mask[:, :queries].bool()], whole[:, :queries][mask[:, :queries].bool()], **CLOSE)


@pytest.mark.parametrize(
    ("sublearner", "placement"), [("mlp", "ffn"), ("conv", "both"), ("self_attention", "attention"), ("mlp", "bypass")]
)
@pytest.mark.parametrize("changes", [{}, VARIANTS["v2, large"]], ids=["v3", "v2, large"])
def test_the_token_first_changes_no_answer(changes, sublearner, placement):
    model = cls_model.__wrapped__("deberta-v2", sublearner, placement, backbone_changes=changes)
    batch = tiny_batch(33, shortest=1)
    by_itself = alone(model, [{"input_ids": ids} for ids in rows_of(batch)])
    policy = setting("entropy", SINGLE_LABEL, by_itself)
    expected = replay(by_itself, policy, model.exit_depths, SINGLE_LABEL)
    assert len(set(expected[1].tolist())) >= 3
    for size in (1, 7, 33):
        same(run(model, batch, policy, EAGER, size), expected)
    rows = [{"input_ids": ids} for ids in rows_of(batch)]
    for size in (1, 8):
        output = model.predict(rows, policy, size, progress=False)
        same((output.logits, output.exit_layer), expected)


@pytest.mark.parametrize("changes", [{}, VARIANTS["v2, large"], VARIANTS["far ones share the last row"]])
def test_positions_in_another_order_keep_their_distances(changes):
    _, model = stock_and_ours(changes)
    hidden = torch.randn(3, 9, 32)
    order = torch.stack([torch.randperm(9) for _ in range(3)])
    layer = encoder_layers(model.backbone)[0]
    plain, sorted_rows = (
        Rows(model.backbone, torch.arange(3), states, None, order=places)
        for states, places in ((hidden, None), (reorder(hidden, order), order))
    )
    sublayers = model.depths[0].beside(layer)
    expected, found = (sublayers.begin(*rows.inputs(layer.kind)).output for rows in (plain, sorted_rows))
    assert_close(found, reorder(expected, order), **CLOSE)


# ---- what lasts for a call, and no longer ---------------------------------------------------------------------------


def stock_states(stock, model):
    """The last states of the stock encoder with the weights that the model has now."""
    stock = stock.to(model.dtype)
    stock.load_state_dict(model.backbone.state_dict())
    return stock(**PADDED).last_hidden_state


@torch.no_grad()
def weights_of_positions(model):
    encoder = model.backbone.encoder
    return [encoder.rel_embeddings.weight, encoder.LayerNorm.bias, *(layer.attention.self.pos_key_proj.weight
            for layer in encoder.layer), encoder.layer[2].attention.self.pos_query_proj.bias]  # fmt: skip


def by_data(model):
    for weight in weights_of_positions(model):
        weight.data.mul_(1.5).add_(0.1)


def in_place(model):
    with torch.no_grad():
        for weight in weights_of_positions(model):
            weight.mul_(1.5).add_(0.1)


def in_inference_mode(model):
    with torch.inference_mode():
        for weight in weights_of_positions(model):
            weight.mul_(1.5).add_(0.1)


def one_value(model):
    model.backbone.encoder.layer[0].attention.self.pos_key_proj.weight.data[3, 4] = 7.0


def two_rows_swapped(model):
    weight = model.backbone.encoder.layer[1].attention.self.pos_query_proj.weight
    weight.data = weight.data[torch.arange(31, -1, -1)]


def by_state_dict(model):
    other = tiny_model("deberta-v2", seed=1, backbone_changes=VARIANTS["own projections of positions"])
    model.backbone.load_state_dict(other.backbone.state_dict())


def to_double(model):
    model.double()


def by_lora(model):
    config = LoraConfig(r=4, target_modules=["pos_key_proj", "pos_query_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, model.backbone)
    with_lora = [module for module in model.backbone.modules() if isinstance(module, LoraLayer)]
    assert len(with_lora) == 12
    before = model(**PADDED).logits
    for module in with_lora:
        module.merge()
    assert_close(model(**PADDED).logits, before, **CLOSE)
    for layer in model.backbone.encoder.layer:
        for name in ("pos_key_proj", "pos_query_proj"):
            setattr(layer.attention.self, name, getattr(layer.attention.self, name).get_base_layer())


CHANGES = [by_data, in_place, in_inference_mode, one_value, two_rows_swapped, by_state_dict, to_double, by_lora]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES)
def test_no_constant_outlives_a_weight(change, mode):
    stock, model = stock_and_ours(VARIANTS["own projections of positions"])
    twin, tokens = deepcopy(model), PADDED["attention_mask"].bool()
    with mode():
        before = model(**PADDED, output_hidden_states=True).hidden_states[-1]
    change(model)
    with mode():
        found = model(**PADDED, output_hidden_states=True).hidden_states[-1]
        expected = stock_states(stock, model)
        assert_close(found[tokens], expected[tokens], **CLOSE)
        assert change is to_double or not torch.allclose(found, before, atol=1e-4)
        assert torch.equal(twin(**PADDED, output_hidden_states=True).hidden_states[-1], before)


@contextmanager
def projections(model):
    """How many rows of the table each layer's `pos_key_proj` is given, while the model runs: a list per layer."""
    linear = [layer.attention.self.pos_key_proj for layer in model.backbone.encoder.layer]
    counts = {module: [] for module in linear}
    with hooked(linear, before=lambda module, inputs: counts[module].append(inputs[0].shape[:-1].numel())):
        yield list(counts.values())


def test_a_call_projects_the_distances_that_occur_once_for_every_layer():
    changes = {**VARIANTS["own projections of positions"], "position_buckets": 64, "max_position_embeddings": 512}
    model = tiny_model("deberta-v2", backbone_changes=changes)
    with projections(model) as counts:
        model(**tiny_batch(4, longest=13, shortest=13))
    assert counts == [[27]] * 6  # of -13 ... 13
    with projections(model) as counts:
        model(**tiny_batch(4, longest=80, shortest=80))
    assert counts == [[128]] * 6  # all rows there are
    with projections(model) as counts:
        model.predict([{"input_ids": torch.randint(5, 100, (13,))} for _ in range(50)], batch_size=1, progress=False)
    assert counts == [[27]] * 6


@pytest.mark.parametrize("checkpointing", ["", "reentrant", "not reentrant"])
@pytest.mark.parametrize("changes", ["v3", "v2, large", "own projections of positions", "every distance its own row"])
def test_a_trained_encoder_gets_the_stock_encoders_gradients(changes, checkpointing):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    stock, model = stock_and_ours({**VARIANTS[changes], **still}, train_backbone=True)
    if checkpointing:
        options = {"use_reentrant": checkpointing == "reentrant"}
        getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": options})
    tokens = PADDED["attention_mask"].bool()
    model.train()(**PADDED, output_hidden_states=True).hidden_states[-1][tokens].sin().sum().backward()
    stock.train()(**PADDED).last_hidden_state[tokens].sin().sum().backward()
    expected = {name: weight.grad for name, weight in stock.named_parameters()}
    assert sum(gradient is not None and bool(gradient.any()) for gradient in expected.values()) > 50
    for name, weight in model.backbone.named_parameters():
        if expected[name] is not None:
            assert_close(
                weight.grad, expected[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_nothing_of_a_call_stays_on_the_model():
    model = tiny_model("deberta-v2")
    keys, held = set(model.state_dict()), {id(m): set(vars(m)) for m in model.modules()}
    model(**PADDED)
    assert set(model.state_dict()) == keys and {id(m): set(vars(m)) for m in model.modules()} == held
