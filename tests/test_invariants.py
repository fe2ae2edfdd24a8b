"""Batch size, batch order and padding never change a row's answer or its depth (and what else a user may count on)."""

from functools import cache
from itertools import product

import pytest
import torch
from test_criteria_promises import BY_CERTAINTY, RULES, generous
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.criteria import CRITERIA
from modeling_pfberxit.evaluation.replay import candidate_thresholds, record, replay, with_threshold
from modeling_pfberxit.evidence import Evidence

ROWS, LONGEST, LAYERS = 2000, 24, 12
PROBLEMS = {
    "single_label_classification": {"num_labels": 3, "use_prototypes": True},
    "multi_label_classification": {"num_labels": 3, "use_prototypes": True},
    "regression": {"num_labels": 1},
}
CASES = [
    (family, name, problem)
    for family in ("albert", "bert")
    for name, rule in RULES.items()
    for problem in PROBLEMS
    if problem in CRITERIA[rule["criterion"]].problem_types and name != "appointed"
]


@cache
@torch.no_grad()
def twelve_layers(family: str, problem: str):
    """Twelve layers whose exits read the mean, with conv adapters, which look at their neighbours.

    The exits' biases are set so that their logits centre on zero: rows then differ in what they are told and when.
    """
    knobs = {"adapter_sublearner": "conv", "use_lte": True, "problem_type": problem, **PROBLEMS[problem]}
    model = tiny_model(family, backbone_changes={"num_hidden_layers": LAYERS}, **knobs)
    for classifier, logits in zip(model.exits.classifiers, model(**rows()).exit_logits.unbind(1), strict=True):
        classifier.bias -= logits.mean(0)
    return model


@cache
def rows() -> dict[str, torch.Tensor]:
    return tiny_batch(ROWS, longest=LONGEST, seed=3)


@torch.inference_mode()
def run(model, batch: dict, size: int, policy: ExitPolicy, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and layers in the batch's own order, after running it in another, cut to each part's longest row."""
    logits = torch.empty(len(order), model.num_labels)
    layers = torch.empty(len(order), dtype=torch.long)
    for part in order.split(size):
        longest = int(batch["attention_mask"][part].sum(1).max())
        output = model(**{name: values[part, :longest] for name, values in batch.items()}, exit_policy=policy)
        logits[part], layers[part] = output.logits, output.exit_layer
    return logits, layers


@cache
def recorded(family: str, problem: str) -> Evidence:
    return record(twelve_layers(family, problem), [{**rows(), "labels": torch.zeros(ROWS)}])[0]


def spreading_policy(family: str, name: str, problem: str) -> ExitPolicy:
    """A policy under which rows leave at five or more layers, none of which takes more than half of them."""
    evidence, depths = recorded(family, problem), list(range(1, LAYERS + 1))
    for divergence, patience, window in product(("js_div", "kl", "kl_div"), (1, 2, 3, 4), (4, 2)):
        if patience > window:
            continue
        base = ExitPolicy(
            **RULES[name], divergence=divergence, threshold=0.0, patience=patience, window=window
        )
        for tau in candidate_thresholds(evidence, base, problem, steps=24):
            policy = with_threshold(base, 0.997 * tau)  # shares of votes are few; none of them may be hit exactly
            if spread(replay(evidence, policy, depths, problem)[1]):
                return policy
    raise AssertionError(f"no policy spreads the rows: {family} {name} {problem}")


def spread(layers: torch.Tensor) -> bool:
    counts = layers.bincount()
    return int((counts > 0).sum()) >= 5 and int(counts.max()) <= len(layers) / 2


def near_a_tie(family: str, problem: str, policy: ExitPolicy) -> torch.Tensor:
    """Rows whose layer hangs on the last float digit: a threshold a hair up or down would change it."""
    evidence, depths = recorded(family, problem), list(range(1, LAYERS + 1))
    layers = [
        replay(evidence, with_threshold(policy, policy.threshold * factor), depths, problem)[1]
        for factor in (1 - 1e-4, 1 + 1e-4)
    ]
    return layers[0] != layers[1]


@pytest.mark.parametrize(("family", "criterion", "problem"), CASES)
def test_batch_size_never_changes_a_prediction(family, criterion, problem):
    model, batch = twelve_layers(family, problem), rows()
    policy = spreading_policy(family, criterion, problem)
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    expected, layers = run(model, batch, 64, policy, torch.arange(ROWS))
    assert spread(layers)
    clear = ~near_a_tie(family, problem, policy)
    assert clear.float().mean() > 0.99
    # One by one only a sample here: the slow test below takes all of them.
    for size, order in ((7, shuffled), (64, shuffled), (1, shuffled[:200])):
        found, depths = run(model, batch, size, policy, order) if len(order) == ROWS else sample(model, policy, order)
        chosen = clear if len(order) == ROWS else clear[order]
        reference = (expected, layers) if len(order) == ROWS else (expected[order], layers[order])
        assert torch.equal(depths[chosen], reference[1][chosen]), f"batch size {size}"
        torch.testing.assert_close(found[chosen], reference[0][chosen], atol=2e-5, rtol=1e-4)


def sample(model, policy: ExitPolicy, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    part = {name: values[order] for name, values in rows().items()}
    return run(model, part, 1, policy, torch.arange(len(order)))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "criterion", "problem"), CASES)
def test_every_row_alone_is_as_in_its_batch(family, criterion, problem):
    model, policy = twelve_layers(family, problem), spreading_policy(family, criterion, problem)
    clear = ~near_a_tie(family, problem, policy)
    expected, layers = run(model, rows(), 64, policy, torch.arange(ROWS))
    found, depths = run(model, rows(), 1, policy, torch.arange(ROWS))
    assert torch.equal(depths[clear], layers[clear])
    torch.testing.assert_close(found[clear], expected[clear], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["albert", "bert"])
def test_longer_padding_never_changes_a_prediction(family):
    model, batch = twelve_layers(family, "single_label_classification"), tiny_batch(60, longest=20, seed=8)
    wider = {name: torch.nn.functional.pad(values, (0, 17)) for name, values in batch.items()}
    policy = {"criterion": "patience", "patience": 1}
    expected, found = model(**batch, exit_policy=policy), model(**wider, exit_policy=policy)
    assert torch.equal(found.exit_layer, expected.exit_layer)
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("wanted", ["output_hidden_states", "output_attentions"])
def test_asking_for_states_changes_no_answer(wanted):
    model = twelve_layers("bert", "single_label_classification")
    batch, policy = tiny_batch(40, seed=2), {"criterion": "patience", "patience": 1}
    before = model(**batch, exit_policy=policy)
    assert before.exit_layer.min() < LAYERS
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    after = model(**batch, exit_policy=policy, **{wanted: True})
    model.set_attn_implementation(implementation)
    assert torch.equal(after.exit_layer, before.exit_layer)
    torch.testing.assert_close(after.logits, before.logits, atol=2e-5, rtol=1e-4)
    states = after.hidden_states or after.attentions
    assert len(states) == LAYERS + (wanted == "output_hidden_states")
    assert all(state.shape[0] == 40 for state in states)


def test_a_row_that_left_costs_nothing_more():
    model = twelve_layers("bert", "single_label_classification")
    seen = []
    hooks = [d.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0]))) for d in model.depths]
    layers = model(**tiny_batch(50, seed=4), exit_policy={"criterion": "patience", "patience": 1}).exit_layer
    for hook in hooks:
        hook.remove()
    assert seen == [int((layers > depth).sum()) for depth in range(len(seen))]
    assert sum(seen) == int(layers.sum()) < 50 * LAYERS


@pytest.mark.parametrize("criterion", CRITERIA)
def test_half_precision_decides_in_fp32(criterion):
    model = twelve_layers("bert", "single_label_classification")
    scores = []

    def spy(now, evidence, state, policy):
        scores.append((evidence.logits.dtype, now.dtype))
        return original(now, evidence, state, policy)

    original = CRITERIA[criterion].score
    policy = ExitPolicy(criterion, threshold=0.3, patience=1, appointed_layer=3)
    saved = CRITERIA[criterion]
    CRITERIA[criterion] = saved._replace(score=spy)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**tiny_batch(6), exit_policy=policy)
    finally:
        CRITERIA[criterion] = saved
    assert set(scores) == {(torch.bfloat16, torch.float32)}
    assert output.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nan_never_leaves_early(criterion):
    model = twelve_layers("bert", "single_label_classification")
    batch = tiny_batch(8, seed=6)
    embeddings = model.get_input_embeddings()(batch.pop("input_ids")).clone()
    embeddings[3] = float("nan")
    policy = ExitPolicy(criterion, threshold=1e9, patience=1, window=2, appointed_layer=3)
    layers = model(inputs_embeds=embeddings, **batch, exit_policy=policy).exit_layer.tolist()
    assert layers.pop(3) == LAYERS
    assert min(layers) < LAYERS
