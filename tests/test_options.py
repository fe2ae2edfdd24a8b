"""Every option acts or is refused by name, whatever road it takes into the model."""

from typing import Any

import pytest
import torch
from tiny import enliven, tiny_batch, tiny_config
from train_script import new_trainer, tiny_data
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    TextClassificationPipeline,
    ZeroShotClassificationPipeline,
    pipeline,
)

from modeling_pfberxit import EarlyExitPipeline, ExitPolicy, PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.exit_policy import POLICY_CHECKS

BATCH = tiny_batch(6)
TEXTS = ["w1 w2 w3", "w40 w50 w60 w70 w80"]
# One value of every field that is not its default; together with a criterion that reads it, a policy.
VALUES: dict[str, Any] = {
    "criterion": "appointed", "divergence": "rekl", "threshold": 0.25, "patience": 3, "window": 4, "min_layer": 3,
    "appointed_layer": 2, "normalize": True, "window_rule": "monotone", "window_range": 0.2, "ensemble": "run",
    "distance_weight": 0.5, "label_thresholds": {"LABEL_1": 0.2, "LABEL_2": None}, "answer": "abstain",
    "unsure_below": 0.7, "nsp_weight": 0.3,
}  # fmt: skip
FIELDS = [name for name in POLICY_CHECKS if name in VALUES]
APPOINTED = {"criterion": "appointed", "appointed_layer": 2}


def test_every_field_of_a_policy_has_a_value_here():
    assert set(FIELDS) == set(VALUES) and VALUES.keys() <= POLICY_CHECKS.keys()
    assert not any(getattr(ExitPolicy(), name) == value for name, value in VALUES.items())
    left = POLICY_CHECKS.keys() - VALUES.keys()
    assert not left, f"give {left} a value above"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, local_backbone) -> str:
    """A checkpoint with a tokenizer and an operating point. Not to be changed."""
    torch.manual_seed(0)
    model = PFBerxitForSequenceClassification.from_backbone(local_backbone, adapter_dim=8, num_labels=3)
    enliven(model)
    model.config.operating_points = {"second": {**APPOINTED, "accuracy": 0.9}}
    folder = str(tmp_path_factory.mktemp("options") / "saved")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(local_backbone).save_pretrained(folder)
    return folder


# ---- fields of a policy, on the roads that record them --------------------------------------------------------------


def assigned(folder: str, name: str, value: Any) -> PFBerxitConfig:
    config = PFBerxitConfig.from_pretrained(folder)
    setattr(config, name, value)
    return config


def loaded(folder: str, **given: Any) -> PFBerxitConfig:
    return PFBerxitForSequenceClassification.from_pretrained(folder, **given).config


RECORDED = {
    "assignment": lambda folder, field, value: assigned(folder, f"exit_{field}", value),
    "assigned policy": lambda folder, field, value: assigned(folder, "exit_policy", {field: value}),
    "constructor": lambda folder, field, value: PFBerxitConfig(**{f"exit_{field}": value}),
    "policy to the constructor": lambda folder, field, value: PFBerxitConfig(exit_policy={field: value}),
    "from_backbone": lambda folder, field, value: PFBerxitConfig.from_backbone(
        PFBerxitConfig.from_pretrained(folder), **{f"exit_{field}": value}
    ),
    "policy to from_backbone": lambda folder, field, value: PFBerxitConfig.from_backbone(
        PFBerxitConfig.from_pretrained(folder), exit_policy={field: value}
    ),
    "from_pretrained": lambda folder, field, value: loaded(folder, **{f"exit_{field}": value}),
    "policy at a load": lambda folder, field, value: loaded(folder, exit_policy={field: value}),
    "Auto class": lambda folder, field, value: (
        AutoModelForSequenceClassification.from_pretrained(folder, **{f"exit_{field}": value}).config
    ),
    "pipeline's model_kwargs": lambda folder, field, value: (
        pipeline("text-classification", model=folder, model_kwargs={"exit_policy": {field: value}}).model.config
    ),
}


@pytest.mark.parametrize("road", RECORDED)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_recorded_and_nothing_else(saved, field, road):
    config = RECORDED[road](saved, field, VALUES[field])
    assert getattr(config, f"exit_{field}") == VALUES[field]
    assert config.exit_policy == ExitPolicy(**{field: VALUES[field]})


@pytest.mark.parametrize("road", RECORDED)
def test_a_value_that_cannot_be_is_refused_by_name(saved, road):
    with pytest.raises(ValueError, match="patience=0"):
        RECORDED[road](saved, "patience", 0)


@pytest.mark.parametrize("road", RECORDED)
def test_a_field_that_is_none_is_refused_by_name(saved, road):
    with pytest.raises((ValueError, TypeError), match="patiance"):
        RECORDED[road](saved, "patiance", 2)


# ---- a policy, on the roads that run the model ----------------------------------------------------------------------


def load(folder: str, **given: Any) -> PFBerxitForSequenceClassification:
    return PFBerxitForSequenceClassification.from_pretrained(folder, **given)


def in_pipeline(pipe: Any, *args: Any, **given: Any) -> list[int]:
    layers, call = [], lambda module, inputs, output: layers.extend(output.exit_layer.tolist())
    hook = pipe.model.register_forward_hook(call)
    pipe(TEXTS, *args, **given)
    hook.remove()
    return layers


def by_trainer(folder: str, policy: Any, tmp_path: Any) -> list[int]:
    model = load(folder)
    model.config.exit_policy = policy
    return new_trainer(model, tmp_path).predict(tiny_data(4), ignore_keys=[]).predictions[1].tolist()


def classify(folder: str, **given: Any) -> Any:
    return pipeline("text-classification", model=folder, **given)


RUN = {
    "call": lambda folder, policy, tmp: load(folder)(**BATCH, exit_policy=policy).exit_layer.tolist(),
    "predict": lambda folder, policy, tmp: (
        load(folder).predict(tiny_data(4), exit_policy=policy, progress=False).exit_layer.tolist()
    ),
    "load": lambda folder, policy, tmp: load(folder, exit_policy=policy)(**BATCH).exit_layer.tolist(),
    "Trainer": by_trainer,
    "pipeline's model_kwargs": lambda folder, policy, tmp: in_pipeline(
        classify(folder, model_kwargs={"exit_policy": policy})
    ),
    "a pipeline's call": lambda folder, policy, tmp: in_pipeline(classify(folder), exit_policy=policy),
    "a pipeline's own": lambda folder, policy, tmp: in_pipeline(classify(folder, exit_policy=policy)),
}


@pytest.mark.parametrize("policy", [APPOINTED, "second", ExitPolicy(**APPOINTED)], ids=["dict", "name", "object"])
@pytest.mark.parametrize("road", RUN)
def test_a_policy_is_in_force(saved, road, policy, tmp_path):
    assert set(RUN[road](saved, policy, tmp_path)) == {2}


@pytest.mark.parametrize(("policy", "said"), [
    ("third", "third.*second"), ({"patiance": 2}, "patiance.*patience"), ({"threshold": -1}, "threshold=-1"),
    (7, "exit_policy=7"),
])  # fmt: skip
@pytest.mark.parametrize("road", RUN)
def test_a_policy_that_cannot_be_is_refused_by_name(saved, road, policy, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        RUN[road](saved, policy, tmp_path)


# ---- pipelines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"top_k": None}, {"top_k": 2}])
def test_a_pipeline_that_takes_a_policy_answers_as_the_stock_one_with_the_layer(saved, options):
    model, tokenizer = load(saved, exit_policy="second"), AutoTokenizer.from_pretrained(saved)
    expected = TextClassificationPipeline(model=model, tokenizer=tokenizer)(TEXTS, **options)
    pipe = pipeline("text-classification", model=load(saved), tokenizer=tokenizer, device="cpu")
    found = pipe(TEXTS, exit_policy="second", **options)
    for answers, wanted in zip(found, expected, strict=True):
        for answer, plain in zip(
            *([each] if isinstance(each, dict) else each for each in (answers, wanted)), strict=True
        ):
            assert answer.pop("exit_layer") == 2 and answer == plain
    assert set(in_pipeline(pipe)) == {6}  # the next call is its own
    assert all("exit_layer" not in answer for answer in pipe(TEXTS))


def test_a_zero_shot_pipeline_that_takes_a_policy_answers_as_the_stock_one_with_the_layers(saved):
    model, tokenizer = load(saved, exit_policy="second"), AutoTokenizer.from_pretrained(saved)
    pipe = pipeline("zero-shot-classification", model=load(saved), tokenizer=tokenizer, device="cpu")
    never = {"criterion": "max_prob", "threshold": 1.0}
    for options in ({}, {"multi_label": True}):
        asked = {"candidate_labels": ["w11", "w12", "w13"], "hypothesis_template": "w30 {}", **options}
        expected = ZeroShotClassificationPipeline(model=model, tokenizer=tokenizer)(TEXTS, **asked)
        for answer, wanted in zip(pipe(TEXTS, exit_policy="second", **asked), expected, strict=True):
            assert answer.pop("exit_layers") == [2, 2, 2] and answer == wanted
        assert "exit_layers" not in pipe(TEXTS[0], **asked)
        with pytest.raises(ValueError, match="exit_answer='abstain': must be label"):
            pipe(TEXTS, exit_policy={**never, "answer": "abstain", "unsure_below": 1.0}, **asked)


def test_a_pipeline_of_features_refuses_a_policy(saved):
    from transformers import AutoModel, FeatureExtractionPipeline

    parts = {"model": AutoModel.from_pretrained(saved), "tokenizer": AutoTokenizer.from_pretrained(saved)}
    pipe = pipeline("feature-extraction", **parts, device="cpu")
    assert pipe(TEXTS) == FeatureExtractionPipeline(**parts)(TEXTS)
    for ask in (pipe, lambda texts, **options: pipeline("feature-extraction", **parts, device="cpu", **options)):
        with pytest.raises(ValueError, match="exit_policy='second': must be left out: features"):
            ask(TEXTS, exit_policy="second")


def test_a_policys_field_beside_the_policy_is_refused_by_such_a_pipeline(saved):
    with pytest.raises(ValueError, match="exit_threshold=0.3.*exit_policy={'threshold'"):
        classify(saved)(TEXTS, exit_threshold=0.3)


def test_the_pipeline_of_another_model_is_the_stock_one(saved):
    stock, tokenizer = BertForSequenceClassification(tiny_config("bert")).eval(), AutoTokenizer.from_pretrained(saved)
    ours, theirs = (make(model=stock, tokenizer=tokenizer) for make in (EarlyExitPipeline, TextClassificationPipeline))
    assert ours(TEXTS, top_k=None) == theirs(TEXTS, top_k=None)


def test_a_pipeline_follows_its_models_config(saved):
    pipe = classify(saved)
    assert set(in_pipeline(pipe)) == {6}
    pipe.model.config.exit_policy = "second"
    assert set(in_pipeline(pipe)) == {2}


# ---- values a model is built from -----------------------------------------------------------------------------------

SHAPING = {"adapter_dim": 16, "exit_pooling": "cls", "exit_layers": [2, 6], "adapter_scaling": 0.5, "num_labels": 5}


@pytest.mark.parametrize("field", SHAPING)
def test_on_a_live_model_they_are_refused_by_name(saved, field):
    model = load(saved)
    setattr(model.config, field, SHAPING[field])
    with pytest.raises(ValueError, match=f"{field}="):
        model(**BATCH)


@pytest.mark.parametrize("field", SHAPING)
def test_before_a_model_is_made_they_act(local_backbone, field):
    model = PFBerxitForSequenceClassification.from_backbone(local_backbone, **{field: SHAPING[field]})
    assert getattr(model.config, field) == SHAPING[field]
    assert getattr(PFBerxitForSequenceClassification.from_backbone(local_backbone).config, field) != SHAPING[field]


@pytest.mark.parametrize("given", [{"exit_threshold": 0.3}, {"threshold": 0.3}, {"adapter_dim": 16}])
def test_a_call_takes_no_field_of_the_config(saved, given):
    with pytest.raises(TypeError, match=next(iter(given))):
        load(saved)(**BATCH, **given)
