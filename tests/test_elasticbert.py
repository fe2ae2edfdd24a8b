"""ElasticBERT's two ways to be used: its published checkpoints with an exit at every layer, and cut off at one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import Hub, read_folder
from safetensors.torch import load_file, save_file
from tiny import HIDDEN, LAYERS, save_backbone, tiny_batch, tiny_config, tiny_model
from transformers import BertModel

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.training import from_elasticbert, truncate

BATCH = tiny_batch(6, longest=11)
TRUNCATED = ["bert", "albert", "distilbert", "electra"]
PARTS = {
    "own poolers": {"exit_pooler": "own", "exit_pooling": "cls"},
    "the encoder's pooler": {"exit_pooler": "backbone"},
    "a trained copy of it": {"exit_pooler": "backbone", "train_pooler": True},
    "one exit for all": {"exit_shared": True, "exit_pooler": "own"},
    "lte heads": {"use_lte": True, "lte_shared": False},
    "prototypes": {"use_prototypes": True},
    "learned weights": {"exit_weights": "learned", "exit_layers": None},
    "bypasses": {"adapter_placement": "bypass"},
    "conv adapters": {"adapter_sublearner": "conv", "adapter_placement": "both"},
    "prompts": {"prompt_generator": "appg", "prompt_layer": 2, "prompt_dim": 8},
    "token exits": {"token_exits": True},
}


# ---- published checkpoints ------------------------------------------------------------------------------------------


def published(
    folder: Path, prefix: str = "elasticbert.", leave_out: tuple[str, ...] = (), old_names: bool = False
) -> tuple[BertModel, torch.nn.ModuleList]:
    """A checkpoint as ElasticBERT publishes them, and the stock BERT and the poolers it is made of."""
    torch.manual_seed(3)
    bert = BertModel(tiny_config("bert"), add_pooling_layer=False).eval()
    poolers = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(LAYERS))
    weights = {name: value.clone() for name, value in bert.state_dict().items()}
    for number, pooler in enumerate(poolers):
        weights |= {f"encoder.pooler.{number}.dense.{name}": value for name, value in pooler.state_dict().items()}
    weights["embeddings.position_ids"] = torch.arange(80)[None]
    if old_names:
        new_old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in new_old.items():
            weights = {name.replace(new, old): value for name, value in weights.items()}
    weights = {prefix + name: value for name, value in weights.items() if name not in leave_out}
    weights["cls.predictions.bias"] = torch.zeros(120)
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    config = {
        "architectures": ["ElasticBertForPreTraining"], "model_type": "elasticbert", "max_output_layers": LAYERS,
        "num_output_layers": 1, "gradient_checkpointing": False, "vocab_size": 120, "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 80,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return bert, poolers


@torch.no_grad()
def check_exits(model: PFBerxitForSequenceClassification, bert: BertModel, poolers: torch.nn.ModuleList) -> None:
    """Every exit reads the first token of its layer through the pooler published for that layer."""
    states, found = bert(**BATCH, output_hidden_states=True).hidden_states, model(**BATCH).exit_logits
    assert found.shape[1] == len(model.exit_depths)
    for exit, depth in enumerate(model.exit_depths):
        expected = model.exits.classifiers[exit](torch.tanh(poolers[depth - 1](states[depth][:, 0])))
        torch.testing.assert_close(found[:, exit], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("old_names", [False, True], ids=["weight", "gamma"])
@pytest.mark.parametrize("prefix", ["elasticbert.", "bert.", ""])
def test_a_published_checkpoint_is_a_stock_bert_with_a_pooler_at_every_layer(tmp_path, prefix, old_names):
    bert, poolers = published(tmp_path / "elasticbert", prefix, old_names=old_names)
    model = from_elasticbert(tmp_path / "elasticbert", num_labels=3)
    assert model.config.encoder_config().model_type == "bert"
    assert model.exit_depths == [1, 2, 3, 4, 5, 6]
    check_exits(model, bert, poolers)


def test_it_comes_as_the_system_and_the_knobs_say(tmp_path):
    published(tmp_path / "elasticbert")
    model = from_elasticbert(str(tmp_path / "elasticbert"), num_labels=4, exit_weights="depth", exit_threshold=0.2)
    config = model.config
    assert (config.system, config.num_labels, config.exit_weights) == ("elasticbert", 4, "depth")
    assert (config.train_backbone, config.gradient_equilibrium, config.exit_criterion) == (True, True, "entropy")
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()(**BATCH, labels=torch.arange(6) % 4).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_exits_at_some_layers_have_the_poolers_of_those_layers(tmp_path):
    bert, poolers = published(tmp_path / "elasticbert")
    model = from_elasticbert(tmp_path / "elasticbert", exit_layers=[2, 5])
    assert model.exit_depths == [2, 5, 6]
    check_exits(model, bert, poolers)


@torch.no_grad()
def test_it_is_saved_and_loads_back_whole(tmp_path):
    published(tmp_path / "elasticbert")
    model = from_elasticbert(tmp_path / "elasticbert")
    model.save_pretrained(tmp_path / "saved")
    loaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded(**BATCH).exit_logits, model(**BATCH).exit_logits)


def test_it_loads_from_the_hub_and_from_shards(tmp_path, hub: Hub):
    bert, poolers = published(tmp_path / "elasticbert")
    hub.commit("acme/elasticbert", read_folder(tmp_path / "elasticbert"))
    check_exits(from_elasticbert("acme/elasticbert"), bert, poolers)
    weights = load_file(tmp_path / "elasticbert" / "model.safetensors")
    (tmp_path / "elasticbert" / "model.safetensors").unlink()
    names, places = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, tmp_path / "elasticbert" / file)
        places |= {name: file for name in part}
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / "elasticbert" / "model.safetensors.index.json").write_text(json.dumps(index))
    check_exits(from_elasticbert(tmp_path / "elasticbert"), bert, poolers)


@pytest.mark.parametrize(
    "missing",
    ["embeddings.word_embeddings.weight", "encoder.layer.4.output.dense.bias", "encoder.pooler.2.dense.weight"],
)
def test_a_missing_weight_is_named(tmp_path, missing):
    published(tmp_path / "elasticbert", leave_out=(missing,))
    name = missing.replace("encoder.pooler.2.dense", "poolers.2")
    with pytest.raises(OSError, match=f"lack.*{name}.*not ElasticBERT's layout") as caught:
        from_elasticbert(tmp_path / "elasticbert")
    assert "\n" not in str(caught.value)


def test_a_plain_bert_is_none(tmp_path):
    with pytest.raises(OSError, match="lack.*exits.poolers.*not ElasticBERT's layout"):
        from_elasticbert(save_backbone(tmp_path / "bert"))


def test_a_folder_without_safetensors_is_refused(tmp_path):
    published(tmp_path / "elasticbert")
    weights = load_file(tmp_path / "elasticbert" / "model.safetensors")
    (tmp_path / "elasticbert" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "elasticbert" / "pytorch_model.bin")
    with pytest.raises(OSError, match="no model.safetensors.*Convert them first"):
        from_elasticbert(tmp_path / "elasticbert")


# ---- the first k layers ---------------------------------------------------------------------------------------------


def larger(family: str = "bert", **knobs) -> PFBerxitForSequenceClassification:
    model = tiny_model(family, **{"num_labels": 3, "exit_layers": [2, 4, 5], **knobs})
    if model.prompts is not None:
        for parameter in model.prompts.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    if model.token_exits is not None:
        model.token_exits.depths.random_(1, LAYERS + 1, generator=torch.Generator().manual_seed(1))
    return model


@torch.no_grad()
def check_truncated(model: PFBerxitForSequenceClassification, layers: int) -> PFBerxitForSequenceClassification:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = truncate(model, layers)
    expected = model(**BATCH, exit_policy={"criterion": "appointed", "appointed_layer": layers})
    found = smaller(**BATCH)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=1e-5)
    assert found.exit_layer.tolist() == expected.exit_layer.tolist() == [layers] * len(found.logits)
    inner = model(**BATCH).exit_logits[:, : len(smaller.exit_depths)]
    torch.testing.assert_close(found.exit_logits, inner, atol=1e-6, rtol=1e-5)
    assert len(smaller.depths) == layers == smaller.config.encoder_config().num_hidden_layers
    assert smaller.exit_depths == [depth for depth in model.exit_depths if depth <= layers]
    if model.token_exits is not None:
        assert torch.equal(found.token_layers, expected.token_layers.clamp(max=layers))
    if model.exits.loss_weights is not None:
        inner = model.exits.loss_weights.theta[: len(smaller.exit_depths) - 1]
        assert torch.equal(smaller.exits.loss_weights.theta, inner)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    return smaller


@pytest.mark.parametrize("layers", [2, 5, 6])
@pytest.mark.parametrize("family", TRUNCATED)
def test_k_layers_answer_as_the_whole_model_stopping_there(family, layers):
    model = larger(family)
    smaller = check_truncated(model, layers)
    assert layers == LAYERS or smaller.num_parameters() < model.num_parameters()
    smaller.depths[0].ffn_adapter.up.weight.data.zero_()
    assert model.depths[0].ffn_adapter.up.weight.abs().sum() > 0, "it must not share weights with the larger one"


@pytest.mark.parametrize("parts", PARTS)
def test_whatever_parts_a_model_has_go_along(parts):
    model = larger(**PARTS[parts])
    check_truncated(check_truncated(model, 5), 4)


def test_tokens_that_draw_their_layer_leave_where_they_did():
    model = larger(token_exits=True)
    model.token_exits.depths.zero_()
    check_truncated(model, 4)


def test_what_was_measured_on_the_larger_model_is_left_behind(tmp_path):
    backbone = save_backbone(tmp_path / "encoder")
    model = PFBerxitForSequenceClassification.from_backbone(backbone, num_labels=3, adapter_dim=8, exit_threshold=0.3)
    model.config.operating_points = {"fast": {"threshold": 0.5, "speedup": 2.0}}
    config = truncate(model, 3).config
    assert (config.base_model_name_or_path, config.base_model_sha256, config.adapter_only) == (None, None, False)
    assert config.operating_points == {}
    assert config.exit_criterion is None
    assert model.config.operating_points["fast"]
    assert model.config.base_model_name_or_path == backbone


def test_the_dtype_stays():
    assert truncate(larger().to(torch.bfloat16), 4).dtype == torch.bfloat16


IN_A_FRESH_PROCESS = """
import json
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

differences = {}
for family, folder in json.loads(sys.argv[2]).items():
    model, wanted = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True), load_file(
        f"{folder}-wanted.safetensors"
    )
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        logits = model(input_ids=wanted["input_ids"], attention_mask=wanted["attention_mask"]).logits
    differences[family] = [len(model.depths), (logits - wanted["logits"]).abs().max().item()]
report(differences)
"""


@torch.no_grad()
def test_a_truncated_model_is_saved_and_loads_back_with_and_without_the_package(tmp_path, without_package: Callable):
    folders = {}
    for family in TRUNCATED:
        model, folder = larger(family), str(tmp_path / family)
        truncate(model, 4).save_pretrained(folder)
        wanted = model(**BATCH, exit_policy={"criterion": "appointed", "appointed_layer": 4}).logits
        loaded = PFBerxitForSequenceClassification.from_pretrained(folder)
        torch.testing.assert_close(loaded(**BATCH).logits, wanted, atol=1e-6, rtol=1e-5)
        save_file({"logits": wanted, **BATCH}, f"{folder}-wanted.safetensors")
        folders[family] = folder
    for family, (layers, difference) in without_package(IN_A_FRESH_PROCESS, json.dumps(folders)).items():
        assert (family, layers) == (family, 4)
        assert difference <= 1e-6, family


@pytest.mark.parametrize("layers", [0, 1, 3, 7])
def test_a_layer_without_an_exit_is_refused(layers):
    with pytest.raises(ValueError, match=rf"layers={layers}.*\[2, 4, 5, 6\]"):
        truncate(larger(), layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_groups": 3}, "num_hidden_groups=3"),
        ({"inner_group_num": 2}, "inner_group_num=2"),
        ({"num_hidden_groups": 3, "inner_group_num": 2}, "num_hidden_groups=3"),
    ],
)
def test_albert_groups_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        truncate(larger("albert", backbone_changes=changes), 2)
