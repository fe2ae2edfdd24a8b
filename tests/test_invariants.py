"""Batch size, batch order and padding never change a row's answer or its depth (and what else a user may count on)."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from test_criteria_promises import RULES, generous, recorded_from
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.replay import ScoreBook, replay
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import Evidence

ROWS, SOME, LONGEST, LAYERS = 2000, 448, 24, 12
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
BY_RULE = {name: [case for case in CASES if case[1] == name] for _, name, _ in CASES}
ONCE = [cases[-1 if number % 2 else 0] for number, cases in enumerate(BY_RULE.values())]  # of both families in turn


@cache
@torch.no_grad()
def twelve_layers(family: str, problem: str):
    """Twelve layers whose exits read the mean, with conv adapters, which look at their neighbours.

    The heads' biases are set so that their logits centre on zero: rows then differ in what they are told and when.
    """
    knobs = {"adapter_sublearner": "conv", "use_lte": True, "use_nsp": True, "lte_shared": False, **PROBLEMS[problem]}
    model = tiny_model(family, backbone_changes={"num_hidden_layers": LAYERS}, problem_type=problem, **knobs)
    output = model(**rows(SOME))
    for number, (classifier, lte) in enumerate(zip(model.exits.classifiers, model.exits.ltes, strict=True)):
        classifier.bias -= output.exit_logits[:, number].mean(0)
        lte.bias -= output.exit_lte[:, number].logit().mean()
    return model


@cache
def rows(count: int = ROWS) -> dict[str, torch.Tensor]:
    return {name: values[:count] for name, values in tiny_batch(ROWS, longest=LONGEST, seed=3).items()}


@torch.inference_mode()
def run(model, size: int, policy: ExitPolicy, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and layers of the rows in this order, in batches cut to their longest row."""
    logits, layers, batch = [], [], rows()
    for part in order.split(size):
        longest = int(batch["attention_mask"][part].sum(1).max())
        output = model(**{name: values[part, :longest] for name, values in batch.items()}, exit_policy=policy)
        logits.append(output.logits)
        layers.append(output.exit_layer)
    return torch.cat(logits), torch.cat(layers)


@cache
def recorded(family: str, problem: str, count: int) -> Evidence:
    """The evidence of the first rows, as many as that."""
    return recorded_from(twelve_layers(family, problem), rows(count))


def spreading_policy(evidence: Evidence, name: str, problem: str) -> ExitPolicy:
    """A policy under which rows leave at five or more layers, none of which takes more than half of them."""
    depths = list(range(1, LAYERS + 1))
    for divergence, patience, window in product(("js_div", "kl", "kl_div"), (1, 2, 3, 4), (4, 2)):
        if patience > window:
            continue
        base = ExitPolicy(**RULES[name], divergence=divergence, threshold=0.0, patience=patience, window=window)
        for tau in ScoreBook(evidence, problem).of(base).quantiles(steps=24):
            policy = replace(base, threshold=0.997 * tau)  # shares of votes are few; none of them may be hit exactly
            if spread(replay(evidence, policy, depths, problem)[1]):
                return policy
    raise AssertionError(f"no policy spreads the rows: {name} {problem}")


def spread(layers: torch.Tensor) -> bool:
    counts = layers.bincount()
    return int((counts > 0).sum()) >= 5 and int(counts.max()) <= len(layers) / 2


def near_a_tie(evidence: Evidence, problem: str, policy: ExitPolicy) -> torch.Tensor:
    """Rows that hang on the last float digits: a threshold or logits a hair up or down would change layer or answer."""
    depths = list(range(1, LAYERS + 1))
    noise = 1e-5 * torch.randn(evidence.logits.shape, generator=torch.Generator().manual_seed(0))
    near = [(evidence, replace(policy, threshold=policy.threshold * factor)) for factor in (1 - 1e-4, 1 + 1e-4)]
    near += [(evidence._replace(logits=evidence.logits + sign * noise), policy) for sign in (1, -1)]
    answers, layers = replay(evidence, policy, depths, problem)
    hangs = torch.zeros(len(layers), dtype=torch.bool)
    for other, setting in near:
        found, stops = replay(other, setting, depths, problem)
        hangs |= (stops != layers) | ((found - answers).abs() > 1e-3).any(1)
    return hangs


def compare(family: str, name: str, problem: str, count: int, orders: list[tuple[int, torch.Tensor]]) -> None:
    """The first rows in batches of 64 against batches of these sizes, of rows in these orders."""
    model, evidence = twelve_layers(family, problem), recorded(family, problem, count)
    policy = spreading_policy(evidence, name, problem)
    expected, layers = run(model, 64, policy, torch.arange(count))
    assert spread(layers)
    clear = ~near_a_tie(evidence, problem, policy)
    assert clear.float().mean() > 0.99
    for size, order in orders:
        found, depths = run(model, size, policy, order)
        chosen = clear[order]
        assert torch.equal(depths[chosen], layers[order][chosen]), f"batch size {size}"
        torch.testing.assert_close(found[chosen], expected[order][chosen], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "name", "problem"), ONCE)
def test_batch_size_never_changes_a_prediction(family, name, problem):
    shuffled = torch.randperm(SOME, generator=torch.Generator().manual_seed(5))
    # A sample, the smaller the batches: the slow test below takes all rows.
    compare(family, name, problem, SOME, [(64, shuffled), (7, shuffled[:140]), (1, shuffled[-40:])])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name", "problem"), CASES)
def test_every_row_alone_is_as_in_its_batch(family, name, problem):
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(6))
    compare(family, name, problem, ROWS, [(64, shuffled), (7, shuffled), (1, torch.arange(ROWS))])


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


@pytest.mark.parametrize("name", RULES)
def test_half_precision_decides_in_fp32(name):
    model, criterion = twelve_layers("bert", "single_label_classification"), RULES[name]["criterion"]
    seen = set()

    def spy(now, evidence, state, policy):
        score = saved.score(now, evidence, state, policy)
        seen.add((evidence.logits.dtype, now.dtype, score.dtype))
        return score

    policy = ExitPolicy(**RULES[name], threshold=0.3, patience=1, appointed_layer=3)
    saved = CRITERIA[criterion]
    CRITERIA[criterion] = saved._replace(score=spy)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**tiny_batch(6), exit_policy=policy)
    finally:
        CRITERIA[criterion] = saved
    assert seen == {(torch.bfloat16, torch.float32, torch.float32)}
    assert output.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", RULES)
def test_nan_never_leaves_early(name):
    model = twelve_layers("bert", "single_label_classification")
    batch = tiny_batch(8, seed=6)
    embeddings = model.get_input_embeddings()(batch.pop("input_ids")).clone()
    embeddings[3] = float("nan")
    layers = model(inputs_embeds=embeddings, **batch, exit_policy=generous(name)).exit_layer.tolist()
    assert layers.pop(3) == LAYERS
    assert min(layers) < LAYERS
