"""One model object serves many threads: nothing about a call is kept on it."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch.testing import assert_close

from modeling_pfberxit import ExitPolicy

torch.set_num_threads(1)  # the threads of this file are its own

ROUNDS = 40
CALLS = {
    "full depth": {"exit_policy": {"criterion": None}},
    "v1": {"exit_policy": ExitPolicy(threshold=1.5, patience=1)},
    "v1, patient": {"exit_policy": ExitPolicy(threshold=1.5, patience=3)},
    "v3": {"exit_policy": {"criterion": "divergence_v3", "threshold": 1.5, "patience": 2, "window": 3}},
    "patience": {"exit_policy": {"criterion": "patience", "patience": 2}},
    "appointed": {"exit_policy": "quick"},
    "all states": {"exit_policy": ExitPolicy(threshold=1.5, patience=1), "output_hidden_states": True},
}
TOGETHER = {
    "two": ("v1", "v1, patient"),
    "off and on": ("full depth", "v1"),
    "all": tuple(CALLS),
}


def served_model(family="albert", **knobs):
    model = tiny_model(family, num_labels=3, problem_type="single_label_classification", use_lte=True, **knobs)
    model.config.operating_points = {"quick": {"criterion": "appointed", "appointed_layer": 2}}
    return model


@torch.no_grad()
def answer(model, call: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(**tiny_batch(9, seed=seed), **CALLS[call])
    return output.exit_layer, output.logits


@pytest.mark.parametrize("names", TOGETHER.values(), ids=TOGETHER)
def test_threads_with_different_policies_get_what_each_would_get_alone(names):
    model = served_model()
    alone = {(name, seed): answer(model, name, seed) for name in names for seed in (0, 1)}
    layers = {tuple(torch.cat([alone[name, seed][0] for seed in (0, 1)]).tolist()) for name in names}
    assert len(layers) >= min(len(names), 5)  # policies that agree could not be told apart

    # All calls are held after their first layer until every thread has begun its own.
    begun = threading.Barrier(len(names), timeout=20)

    def wait_for_the_others(*_):
        begun.wait()

    model.depths[0].register_forward_hook(wait_for_the_others)

    def serve(name):
        return [(seed, answer(model, name, seed)) for seed in [0, 1] * (ROUNDS // 2)]

    with ThreadPoolExecutor(len(names)) as threads:
        served = dict(zip(names, threads.map(serve, names)))
    for name in names:
        assert len(served[name]) == ROUNDS
        for seed, (exit_layer, logits) in served[name]:
            assert torch.equal(exit_layer, alone[name, seed][0])
            assert_close(logits, alone[name, seed][1], atol=1e-6, rtol=0)


def inside(model) -> dict[str, dict]:
    """Everything the model's modules hold: attributes by identity, buffers and configs by value."""
    held = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            held[f"{name}.{key}"] = dict(value) if isinstance(value, dict) else value
    values = {f"{name} (value)": buffer.clone() for name, buffer in model.named_buffers()}
    configs = {name: copy.deepcopy(module.config.to_dict()) for name, module in (("", model), ("b", model.backbone))}
    return {"held": held, "buffers": values, "configs": configs}


def same(before: dict, after: dict) -> bool:
    def identical(a, b):
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
        return a is b

    held = before["held"].keys() == after["held"].keys() and all(
        identical(value, after["held"][key]) for key, value in before["held"].items()
    )
    buffers = before["buffers"].keys() == after["buffers"].keys() and all(
        torch.equal(value, after["buffers"][key]) for key, value in before["buffers"].items()
    )
    return held and buffers and before["configs"] == after["configs"]


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "deberta-v2"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_no_forward_changes_the_model(family, training):
    model = served_model(family).train(training)
    model.set_attn_implementation("eager")
    before = inside(model)
    for call in CALLS:
        answer(model, call, seed=0)
    model(**tiny_batch(4), output_attentions=True)
    model(**tiny_batch(4), labels=torch.tensor([0, 1, 2, -100])).loss.backward()
    model(**tiny_batch(3, longest=9), labels=torch.tensor([0, 1, 2]), exit_policy=CALLS["v1"]["exit_policy"])
    assert same(before, inside(model))


@pytest.mark.parametrize("leak", ["attribute", "buffer", "config"])
def test_the_comparison_would_notice_a_change(leak):
    model = served_model("bert")
    before = inside(model)
    assert same(before, inside(model))
    if leak == "attribute":
        model.depths[1].last_states = torch.zeros(1)
    elif leak == "buffer":
        model.backbone.embeddings.position_ids.add_(1)
    else:
        model.config.exit_threshold = 0.5
    assert not same(before, inside(model))


def test_an_unlabelled_call_is_not_changed_by_a_labelled_one():
    """A model without `problem_type` may not judge a row by what another caller's labels looked like."""
    model = tiny_model("bert", num_labels=3)
    model.config.exit_threshold, model.config.exit_patience = 1.5, 1
    batch = tiny_batch(9)
    with torch.no_grad():
        before = model(**batch).exit_layer
        labels = torch.zeros(9, 3)
        model(**batch, labels=labels)
        after = model(**batch).exit_layer
    assert torch.equal(before, after)
