"""The config answers to the names that every encoder's config has, and to none that are misspelt."""

import copy
import json
import pickle

import pytest
import torch
from tiny import CONFIGS, save_backbone, tiny_batch, tiny_config, tiny_model
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification

USUAL = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size",
    "intermediate_size", "hidden_act", "type_vocab_size", "hidden_dropout_prob", "layer_norm_eps", "initializer_range",
    "embedding_size", "dim", "n_layers",
)  # fmt: skip


@pytest.mark.parametrize("family", CONFIGS)
def test_the_encoders_fields_are_read_under_their_usual_names(family):
    stock = tiny_config(family)
    config = PFBerxitConfig.from_backbone(stock)
    for name in USUAL:
        assert getattr(config, name, "none") == getattr(stock, name, "none"), name
        assert hasattr(config, name) == hasattr(stock, name)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_they_are_stored_once(family, tmp_path):
    config = PFBerxitConfig.from_backbone(tiny_config(family))
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert not set(USUAL) & stored.keys() and not set(USUAL) & vars(config).keys()
    assert set(USUAL) & stored["backbone_config"].keys()
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.hidden_size == 32 and again.to_diff_dict() == {**config.to_diff_dict(), **stored}
    for same in (PFBerxitConfig.from_dict(config.to_dict()), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same.to_dict() == config.to_dict() and same.num_hidden_layers == 6


@pytest.mark.parametrize("family", ["modernbert", "eurobert", "bert"])
def test_an_encoder_without_an_id_for_padding_has_none_here_either(family, tmp_path):
    folder = save_backbone(tmp_path / "encoder", family, pad_token_id=None)  # its class has one beyond this vocabulary
    model = PFBerxitForSequenceClassification.from_backbone(folder).eval()
    model.save_pretrained(tmp_path / "saved")
    loaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved")
    for each in (model, loaded):
        assert each.config.pad_token_id is None and each.config.encoder_config().pad_token_id is None
        assert each.get_input_embeddings().padding_idx is None
    stock = AutoModel.from_pretrained(folder).eval()
    states = AutoModel.from_pretrained(tmp_path / "saved").eval()(**tiny_batch(3)).last_hidden_state
    mask = tiny_batch(3)["attention_mask"].bool()
    torch.testing.assert_close(states[mask], stock(**tiny_batch(3)).last_hidden_state[mask], rtol=1e-4, atol=1e-4)


def test_a_config_without_an_encoder_has_none_of_them():
    config = PFBerxitConfig()
    assert not hasattr(config, "hidden_size") and "hidden_size" not in config.to_dict()
    assert PFBerxitConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(AttributeError, match="PFBerxitConfig.*hidden_size"):
        _ = config.hidden_size


@pytest.mark.parametrize(("family", "name", "field"), [
    ("bert", "num_hidden_layers", "num_hidden_layers"), ("distilbert", "num_hidden_layers", "n_layers"),
])  # fmt: skip
def test_an_assignment_is_made_where_the_value_is_stored(family, name, field):
    config = PFBerxitConfig.from_backbone(tiny_config(family))
    setattr(config, name, 3)
    assert config.backbone_config[field] == 3 and getattr(config, name) == 3 and name not in vars(config)
    assert len(PFBerxitForSequenceClassification(config).depths) == 3


def test_on_a_live_model_it_is_refused_by_name():
    model = tiny_model(num_labels=3)
    model.config.hidden_dropout_prob = 0.3
    with pytest.raises(ValueError, match="hidden_dropout_prob=0.3.*0.1, as when the model was made"):
        model(**tiny_batch(2))


def test_at_a_load_it_acts(tmp_path):
    model = PFBerxitForSequenceClassification.from_backbone(save_backbone(tmp_path / "encoder"))
    model.save_pretrained(tmp_path / "saved")
    loaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved", attention_probs_dropout_prob=0.4)
    assert loaded.config.attention_probs_dropout_prob == 0.4


def test_a_size_beside_another_encoder_is_refused():
    config = PFBerxitConfig.from_backbone(tiny_config())
    with pytest.raises(ValueError, match="num_hidden_layers=6: must be 3, as in backbone_config"):
        PFBerxitConfig.from_dict(
            {**config.to_dict(), "backbone_config": {**config.backbone_config, "num_hidden_layers": 3}}
        )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_peft_finds_what_prompt_tuning_needs(family):
    peft = pytest.importorskip("peft")
    model, config = tiny_model(family, num_labels=3), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    tuned = peft.get_peft_model(model, config)
    assert config.token_dim == 32 and config.num_layers == 6 and config.num_attention_heads == 4
    assert tuned(**tiny_batch(2)).logits.shape == (2, 3)


# ---- names that nobody knows ----------------------------------------------------------------------------------------

MISSPELT = {
    "exit_treshold": "exit_threshold", "exit_patiance": "exit_patience", "adapter_dims": "adapter_dim",
    "threshold": "exit_threshold", "patience": "exit_patience", "label_smoothing_factor": "label_smoothing",
    "prompt_lenght": "prompt_length", "operating_point": "operating_points", "train_backbones": "train_backbone",
}  # fmt: skip
ROADS = {
    "constructor": lambda folder, **given: PFBerxitConfig(**given),
    "assignment": lambda folder, **given: [setattr(PFBerxitConfig(), *item) for item in given.items()],
    "update": lambda folder, **given: PFBerxitConfig().update(given),
    "from_dict": lambda folder, **given: PFBerxitConfig.from_dict({}, **given),
    "from_pretrained": lambda folder, **given: AutoConfig.from_pretrained(folder, **given),
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_field_is_refused_with_the_one_that_is_meant(name, road, tmp_path):
    PFBerxitConfig.from_backbone(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}'.*{MISSPELT[name]}"):
        ROADS[road](tmp_path, **{name: 1})


def test_names_of_others_are_kept():
    """What `transformers`, PEFT, `Trainer` and users put on a config of any kind."""
    names = {field for field in vars(PreTrainedConfig())} | {
        "task_specific_params", "finetuning_task", "custom_pipelines", "gradient_checkpointing", "quantization_config",
        "use_cache", "eos_token_id", "bos_token_id", "tokenizer_class", "my_note", "max_length", "tie_word_embeddings",
        "vision_config", "text_config", "rope_theta", "sep_token_id", "torch_dtype", "language", "license",
    }  # fmt: skip
    config = PFBerxitConfig.from_backbone(tiny_config())
    for name in names - {"label2id", "id2label", "quantization_config"}:
        setattr(config, name, getattr(config, name, "kept"))
    assert config.my_note == "kept"


def test_names_of_labels_are_those_of_all_numbers_from_0_on_given_either_way_round():
    encoder = tiny_config()
    config = PFBerxitConfig.from_backbone(encoder, label2id={"no": 0, "yes": 1, "perhaps": 2})
    assert config.id2label == {0: "no", 1: "yes", 2: "perhaps"} and config.num_labels == 3
    assert PFBerxitConfig.from_backbone(encoder, id2label={"1": "yes", "0": "no"}).id2label == {0: "no", 1: "yes"}
    for wrong, said in (
        ({"id2label": {1: "no", 2: "yes"}}, "id2label={1: 'no', 2: 'yes'}: must be the names of 0, 1, 2"),
        ({"id2label": {}}, "id2label=.*: must be the names of 0, 1, 2"),
        ({"id2label": ["no", "yes"]}, "id2label=.'no', 'yes'.: must be the names of 0, 1, 2"),
        ({"label2id": {"no": 1, "yes": 2}}, "id2label=.*must be the names of 0, 1, 2"),
        ({"label2id": {"no": 0, "yes": 1}, "num_labels": 3}, "num_labels=3: must be 2, as many as there are names"),
        ({"num_labels": 0}, "num_labels=0: must be a whole number >= 1"),
        ({"num_labels": "3"}, "num_labels='3': must be a whole number >= 1"),
        ({"num_labels": None}, "num_labels=None: must be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=said):
            PFBerxitConfig.from_backbone(encoder, **wrong)


def test_names_of_labels_are_read_either_way_round_at_a_load_and_checked_on_a_live_config(tmp_path):
    PFBerxitConfig.from_backbone(tiny_config(), num_labels=2).save_pretrained(tmp_path)
    for given in ({"label2id": {"no": 0, "yes": 1}}, {"id2label": {0: "no", 1: "yes"}}):
        config = AutoConfig.from_pretrained(tmp_path, **given)
        assert (config.id2label, config.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    config.id2label = {"0": "down", "1": "up"}  # as JSON has them
    assert config.id2label == {0: "down", 1: "up"}
    with pytest.raises(ValueError, match="id2label=.*: must be the names of 0, 1, 2"):
        config.id2label = {1: "no", 2: "yes"}


@pytest.mark.parametrize("value", [None, 0, "3", 2.5, True])
def test_how_many_outputs_there_are_is_a_whole_number_on_a_live_config_too(value):
    config = tiny_model(num_labels=3).config
    with pytest.raises(ValueError, match=f"num_labels={value!r}: must be a whole number >= 1"):
        config.num_labels = value
    assert config.num_labels == 3
