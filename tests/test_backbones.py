"""Every family is walked layer by layer exactly as `transformers` runs it."""

import math
import re

import pytest
import torch
from tiny import CONFIGS, tiny_batch, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import AutoModel, BertConfig, GPT2Config

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.model.backbones import encoder_layers, longest_input, num_depths, table_sizes
from modeling_pfberxit.model.encoder_layer import FUSED
from modeling_pfberxit.model.execution import Execution
from modeling_pfberxit.model.families import family_of

FAMILIES = list(CONFIGS)
# Scaled, rotated or gated in another order than the stock model's: equal to rounding.
NEAR = ("mpnet", "deberta-v2", "modernbert", "nomic_bert", "gte", "jina_embeddings_v3", "eurobert")
EXACTLY = {"atol": 0.0, "rtol": 0.0}
MASKED = tiny_batch(5, longest=11)
BATCHES = {"padded": MASKED, "of one length": tiny_batch(3, longest=9, shortest=9)}


def stock_and_ours(family: str, attention: str = "sdpa", **knobs):
    model = tiny_model(family, liven=False, attn_implementation=attention, **knobs)
    model.execution = Execution(fused=False)
    own = attention if family_of(tiny_config(family)).sdpa else "eager"
    stock = AutoModel.from_config(tiny_config(family), attn_implementation=own).eval()
    stock.load_state_dict(model.backbone.state_dict(), strict=False)
    return stock, model


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_model_equals_its_backbone(family, attention, batch):
    stock, model = stock_and_ours(family, attention, num_labels=3)
    output, tokens = stock(**batch, output_hidden_states=True), batch["attention_mask"].bool()
    found = model(**batch, output_hidden_states=True).hidden_states
    assert len(found) == len(output.hidden_states) == num_depths(stock.config) + 1
    for ours, theirs in zip(found, output.hidden_states, strict=True):
        assert_close(ours[tokens], theirs[tokens], **{"atol": 1e-5, "rtol": 1e-5} if family in NEAR else EXACTLY)
    assert_close(found[-1][tokens], output.last_hidden_state[tokens], atol=1e-5, rtol=1e-5)
    model.execution = Execution()
    found = model(**batch, output_hidden_states=True).hidden_states[-1]
    assert_close(found[tokens], output.last_hidden_state[tokens], atol=1e-5, rtol=1e-5)


def test_one_activation_for_alberts_eight_operations():
    x = torch.linspace(-30, 30, 100_001, requires_grad=True)
    for spelled_out, fused in FUSED.items():
        expected, found = spelled_out()(x), fused(x)
        assert_close(found, expected, atol=2e-6, rtol=1e-6)
        gradients = [torch.autograd.grad(each.sum(), x)[0] for each in (found, expected)]
        assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_depths_that_share_a_layer_still_share_it_with_one_activation(family):
    model = tiny_model(family)
    plain, fused = encoder_layers(model.backbone), encoder_layers(model.backbone, fused=True)
    same = [[a is b for b in plain] for a in plain]
    assert same == [[a is b for b in fused] for a in fused]
    assert not any(type(layer.activation) in FUSED for layer in fused)


@pytest.mark.parametrize("placement", ["ffn", "attention", "both", "sequential", "none"])
@pytest.mark.parametrize("norm", ["in", "out", "none"])
def test_every_adapter_starts_as_nothing(placement, norm):
    stock, model = stock_and_ours("bert", adapter_placement=placement, adapter_layer_norm=norm)
    found = model(**MASKED, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(found, stock(**MASKED).last_hidden_state)


def test_a_trained_adapter_changes_the_backbones_states():
    stock, _ = stock_and_ours("bert")
    lively = tiny_model("bert")
    found = lively(**MASKED, output_hidden_states=True).hidden_states[-1]
    assert not torch.allclose(found, stock(**MASKED).last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_sdpa_and_eager_agree(family):
    model = tiny_model(family, num_labels=3)
    sdpa = model(**MASKED).exit_logits
    model.set_attn_implementation("eager")
    assert model.backbone.config._attn_implementation == "eager"
    assert_close(model(**MASKED).exit_logits, sdpa, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert"])
def test_eager_returns_the_stock_models_attentions(family):
    stock, model = stock_and_ours(family, "eager")
    found = model(**MASKED, output_attentions=True).attentions
    expected = stock(**MASKED, output_attentions=True).attentions
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_attentions_without_eager_are_refused_in_one_line():
    with pytest.raises(ValueError, match="output_attentions.*attn_implementation='eager'"):
        tiny_model("bert")(**MASKED, output_attentions=True)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_embeddings_may_be_given_instead_of_tokens(family):
    model = tiny_model(family)
    ids = torch.randint(5, 100, (3, 9))
    embeddings = model.get_input_embeddings()(ids)
    assert_close(model(inputs_embeds=embeddings).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("inputs", [{}, {"input_ids": MASKED["input_ids"], "inputs_embeds": torch.zeros(5, 11, 32)}])
def test_tokens_and_embeddings_exclude_each_other(inputs):
    with pytest.raises(ValueError, match="input_ids.*exactly one"):
        tiny_model("bert")(**inputs)


def test_token_types_reach_the_backbone():
    model = tiny_model("bert")
    second = torch.ones_like(MASKED["input_ids"])
    assert not torch.allclose(model(**MASKED).logits, model(**MASKED, token_type_ids=second).logits)


def test_albert_shares_layers_but_not_adapters():
    model = tiny_model("albert-groups")
    layers = encoder_layers(model.backbone)
    assert len(layers) == len(model.depths) == 12
    # 6 layers over 3 groups of 2 inner layers: group 0 runs at layers 0 and 1, its inner layers in turn
    assert [layers.index(layer) for layer in layers] == [0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9]
    assert len({id(depth.ffn_adapter.down.weight) for depth in model.depths}) == 12


def test_an_unsupported_architecture_is_named_with_the_supported_ones():
    with pytest.raises(ValueError, match="model_type='gpt2'.*albert, bert, roberta"):
        PFBerxitForSequenceClassification.from_backbone(GPT2Config(n_layer=2, n_embd=32, n_head=2))


def test_a_decoder_is_refused():
    with pytest.raises(ValueError, match="is_decoder.*bidirectional"):
        PFBerxitForSequenceClassification.from_backbone(BertConfig(is_decoder=True))


@pytest.mark.parametrize("change", [lambda layers: layers[:3], lambda layers: [*layers, layers[0]]])
def test_layers_that_were_added_or_removed_in_place_are_refused(change):
    model = tiny_model("bert")
    model.backbone.encoder.layer = torch.nn.ModuleList(change(model.backbone.encoder.layer))
    with pytest.raises(ValueError, match="num_hidden_layers=[37]: must be 6, as when the model was made"):
        model(**tiny_batch(2))


def test_padding_on_the_left_is_refused():
    left = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="attention_mask.*pad on the right"):
        tiny_model("bert")(input_ids=torch.randint(5, 100, (2, 4)), attention_mask=left)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask=\(2, 3\).*\(2, 4\)"):
        tiny_model("bert")(input_ids=torch.randint(5, 100, (2, 4)), attention_mask=torch.ones(2, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_may_be_as_long_as_the_stock_encoder_takes_them_and_no_longer(family):
    stock, model = stock_and_ours(family)
    most = longest_input(stock.config)
    if most == math.inf:
        ids = torch.randint(5, 100, (1, 3 * stock.config.max_position_embeddings))
        found, expected = model(input_ids=ids, output_hidden_states=True).hidden_states[-1], stock(input_ids=ids)
        assert_close(found, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
        return
    ids = torch.randint(5, 100, (1, most + 1))
    assert model(input_ids=ids[:, :most]).logits.shape == (1, 2) and stock(input_ids=ids[:, :most])
    if "position_ids" in table_sizes(model.backbone):  # else its rows end where its config says
        with pytest.raises((IndexError, RuntimeError)):
            stock(input_ids=ids)
    with pytest.raises(ValueError, match=f"input_ids='rows of {most + 1} tokens': must be at most {most} tokens"):
        model(input_ids=ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_that_have_no_embedding_are_named(family):
    model = tiny_model(family)
    ids = torch.randint(5, 100, (2, 6))
    table = table_sizes(model.backbone)
    wrong = {"input_ids": table["input_ids"], **table}
    assert set(wrong) <= {"input_ids", "position_ids", "token_type_ids"}
    for name, size in wrong.items():
        given = {"input_ids": ids, "position_ids": torch.arange(2, 8).expand(2, -1), name: ids.clone() % 2}
        model(**given)
        for far in (size, -1):
            given[name] = given[name].clone()
            given[name][1, 3] = far
            with pytest.raises(ValueError, match=f"^{name}={far}: must be from 0 to {size - 1}"):
                model(**given)


INPUTS = {
    "input_ids='torch.float32'": {"input_ids": torch.ones(2, 3)},
    "input_ids='list'": {"input_ids": ["a text"]},
    "attention_mask='list'": {**MASKED, "attention_mask": [[1, 1]]},
    "token_type_ids='list'": {**MASKED, "token_type_ids": [[0, 0]]},
    "input_ids='of shape": {"input_ids": torch.ones(3, dtype=torch.long)},
    "input_ids='of shape (0, 5)'": {"input_ids": torch.ones(0, 5, dtype=torch.long)},
    "inputs_embeds='of shape (2, 0, 32)'": {"inputs_embeds": torch.ones(2, 0, 32)},
    "token_type_ids='torch.bool'": {**MASKED, "token_type_ids": MASKED["attention_mask"].bool()},
    "position_ids='torch.float32'": {**MASKED, "position_ids": MASKED["attention_mask"].float()},
    "inputs_embeds='of shape": {"inputs_embeds": torch.ones(3, 32)},
    "inputs_embeds='rows of 81 tokens'": {"inputs_embeds": torch.ones(2, 81, 32)},
}


@pytest.mark.parametrize("start", INPUTS)
def test_inputs_that_are_no_tokens_are_named(start):
    with pytest.raises(ValueError, match=f"^{re.escape(start)}.*must be"):
        tiny_model("bert")(**INPUTS[start])
