"""Encoders that are not BERT-shaped: norms in front, rotated or gated halves, local layers; against stock."""

import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from test_criteria_promises import setting
from test_token_first import EAGER, PLAIN, alone, cls_model, executed, run, same
from tiny import (
    CHECKPOINTING,
    LAYERS,
    hooked,
    rows_of,
    save_backbone,
    stock_layers,
    tiny_batch,
    tiny_config,
    tiny_model,
)
from torch.testing import assert_close
from transformers import AutoModel, ModernBertConfig

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model.backbones import encoder_layers, shape_of
from modeling_pfberxit.model.encoder_layer import FULL
from modeling_pfberxit.model.evidence import SINGLE_LABEL
from modeling_pfberxit.model.execution import Execution
from modeling_pfberxit.model.families import FAMILIES
from modeling_pfberxit.training.truncation import truncate

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NEAR = {"atol": 1e-4, "rtol": 1e-4}  # states of pre-norm encoders grow from layer to layer
ROTARY = ["modernbert", "nomic_bert", "gte", "jina_embeddings_v3", "eurobert"]
PRE_NORM = ["modernbert", "eurobert"]


def stock_of(model: PFBerxitForSequenceClassification) -> torch.nn.Module:
    """The stock encoder with the same weights, its own forward pass."""
    stock = AutoModel.from_config(model.config.encoder_config()).eval()
    stock.load_state_dict(model.backbone.state_dict(), strict=False)
    return stock


# ---- rows among others ----------------------------------------------------------------------------------------------

PAIRS = [
    ("mpnet", "conv", "both"), ("nomic_bert", "mlp", "ffn"), ("gte", "self_attention", "attention"),
    ("jina_embeddings_v3", "mlp", "bypass"), ("eurobert", "conv", "sequential"), ("modernbert", "mlp", "ffn"),
    ("modernbert", "conv", "both"), ("modernbert", "self_attention", "attention"), ("modernbert", "conv", "bypass"),
    ("modernbert", "mlp", "sequential"), ("modernbert", "identity", "both"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "sublearner", "placement"), PAIRS)
def test_a_row_is_answered_as_if_it_were_alone_in_any_batch_and_stream(family, sublearner, placement):
    model, batch = cls_model(family, sublearner, placement), tiny_batch(33, shortest=1)
    rows = [{"input_ids": ids} for ids in rows_of(batch)]
    by_itself = alone(model, rows)
    policy = setting("entropy", SINGLE_LABEL, by_itself)
    expected = replay(by_itself, policy, model.exit_depths, SINGLE_LABEL)
    assert len(set(expected[1].tolist())) >= 3
    for execution, size in ((PLAIN, 33), (EAGER, 33), (EAGER, 7)):
        same(run(model, batch, policy, execution, size), expected)
    streamed = model.predict(rows, policy, 4, progress=False)
    same((streamed.logits, streamed.exit_layer), expected)


# ---- norms in front -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["ffn", "attention", "both", "sequential"])
@pytest.mark.parametrize("family", PRE_NORM)
@torch.no_grad()
def test_an_adapter_reads_what_its_sublayer_reads(family, placement):
    model = tiny_model(family, adapter_placement=placement, adapter_layer_norm="none")
    ids = torch.randint(5, 100, (3, 9))
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    depth, stock = model.depths[2], stock_layers(model.backbone)[2]
    view, seen = encoder_layers(model.backbone)[2], {}
    own, mlp = (stock.attn, stock.mlp) if family == "modernbert" else (stock.self_attn, stock.mlp)
    names = ("attn_norm", "mlp_norm") if family == "modernbert" else ("input_layernorm", "post_attention_layernorm")
    norms = [getattr(stock, name) for name in names]

    def keep(module, inputs, output):
        seen[module] = output[0] if isinstance(output, tuple) else output

    with hooked([own], after=keep):  # the stock layer itself, on what ours read
        kind = () if family == "eurobert" else (view.kind,)
        rotary = model.backbone.rotary_emb(states[2], torch.arange(9)[None], *kind)
        far = (torch.arange(9)[:, None] - torch.arange(9)).abs() > 4
        mask = None if family == "eurobert" or view.kind == FULL else ~far[None, None]
        stock(states[2], attention_mask=mask, position_embeddings=rotary)
    x, y = states[2], seen[own]
    a = x + y
    if depth.attention_adapter is not None:
        a = a + depth.attention_adapter(y if placement == "sequential" else norms[0](x))
    h = a + mlp(norms[1](a))
    if depth.ffn_adapter is not None:
        h = h + depth.ffn_adapter(norms[1](a))
    assert_close(states[3], h, **NEAR)


@pytest.mark.parametrize("family", PRE_NORM)
@torch.no_grad()
def test_every_exit_reads_the_states_through_the_final_norm(family):
    model, batch = tiny_model(family, exit_pooling="cls", num_labels=3), tiny_batch(5)
    output = model(**batch, output_hidden_states=True)
    norm = model.backbone.final_norm if family == "modernbert" else model.backbone.norm
    for number, classifier in enumerate(model.exits.classifiers):
        states = output.hidden_states[number + 1][:, 0]
        read = states if number + 1 == LAYERS else norm(states)  # the last are behind it already, as in stock outputs
        assert_close(output.exit_logits[:, number], classifier(read), **NEAR)
    assert_close(model.base_model(**batch).last_hidden_state, output.hidden_states[-1])


# ---- rotated positions and local layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ROTARY)
@torch.no_grad()
def test_positions_that_are_given_turn_as_in_the_stock_encoder(family):
    model, batch = tiny_model(family, liven=False), tiny_batch(4, shortest=16)
    positions = torch.arange(16).mul(3).expand(4, -1)
    found = model(**batch, position_ids=positions, output_hidden_states=True).hidden_states[-1]
    plain = model(**batch, output_hidden_states=True).hidden_states[-1]
    extra = {"position_ids": positions[:1]}
    assert_close(found, stock_of(model)(**batch, **extra).last_hidden_state, **NEAR)
    assert not torch.allclose(found, plain, atol=1e-2)
    hashed = tiny_model(family, token_exits=True, adapter_placement="none")  # positions are sorted row by row
    hashed.token_exits.depths.random_(1, LAYERS + 1)
    counted = hashed(**batch, position_ids=torch.arange(16).expand(4, -1))
    assert torch.equal(counted.logits, hashed(**batch).logits)
    assert not torch.allclose(counted.logits, hashed(**batch, position_ids=positions).logits, atol=1e-3)


def test_positions_beside_prompts_and_of_another_shape_are_refused():
    prompts = {"prompt_generator": "table", "prompt_layer": 2, "prompt_length": 3}
    ids = torch.randint(5, 100, (2, 6))
    with pytest.raises(ValueError, match="position_ids.*prompts have positions of their own"):
        tiny_model("modernbert", **prompts)(input_ids=ids, position_ids=torch.arange(6).expand(2, -1))
    with pytest.raises(ValueError, match=r"position_ids=\(3, 6\).*\(2, 6\)"):
        tiny_model("modernbert")(input_ids=ids, position_ids=torch.arange(6).expand(3, -1))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_longest_row_are_refused(kind):
    config = tiny_config("nomic_bert")
    config.rope_parameters = {**config.rope_parameters, "rope_type": kind}
    with pytest.raises(ValueError, match=f"rope_type='{kind}'"):
        PFBerxitForSequenceClassification.from_backbone(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_local_layers_see_as_far_as_the_stock_ones_in_rows_of_any_length(attention):
    changes = {"local_attention": 128, "max_position_embeddings": 700}
    model = tiny_model("modernbert", liven=False, attn_implementation=attention, backbone_changes=changes)
    stock = stock_of(model)
    stock.set_attn_implementation(attention)
    for longest, shortest in ((64, 64), (65, 65), (66, 66), (130, 3), (600, 70)):
        batch = tiny_batch(3, longest, shortest=shortest)
        tokens = batch["attention_mask"].bool()
        expected = stock(**batch, output_hidden_states=True)
        for ours, theirs in zip(model(**batch, output_hidden_states=True).hidden_states, expected.hidden_states):
            assert_close(ours[tokens], theirs[tokens], **NEAR)


def test_exits_at_global_layers_is_one_value(tmp_path):
    model = tiny_model("modernbert", exit_layers="global")
    kinds = model.config.encoder_config().layer_types
    assert kinds == [FULL, "sliding_attention", "sliding_attention"] * 2
    assert model.exit_depths == [1, 4, 6]  # the last layer always has one
    model.save_pretrained(tmp_path)
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.exit_layers == "global" and again.exit_depths == [1, 4, 6]
    with pytest.raises(ValueError, match="exit_layers='global'.*no local ones"):
        tiny_model("bert", exit_layers="global")
    with pytest.raises(ValueError, match="exit_layers='globals'"):
        PFBerxitConfig(exit_layers="globals")


@pytest.mark.parametrize("family", ["modernbert", "nomic_bert"])
@torch.no_grad()
def test_in_sixteen_bits_too_frequencies_are_exact_on_every_road(family, tmp_path):
    def frequencies(model):
        return [each for name, each in model.named_buffers() if "inv_freq" in name]

    load, sixteen = PFBerxitForSequenceClassification, {"dtype": torch.bfloat16}
    model = load.from_backbone(save_backbone(tmp_path / "encoder", family), **sixteen)
    model.save_pretrained(tmp_path / "saved")
    shared = load.from_pretrained(tmp_path / "saved", backbone=model.backbone).eval()
    other = load.from_pretrained(tmp_path / "saved", dtype=torch.float32).backbone
    rounded = load.from_pretrained(tmp_path / "saved", backbone=other, **sixteen)
    stock, random = AutoModel.from_pretrained(tmp_path / "encoder"), load.from_backbone(tiny_config(family), **sixteen)
    for each in (model, shared, rounded, random, truncate(model, 4)):
        assert each.dtype == torch.bfloat16 and frequencies(each)
        assert all(map(torch.equal, frequencies(each), frequencies(stock)))
    batch = tiny_batch(2, longest=80)
    assert torch.equal(shared(**batch).exit_logits, model(**batch).exit_logits)


# ---- training -------------------------------------------------------------------------------------------------------

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "nomic_bert", "eurobert"])
def test_a_step_teaches_the_whole_encoder_the_same_with_all_short_cuts(family):
    changes = NO_DROPOUT if family in ("mpnet", "nomic_bert") else {}
    knobs = {"train_backbone": True, "exit_dropout": 0.0, "exit_pooling": "cls", "adapter_sublearner": "conv"}
    model = tiny_model(family, num_labels=3, backbone_changes=changes, adapter_placement="both", **knobs).train()
    batch, labels, steps = tiny_batch(5), torch.tensor([0, 1, 2, 1, 0]), []
    for reentrant in (None, False, True):  # how it recomputes; None: not at all, nor any other short cut
        model.zero_grad()
        if reentrant is not None:
            getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}})
        with executed(model, PLAIN if reentrant is None else Execution()):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        steps.append({name: parameter.grad for name, parameter in model.named_parameters()})
    whole, *short = steps
    taught = {name for name, gradient in whole.items() if gradient is not None and bool(gradient.any())}
    assert {name for name in whole if "norm" in name.lower() or "relative" in name} <= taught
    for name, found in ((name, each[name]) for name in taught for each in short):
        assert_close(found, whole[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


# ---- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mpnet", *ROTARY])
@torch.no_grad()
def test_a_model_with_its_encoder_is_saved_and_loaded_whole(family, tmp_path):
    model, batch = tiny_model(family, train_backbone=True, num_labels=3), tiny_batch(4)
    model.save_pretrained(tmp_path)
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**batch).exit_logits, model(**batch).exit_logits)


@pytest.mark.parametrize("family", PRE_NORM)
@torch.no_grad()
def test_the_first_layers_alone_answer_as_the_exit_above_them(family):
    model, batch = tiny_model(family, num_labels=3), tiny_batch(4)
    assert_close(truncate(model, 4)(**batch).logits, model(**batch).exit_logits[:, 3], **NEAR)


@torch.no_grad()
def test_what_is_beside_a_fused_layer_is_not_passed_over():
    model, batch = tiny_model("modernbert", num_labels=3), tiny_batch(4)
    plain = model(**batch).logits
    inject_adapter_in_model(LoraConfig(target_modules=["Wqkv"], init_lora_weights=False), model.backbone)
    assert not torch.allclose(model(**batch).logits, plain, atol=1e-3)
    fresh, tokens = tiny_model("modernbert", liven=False), batch["attention_mask"].bool()
    inject_adapter_in_model(LoraConfig(target_modules=["Wqkv"], init_lora_weights=False), fresh.backbone)
    found = fresh(**batch, output_hidden_states=True).hidden_states[-1]
    assert_close(found[tokens], fresh.backbone(**batch).last_hidden_state[tokens], **NEAR)


@pytest.mark.parametrize("family", ["nomic_bert", "gte", "jina_embeddings_v3", "eurobert"])
@torch.no_grad()
def test_heads_may_be_wider_than_their_share_of_the_states(family):
    batch, changes = tiny_batch(4), {"head_dim": 16}
    model = tiny_model(family, liven=False, backbone_changes=changes)
    stock = AutoModel.from_config(tiny_config(family, **changes)).eval()
    stock.load_state_dict(model.backbone.state_dict(), strict=False)
    found, tokens = model(**batch, output_hidden_states=True).hidden_states[-1], batch["attention_mask"].bool()
    assert_close(found[tokens], stock(**batch).last_hidden_state[tokens], **NEAR)
    assert shape_of(model.config.encoder_config()) != shape_of(tiny_config(family))


def test_every_family_names_fields_its_config_has():
    for name, family in FAMILIES.items():
        config = tiny_config(name)
        missing = [field for field, value in shape_of(config).items() if value is None]
        assert all(field not in config.__dataclass_fields__ or getattr(config, field) is None for field in missing)
        assert len(family.shape) - len(missing) >= 6, name


def test_a_config_of_an_older_modernbert_is_read():
    config = ModernBertConfig(global_attn_every_n_layers=2, num_hidden_layers=4)
    assert PFBerxitConfig.from_backbone(config, exit_layers="global").exit_depths(4) == [1, 3, 4]


LONG = """
import resource, sys, torch
from transformers import AutoModel, ModernBertConfig
from modeling_pfberxit import PFBerxitForSequenceClassification
config = ModernBertConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=3, intermediate_size=96,
                          vocab_size=99, pad_token_id=0)
ours = sys.argv[1] == "ours"
model = PFBerxitForSequenceClassification.from_backbone(config) if ours else AutoModel.from_config(config)
model.eval()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids, seen = torch.randint(5, 99, (1, 8192)), []
for tokens in (64, 4096, 8192):
    with torch.inference_mode():
        model(input_ids=ids[:, :tokens], attention_mask=torch.ones(1, tokens, dtype=torch.long))
    seen.append(peak())
print(seen[1] - seen[0], seen[2] - seen[0])
"""


@pytest.mark.slow
def test_rows_of_8192_tokens_take_no_more_memory_than_the_stock_model_s():
    def grown(model: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", LONG, model], capture_output=True, text=True, check=True)
        return [int(each) for each in done.stdout.split()]

    (half, whole), (stock_half, stock_whole) = grown("ours"), grown("stock")
    assert half < 1.1 * stock_half and whole < 1.1 * stock_whole
