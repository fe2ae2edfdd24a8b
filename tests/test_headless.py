"""AutoModel gives the encoder with its adapters, as the last exit reads it."""

import copy
import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIGS, enliven, tiny_batch, tiny_config, tiny_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertModel, pipeline

from modeling_pfberxit import PFBerxitForSequenceClassification, PFBerxitModel

BATCH = tiny_batch(4)
WITH_EXITS = "exits.classifiers.0.weight"


@pytest.fixture
def classifier(local_backbone) -> PFBerxitForSequenceClassification:
    torch.manual_seed(0)
    model = PFBerxitForSequenceClassification.from_backbone(local_backbone, adapter_dim=8, num_labels=3)
    enliven(model)
    return model.eval()


@pytest.fixture
def saved(classifier, tmp_path) -> str:
    classifier.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


@torch.no_grad()
def features(model) -> torch.Tensor:
    return model(**BATCH).last_hidden_state


@torch.no_grad()
def read_by_the_last_exit(model) -> torch.Tensor:
    return model(**BATCH, output_hidden_states=True).hidden_states[-1]


# ---- what it gives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_features_are_what_the_last_exit_reads(family):
    model = tiny_model(family, adapter_placement="both")
    found, bare = features(model.base_model), model.backbone(**BATCH).last_hidden_state
    torch.testing.assert_close(found, read_by_the_last_exit(model), atol=1e-6, rtol=1e-5)
    assert (found - bare).abs().max() > 0.01  # the adapters are in it


def test_a_new_one_is_the_stock_encoder(local_backbone):
    options = {"attn_implementation": "eager"}
    ours = PFBerxitModel.from_backbone(local_backbone, exit_pooler="backbone", exit_pooling="cls", **options)
    stock = AutoModel.from_pretrained(local_backbone, **options).eval()
    wanted = {**BATCH, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        found, expected = ours(**wanted), stock(**wanted)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)
    for name in ("hidden_states", "attentions"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found.last_hidden_state) and len(ours(**BATCH).to_tuple()) == 2
    assert isinstance(ours(**BATCH, return_dict=False), tuple)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_its_pooled_output_is_what_the_last_classifier_reads(pooling):
    model, seen = tiny_model(exit_pooler="backbone", exit_pooling=pooling), []
    model.exits.classifiers[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(**BATCH)
        torch.testing.assert_close(model.base_model(**BATCH).pooler_output, seen[0], atol=1e-6, rtol=1e-5)
    assert tiny_model().base_model(**BATCH).pooler_output is None


# ---- a view of the classifier ---------------------------------------------------------------------------------------


def test_base_model_is_a_view_of_the_very_modules(classifier):
    view = classifier.base_model
    assert type(view) is PFBerxitModel and view.base_model is view and view.config is classifier.config
    assert view.backbone is classifier.backbone and view.depths is classifier.depths
    assert type(view.backbone) is BertModel
    assert [name for name, _ in classifier.named_children()] == ["backbone", "depths", "exits"]
    assert {name for name, _ in view.named_parameters()} == {
        name for name, _ in classifier.named_parameters() if not name.startswith("exits.")
    }
    assert classifier.train().base_model.training and not classifier.eval().base_model.training
    assert view.get_input_embeddings() is classifier.get_input_embeddings()
    again = copy.deepcopy(classifier)
    assert again.base_model.backbone is again.backbone is not classifier.backbone


def test_base_model_has_none_of_the_classifiers_hooks_and_replaced_methods(classifier):
    classifier.register_forward_hook(lambda module, inputs, output: pytest.fail("the classifier was not called"))
    classifier.forward = lambda *args, **kwargs: pytest.fail("nor is this the view's forward")
    assert features(classifier.base_model).shape == (4, 16, 32)


def test_the_vocabulary_grows_in_both(classifier):
    classifier.resize_token_embeddings(130)
    view = classifier.base_model
    assert view.config.vocab_size == view.get_input_embeddings().num_embeddings == 130
    assert features(view).shape == (4, 16, 32)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def load_report(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def caplog_of_transformers(caplog):
    target = logging.getLogger("transformers")
    target.propagate = True
    yield caplog
    target.propagate = False


@pytest.mark.parametrize("adapter_only", [True, False])
def test_a_classifiers_checkpoint_loads_without_its_exits_and_in_silence(
    classifier, tmp_path, adapter_only, caplog_of_transformers
):
    classifier.config.adapter_only = adapter_only
    classifier.save_pretrained(tmp_path)
    assert WITH_EXITS in load_file(tmp_path / "model.safetensors")
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is PFBerxitModel and not any(info.values())
    assert "exits" not in load_report(caplog_of_transformers)
    torch.testing.assert_close(features(model), read_by_the_last_exit(classifier))


@pytest.mark.parametrize("adapter_only", [True, False])
def test_its_own_checkpoint_comes_back_and_gives_a_classifier_new_exits_with_a_warning(
    classifier, tmp_path, adapter_only, caplog_of_transformers
):
    view = classifier.base_model
    view.config.adapter_only = adapter_only
    view.save_pretrained(tmp_path)
    kinds = {name.split(".")[0] for name in load_file(tmp_path / "model.safetensors")}
    assert kinds == ({"depths"} if adapter_only else {"depths", "backbone"})
    assert torch.equal(features(AutoModel.from_pretrained(tmp_path)), features(view))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert "exits.classifiers" in load_report(caplog_of_transformers) and "MISSING" in load_report(
        caplog_of_transformers
    )
    assert torch.equal(features(again.base_model), features(view)) and len(again.exits.classifiers) == 6


def test_a_checkpoint_from_before_is_read_and_saved_anew_with_both_entries(saved, tmp_path, classifier):
    path = f"{saved}/config.json"
    with open(path) as file:
        config = json.load(file)
    assert config["auto_map"]["AutoModel"] == "modeling_pfberxit.PFBerxitModel"
    config["auto_map"]["AutoModel"] = "modeling_pfberxit.PFBerxitForSequenceClassification"
    with open(path, "w") as file:
        json.dump(config, file)
    torch.testing.assert_close(features(AutoModel.from_pretrained(saved)), features(classifier.base_model))
    AutoModelForSequenceClassification.from_pretrained(saved).save_pretrained(tmp_path / "again")
    auto_map = json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_pfberxit.PFBerxitConfig",
        "AutoModel": "modeling_pfberxit.PFBerxitModel",
        "AutoModelForSequenceClassification": "modeling_pfberxit.PFBerxitForSequenceClassification",
    }


# ---- no exits, no policy --------------------------------------------------------------------------------------------


def test_an_exit_policy_is_refused_by_name_on_every_road(saved, local_backbone):
    policy, model = {"threshold": 0.3}, AutoModel.from_pretrained(saved)
    for given in ({"exit_policy": policy}, {"exit_threshold": 0.3}):
        field = next(iter(given))
        with pytest.raises(ValueError, match=r"exit_(policy|threshold).*no exits"):
            PFBerxitModel.from_backbone(local_backbone, **given)
        with pytest.raises(ValueError, match="exit_threshold=0.3.*no exits"):
            AutoModel.from_pretrained(saved, **given)
        with pytest.raises((ValueError, TypeError), match=field):
            model(**BATCH, **given)


def test_a_stored_policy_changes_no_feature_and_is_kept_for_the_classifier(classifier, tmp_path):
    classifier.config.exit_threshold, classifier.config.exit_patience = 100.0, 1
    classifier.save_pretrained(tmp_path / "early")
    model = AutoModel.from_pretrained(tmp_path / "early")
    assert classifier(**BATCH).exit_layer.max() < 6
    torch.testing.assert_close(features(model), read_by_the_last_exit(classifier))
    model.save_pretrained(tmp_path / "features")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "features")
    assert again(**BATCH).exit_layer.max() < 6


# ---- tools that want features ---------------------------------------------------------------------------------------


@pytest.fixture
def with_tokenizer(saved, local_backbone) -> str:
    AutoTokenizer.from_pretrained(local_backbone).save_pretrained(saved)
    return saved


def test_a_feature_extraction_pipeline_gives_every_token_a_state(with_tokenizer):
    found = torch.tensor(pipeline("feature-extraction", model=with_tokenizer)("w1 w2 w3"))
    assert found.shape == (1, 5, 32)


def test_sentence_transformers_averages_the_adapted_states(with_tokenizer):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    found = sentence_transformers.SentenceTransformer(with_tokenizer, device="cpu").encode(["w1 w2 w3"])
    tokens = AutoTokenizer.from_pretrained(with_tokenizer)(["w1 w2 w3"], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(with_tokenizer)(**tokens).last_hidden_state.mean(1)
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_trains_it_for_features(with_tokenizer):
    peft = pytest.importorskip("peft")
    base = AutoModel.from_pretrained(with_tokenizer)
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query"], r=2)
    model = peft.get_peft_model(base, config)
    model(**BATCH).last_hidden_state.sum().backward()
    assert any("lora_B" in name for name, value in model.named_parameters() if value.grad is not None)


def test_gradients_reach_the_adapters_of_every_depth():
    model = PFBerxitModel.from_backbone(tiny_config(), adapter_dim=8).train()
    model(**BATCH).last_hidden_state.square().sum().backward()
    assert all(any(weight.grad is not None for weight in depth.parameters()) for depth in model.depths)
