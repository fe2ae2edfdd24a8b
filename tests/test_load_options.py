"""Options of a load and of a save act or are refused by name, on every road into the model."""

import copy
import json

import pytest
import torch
from tiny import LAYERS, enliven, save_backbone, tiny_batch, tiny_config
from train_script import tiny_data
from transformers import AutoModelForSequenceClassification, BertModel, Trainer, TrainingArguments

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.blueprint import BUILT_FROM

LABELS, BATCH = 3, tiny_batch(4)
NAMES = {"no": 0, "maybe": 1, "yes": 2}


def by_class(folder, **options):
    return PFBerxitForSequenceClassification.from_pretrained(folder, **options)


def by_auto(folder, **options):
    return AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **options)


def by_config(folder, **fields):
    config = PFBerxitConfig.from_pretrained(folder, **fields)
    return PFBerxitForSequenceClassification.from_pretrained(folder, config=config)


ROADS = [by_class, by_auto, by_config]


def new_model(backbone: str, **knobs) -> PFBerxitForSequenceClassification:
    torch.manual_seed(0)
    model = PFBerxitForSequenceClassification.from_backbone(backbone, num_labels=LABELS, adapter_dim=8, **knobs)
    enliven(model)
    if model.exits.loss_weights is not None:
        torch.nn.init.normal_(model.exits.loss_weights.theta)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, local_backbone):
    """A checkpoint with an exit at every layer, thresholds for them and a measured point. Not to be changed."""
    model, folder = new_model(local_backbone), tmp_path_factory.mktemp("saved")
    model.config.exit_threshold = [0.1 * number for number in range(LAYERS)]
    model.config.operating_points = {"fast": {"threshold": 0.3, "patience": 1}}
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def evidence(model) -> list[torch.Tensor]:
    """Of every exit: logits, LTE scores and distances, where there are any."""
    output = model(**BATCH, exit_policy={"criterion": None})
    kinds = [output.exit_logits, output.exit_lte, output.exit_distances]
    return [kind for kind in kinds if kind is not None]


# ---- what the weights fit -------------------------------------------------------------------------------------------

PARTS = {
    "heads": {},
    "own": {"exit_pooler": "own", "use_lte": True, "lte_shared": False, "use_prototypes": True},
    "shared": {"exit_shared": True, "exit_pooler": "own", "use_lte": True},
    "bypass": {"adapter_placement": "bypass", "exit_weights": "learned"},
}


@pytest.mark.parametrize(
    "layers, road", [([2, 4, 6], by_class), ([3], by_auto), ([2, 3, 4, 5, 6], by_config), ([6], by_class)]
)
@pytest.mark.parametrize("parts", PARTS)
def test_exits_that_are_asked_for_are_found_by_their_layer(tmp_path_factory, local_backbone, parts, layers, road):
    folder = tmp_path_factory.getbasetemp() / f"parts-{parts}"
    model = new_model(local_backbone, **PARTS[parts])
    if not folder.exists():
        model.save_pretrained(folder)
    fewer = road(folder, exit_layers=layers)
    depths = sorted({*layers, LAYERS})
    assert fewer.exit_depths == depths and fewer.config.exit_layers == layers
    for kept, all_of_it in zip(evidence(fewer), evidence(model), strict=True):
        assert torch.equal(kept, all_of_it[:, [depth - 1 for depth in depths]])
    if model.exits.loss_weights is not None:
        inner = model.exits.loss_weights().detach()[[depth - 1 for depth in depths[:-1]]]
        assert torch.equal(fewer.exits.loss_weights().detach()[:-1], inner)


def test_a_model_of_fewer_exits_is_saved_as_one(saved, tmp_path):
    fewer = by_class(saved, exit_layers=[2, 4])
    fewer.save_pretrained(tmp_path)
    assert by_class(tmp_path).exit_depths == [2, 4, 6]
    assert all(map(torch.equal, evidence(by_class(tmp_path)), evidence(fewer)))


@pytest.mark.parametrize("road", ROADS)
def test_an_exit_the_checkpoint_has_no_head_for_is_refused(tmp_path, local_backbone, road):
    new_model(local_backbone, exit_layers=[2, 4]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"exit_layers=\[2, 3\].*\[2, 4, 6\].*not \[3\]"):
        road(tmp_path, exit_layers=[2, 3])


UNFIT = {
    "exit_shared": True, "exit_pooler": "own", "adapter_dim": 16, "adapter_placement": "both",
    "adapter_layer_norm": "out", "adapter_sublearner": "conv", "adapter_num_heads": 2, "adapter_conv_kernel": 5,
    "use_lte": True, "use_prototypes": True, "prompt_generator": "table", "prompt_dim": 4, "prompt_length": 4,
    "exit_layers": [1, 7], "vocab_size": 99,
}  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("field", UNFIT)
def test_a_value_the_weights_do_not_fit_is_refused_by_name(saved, field, road):
    with pytest.raises(ValueError, match=field) as error:
        road(saved, **{field: UNFIT[field]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("road", ROADS)
def test_what_judges_beside_the_answers_can_be_left_behind(tmp_path, local_backbone, road):
    model = new_model(local_backbone, use_lte=True, use_prototypes=True)
    model.save_pretrained(tmp_path)
    plain = road(tmp_path, use_lte=False, use_prototypes=False)
    assert torch.equal(evidence(plain)[0], evidence(model)[0]) and len(evidence(plain)) == 1


@pytest.mark.parametrize("road", ROADS)
def test_a_system_whose_values_the_checkpoint_lacks_is_refused_by_name(saved, road):
    with pytest.raises(ValueError, match=r"system='pabee': must be None, as in the checkpoint.*exit_criterion"):
        road(saved, system="pabee")
    assert road(saved, system="pf-berxit").config.system == "pf-berxit"


@pytest.mark.parametrize("road", ROADS)
def test_adapter_only_at_a_load_says_what_the_next_checkpoint_holds(saved, tmp_path, road):
    whole = road(saved, adapter_only=False)
    whole.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["base_model_name_or_path"] is not None
    again = by_class(tmp_path / "whole", base_model_name_or_path="nowhere")
    assert all(map(torch.equal, evidence(again), evidence(by_class(saved))))
    with pytest.raises(ValueError, match="adapter_only=True.*holds its encoder"):
        road(tmp_path / "whole", adapter_only=True)


@pytest.mark.parametrize("road", ROADS)
def test_what_was_measured_on_exits_that_are_gone_is_left_behind_with_a_warning(saved, caplog, road):
    fewer = road(saved, exit_layers=[2, 4])
    assert fewer.config.operating_points == {} and fewer.config.exit_threshold is None
    assert [record for record in caplog.records if "operating_points, exit_threshold" in record.getMessage()]
    assert by_class(saved, exit_layers=[2, 4], exit_threshold=0.4).config.exit_threshold == 0.4
    assert by_class(saved, exit_layers=list(range(1, LAYERS + 1))).config.operating_points  # all are there


def test_what_was_measured_on_other_heads_is_left_behind(tmp_path, local_backbone):
    model = new_model(local_backbone, class_weights=[1.0, 2.0, 3.0], problem_type="single_label_classification")
    model.config.exit_threshold, model.config.operating_points = 0.3, {"fast": {"threshold": 0.3}}
    model.config.exit_label_thresholds = {"LABEL_2": 0.1}
    model.save_pretrained(tmp_path)
    again = by_class(tmp_path, num_labels=1, ignore_mismatched_sizes=True).config
    assert (again.exit_threshold, again.operating_points, again.class_weights) == (None, {}, None)
    assert again.problem_type is None and again.exit_label_thresholds is None
    assert by_class(tmp_path, adapter_scaling=2.0).config.operating_points == model.config.operating_points


def test_a_new_model_from_a_checkpoints_config_has_none_of_its_operating_points(saved):
    config = PFBerxitConfig.from_pretrained(saved)
    assert PFBerxitForSequenceClassification.from_backbone(config).config.operating_points == {}


# ---- how weights are read -------------------------------------------------------------------------------------------


def from_backbone(folder, **options):
    base = json.loads((folder / "config.json").read_text())["base_model_name_or_path"]
    return PFBerxitForSequenceClassification.from_backbone(base, **options)


@pytest.mark.parametrize("road", [by_class, by_auto, from_backbone])
@pytest.mark.parametrize(
    "options, dtype",
    [
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"dtype": torch.float16}, torch.float16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"device_map": "cpu"}, torch.float32),
        ({"device_map": {"": "cpu"}, "dtype": "float64"}, torch.float64),
    ],
    ids=str,
)
def test_dtype_and_device_hold_for_encoder_adapters_and_config(saved, road, options, dtype):
    model = road(saved, **options)
    assert {(parameter.dtype, parameter.device.type) for parameter in model.parameters()} == {(dtype, "cpu")}
    assert model.config.dtype == dtype


def test_auto_takes_the_encoders_own_dtype(tmp_path):
    BertModel(tiny_config()).to(torch.bfloat16).save_pretrained(tmp_path)
    stock = BertModel.from_pretrained(tmp_path, dtype="auto")
    for dtype, wanted in ({"auto": stock.dtype, None: torch.float32}).items():
        model = PFBerxitForSequenceClassification.from_backbone(str(tmp_path), dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}


REFUSED = {
    "quantization_config": {"load_in_8bit": True}, "use_safetensors": False, "weights_only": False, "from_tf": True,
    "from_flax": True, "state_dict": {}, "tp_plan": "auto", "max_memory": {0: "1GB"}, "offload_folder": "x",
    "use_kernels": True, "device_map": {"backbone": "cpu", "exits": "cuda"}, "exit_treshold": 0.3,
    "dtype": "float8_e4m3fn",
}  # fmt: skip


@pytest.mark.parametrize("road", [by_class, by_auto, from_backbone])
@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_would_not_act_is_refused_by_name(saved, name, road):
    with pytest.raises((ValueError, TypeError), match=name) as error:
        road(saved, **{name: REFUSED[name]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, value", [("foo", 1), ("to_dict", 1), ("trust_remote_code", True), ("subfolder", "x")])
def test_an_unknown_knob_is_refused_by_name(local_backbone, name, value):
    for make in (PFBerxitConfig.from_backbone, PFBerxitForSequenceClassification.from_backbone):
        with pytest.raises(ValueError, match=name):
            make(local_backbone, **{name: value})


# ---- how a model is saved -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "10KB"}, {"save_function": torch.save}])
def test_what_is_saved_with_options_loads_and_is_checked(saved, tmp_path, options):
    by_class(saved).save_pretrained(tmp_path, **options)
    where = {"variant": options["variant"]} if "variant" in options else {}
    assert all(map(torch.equal, evidence(by_class(tmp_path, **where)), evidence(by_class(saved))))
    weights = sorted(tmp_path.glob("model*.safetensors"))[-1]
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(OSError, match=weights.name):
        by_class(tmp_path, **where)


@pytest.mark.parametrize(
    "name, value", [("safe_serialization", False), ("distributed_checkpoint", True), ("foo", 1), ("repo_id", "x")]
)
def test_an_option_a_save_would_pass_over_is_refused_before_anything_is_written(saved, tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        by_class(saved).save_pretrained(tmp_path / "new", **{name: value})
    assert not (tmp_path / "new").exists()


# ---- on a live model ------------------------------------------------------------------------------------------------

OTHER = {
    "adapter_sublearner": "conv", "adapter_placement": "both", "adapter_dim": 3, "adapter_layer_norm": "none",
    "adapter_conv_kernel": 1, "adapter_num_heads": 1, "exit_shared": True, "exit_pooler": "own", "train_pooler": True,
    "lte_shared": False, "prompt_generator": "table", "prompt_length": 3, "prompt_dim": 3, "use_lte": True,
    "use_prototypes": True, "backbone_config": {"model_type": "bert"}, "num_labels": 7, "exit_layers": [5, 6],
    "train_backbone": True, "adapter_activation": "tanh", "adapter_scaling": 3.0, "adapter_dropout": 0.5,
    "exit_pooling": "cls", "exit_pooler_dim": 3, "last_exit": "classifier", "exit_dropout": 0.5,
    "token_exits": True, "token_exit_range": [1, 2], "token_exit_seed": 9, "use_nsp": True,
}  # fmt: skip


def test_the_list_of_values_a_model_is_built_from_is_complete():
    assert set(OTHER) == set(BUILT_FROM)


@pytest.fixture(scope="module")
def live(local_backbone):
    return new_model(local_backbone)


@pytest.mark.parametrize("field", OTHER)
def test_a_value_assigned_after_the_model_was_built_is_refused_wherever_it_would_count(live, tmp_path, field):
    model = copy.deepcopy(live)
    setattr(model.config, field, OTHER[field])
    for use in (
        lambda: model(**BATCH),
        lambda: model.predict([{"input_ids": [2, 5, 3]}], progress=False),
        lambda: model.save_pretrained(tmp_path / "new"),
    ):
        with pytest.raises(ValueError, match="as when the model was made") as error:
            use()
        assert field == "backbone_config" or str(error.value).startswith(f"{field}=")
    assert not (tmp_path / "new").exists()
    setattr(model.config, field, getattr(live.config, field))
    model(**BATCH)


def test_a_value_changed_inside_is_noticed_as_well(local_backbone):
    model = new_model(local_backbone, exit_layers=[2, 4])
    model.config.exit_layers.append(5)
    with pytest.raises(ValueError, match="exit_layers"):
        model(**BATCH)


def test_values_that_are_read_at_every_call_stay_free(live):
    model = copy.deepcopy(live)
    model.config.exit_threshold, model.config.training_stage, model.config.exit_weights = 0.3, 2, "uniform"
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model(**BATCH)


def test_weights_to_learn_cannot_be_wished_for_later(live):
    model = copy.deepcopy(live)
    model.config.exit_weights = "learned"
    with pytest.raises(ValueError, match="exit_weights='learned'"):
        model(**BATCH)


def test_a_config_without_a_model_stays_free_and_serves_several(local_backbone, tmp_path):
    config = PFBerxitConfig.from_backbone(local_backbone)
    first = PFBerxitForSequenceClassification.from_backbone(config)
    config.exit_layers = [2]
    assert PFBerxitForSequenceClassification.from_backbone(config).exit_depths == [2, LAYERS]
    first.save_pretrained(tmp_path)
    assert by_class(tmp_path).exit_depths == list(range(1, LAYERS + 1))


def test_resizing_keeps_config_and_model_in_step(local_backbone, tmp_path):
    model = new_model(local_backbone, adapter_only=False)
    model.resize_token_embeddings(130, mean_resizing=False)
    model.save_pretrained(tmp_path / "whole")
    assert all(map(torch.equal, evidence(by_class(tmp_path / "whole")), evidence(model)))
    model.backbone.resize_token_embeddings(140, mean_resizing=False)
    with pytest.raises(ValueError, match="vocab_size=130.*140"):
        model.save_pretrained(tmp_path / "new")


# ---- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{"exit_layers": [2, 4]}, {"use_lte": True}, {"adapter_placement": "both"}], ids=str)
def test_resuming_with_a_model_of_another_config_is_refused(local_backbone, tmp_path, knobs):
    arguments = TrainingArguments(tmp_path, max_steps=1, save_steps=1, use_cpu=True, report_to="none")
    Trainer(new_model(local_backbone), arguments, train_dataset=tiny_data(8)).train()
    other = Trainer(new_model(local_backbone, **knobs), arguments, train_dataset=tiny_data(8))
    with pytest.raises(ValueError, match="state_dict.*another config"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- checkpoints of other kinds -------------------------------------------------------------------------------------


def plain(folder) -> str:
    return save_backbone(folder)


def decoder(folder) -> str:
    BertModel(tiny_config(is_decoder=True)).save_pretrained(folder)
    return str(folder)


def causal(folder) -> str:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)).save_pretrained(folder)
    return str(folder)


def fine_tuned(folder) -> str:
    from transformers import BertForSequenceClassification

    BertForSequenceClassification(tiny_config()).save_pretrained(folder)
    return str(folder)


def peft_adapter(folder) -> str:
    folder.mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "acme/bert"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return str(folder)


def sentence_transformer(folder) -> str:
    save_backbone(folder)
    (folder / "modules.json").write_text("[]")
    return str(folder)


def tokenizer_only(folder) -> str:
    save_backbone(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    return str(folder)


def empty(folder) -> str:
    folder.mkdir()
    return str(folder)


def run_of_a_trainer(folder) -> str:
    save_backbone(folder / "checkpoint-5")
    return str(folder)


def gguf(folder) -> str:
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")
    return str(folder)


def no_json(folder) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{")
    return str(folder)


# What it is, and what takes it, as words the message has.
AS_CHECKPOINT = {
    plain: "BertModel.*from_backbone", fine_tuned: "BertForSequenceClassification.*from_backbone",
    decoder: "a decoder", causal: "GPT2Model.*families", peft_adapter: "PEFT adapter .LORA. on 'acme/bert'.*merge",
    sentence_transformer: "sentence-transformers.*from_backbone", tokenizer_only: "tokenizer", empty: "no config.json",
    run_of_a_trainer: "checkpoint-5", gguf: "GGUF", no_json: "no JSON",
}  # fmt: skip
AS_ENCODER = {kind: words for kind, words in AS_CHECKPOINT.items() if "from_backbone" not in words}
AS_ENCODER[causal] = "GPT2Model.*supported backbone"


@pytest.mark.parametrize("kind", AS_CHECKPOINT)
def test_what_is_no_checkpoint_of_this_library_is_called_by_its_name(tmp_path, kind):
    with pytest.raises((OSError, ValueError), match=AS_CHECKPOINT[kind]) as error:
        by_class(kind(tmp_path / "other"))
    assert "\n" not in str(error.value) and str(tmp_path / "other") in str(error.value)


@pytest.mark.parametrize("kind", AS_ENCODER)
def test_what_is_no_encoder_is_called_by_its_name(saved, tmp_path, kind):
    other = kind(tmp_path / "other")
    for field, use in (
        ("backbone", lambda: PFBerxitForSequenceClassification.from_backbone(other)),
        ("base_model_name_or_path", lambda: by_class(saved, base_model_name_or_path=other)),
    ):
        with pytest.raises((OSError, ValueError), match=f"{field}=.*{AS_ENCODER[kind]}") as error:
            use()
        assert "\n" not in str(error.value) and other in str(error.value)


def test_a_checkpoint_of_this_library_is_no_encoder(saved):
    for field, use in (
        ("backbone", lambda: PFBerxitForSequenceClassification.from_backbone(str(saved))),
        ("base_model_name_or_path", lambda: by_class(saved, base_model_name_or_path=str(saved))),
    ):
        with pytest.raises(ValueError, match=f"{field}=.*checkpoint of this library.*from_pretrained"):
            use()


def test_a_config_of_another_kind_is_refused_by_name(saved):
    for use in (PFBerxitForSequenceClassification, lambda config: by_class(saved, config=config)):
        with pytest.raises(ValueError, match="config='BertConfig': must be a PFBerxitConfig; from_backbone"):
            use(tiny_config())


@pytest.mark.parametrize("load", [by_class, by_auto])
def test_fields_beside_a_config_that_is_handed_over_act_and_leave_it_as_it_was(saved, load):
    """`CrossEncoder(model_kwargs=...)` loads like that."""
    config = PFBerxitConfig.from_pretrained(saved)
    model = load(saved, config=config, exit_policy={"criterion": "patience", "patience": 3}, label2id=NAMES)
    assert (model.config.exit_criterion, model.config.exit_patience) == ("patience", 3)
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert config.to_dict() == PFBerxitConfig.from_pretrained(saved).to_dict()
    with pytest.raises(ValueError, match="exit_patience=0"):
        load(saved, config=config, exit_patience=0)
