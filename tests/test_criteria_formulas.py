"""The criteria of the other systems once more from their formulas, in NumPy, for one row at a time."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from test_criteria import BY_DIVERGENCE, DEPTHS, EXITS, FORMULAS, distributions, judge, thresholds_between
from test_criteria_promises import (
    OF_SEVERAL_EXITS,
    RULES,
    model_with_varied_rows,
    random_evidence,
    recorded_from,
    scores,
)
from tiny import tiny_batch
from torch import Tensor

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.replay import ScoreBook
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, as_logits, predictions

LABELS = (SINGLE_LABEL, MULTI_LABEL)


def nats(p: np.ndarray, normalize: bool) -> float:
    """Entropy of one exit's table (L, K)."""
    total = float(sum(-(label * np.log(label)).sum() for label in p))
    return total / (p.shape[0] * np.log(p.shape[1])) if normalize else total


def surest(p: np.ndarray, normalize: bool = False) -> float:
    """The largest probability of the least sure label."""
    largest, guess = min(label.max() for label in p), 1 / p.shape[1]
    return (largest - guess) / (1 - guess) if normalize else largest


def settled(tables: np.ndarray, policy: ExitPolicy) -> bool:
    """Whether the tables (m, L, K) of the last m exits settled on an answer."""
    for label in range(tables.shape[1]):
        chosen = tables[:, label].argmax(-1)
        path = np.diff(tables[:, label, chosen[-1]])
        rising, falling, far = (path >= 0).all(), (path <= 0).all(), np.ptp(tables[:, label, chosen[-1]])
        if len(set(chosen)) > 1:
            return False
        if policy.window_rule == "monotone" and not (rising or falling):
            return False
        if policy.window_rule == "narrow" and far > policy.window_range:
            return False
    return True


def far_off(p: np.ndarray, distances: np.ndarray, policy: ExitPolicy) -> float:
    """DE3-BERT's score of one exit, from tables (L, K)."""
    ratios = []
    for label, away in zip(p, distances):
        own, others = away[label.argmax()], [r for k, r in enumerate(away) if k != label.argmax()]
        ratios.append(0.5 * (1 + (own - min(others)) / max(own, min(others))))
    weight = policy.distance_weight
    return (weight + 1) / (weight / np.mean(ratios) + 1 / nats(p, policy.normalize))


def elected(p: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The votes for each label's majority among exits (E, L, K), and the mean table of those who cast them (L, K)."""
    backing, table = [], []
    for label in range(p.shape[1]):
        votes = p[:, label].argmax(-1)
        counts = np.bincount(votes, minlength=p.shape[2])
        winner = votes[-1] if counts[votes[-1]] == counts.max() else counts.argmax()
        backing.append(int(counts.max()))
        table.append(p[votes == winner, label].mean(0))
    return backing, np.stack(table)


def by_the_formulas(row: Evidence, problem_type: str, policy: ExitPolicy) -> tuple[int, np.ndarray]:
    """The exit (1-based) at which one row (E, ...) stops, the last if it never may, and its answer's table (L, K)."""
    logits = row.logits.double().numpy()
    p = logits[:, None] if problem_type == REGRESSION else distributions(logits, problem_type)  # (E, L, K)
    t, m, run, gathered = policy.patience, policy.window, 0, 0.0
    for i in range(len(p)):
        tau, so_far, answer = policy.threshold, p[: i + 1], p[i]
        tau = tau[i] if isinstance(tau, tuple) else tau
        if policy.criterion == "entropy":
            fire = nats(p[i], policy.normalize) < tau
        elif policy.criterion == "max_prob":
            fire = surest(p[i], policy.normalize) >= tau
            answer = p[i] if fire else max(so_far, key=surest)
        elif policy.criterion == "lte":
            fire = float(row.lte[i]) < tau
        elif policy.criterion == "window":
            fire = nats(p[i], policy.normalize) < tau or (i + 1 >= m and settled(p[i + 1 - m : i + 1], policy))
        elif policy.criterion == "pcee":
            run = run + 1 if nats(p[i], policy.normalize) < tau else 0
            fire = run >= t
            members = {"none": 1, "run": min(max(run, 1), t), "all": i + 1}[policy.ensemble]
            answer = p[i + 1 - members : i + 1].mean(0)
        elif policy.criterion == "dge":
            apart = [FORMULAS[policy.divergence](p[i], p[j]).sum() for j in range(max(0, i - m), i)]
            unit = p.shape[1] * (2 if policy.divergence in ("bikl", "symkl_div") else 1) * np.log(p.shape[2])
            run = run + 1 if apart and np.mean(apart) / (unit if policy.normalize else 1) < tau else 0
            fire = run >= t
        elif policy.criterion == "distance":
            fire = far_off(p[i], row.distances[i].double().numpy(), policy) < tau
        elif policy.criterion == "cap":
            unseen = np.exp(policy.nsp_weight * float(row.nsp[i]))
            fire = unseen / (unseen + np.exp(logits[i]).sum()) < tau
        elif policy.criterion == "beem":
            agrees = i > 0 and (p[i].argmax(-1) == p[i - 1].argmax(-1)).all()
            gathered = gathered + (i + 1) / 10 * surest(p[i], policy.normalize) if agrees else 0.0
            fire = gathered >= tau
        elif policy.criterion == "voting":
            backing, answer = elected(so_far)
            fire = min(backing) >= t and min(backing) / (i + 1) >= tau
        if i + 1 == len(p) or (fire and i + 1 >= policy.min_layer):
            return i + 1, answer
    raise AssertionError


OPTIONS = {
    "entropy": {"normalize": [False, True]},
    "max_prob": {"normalize": [False, True]},
    "lte": {"patience": [1, 2]},
    "window": {"window_rule": ["agree", "monotone", "narrow"], "window": [2, 3, 5], "window_range": [0.15, 0.4]},
    "pcee": {"ensemble": ["none", "run", "all"], "patience": [1, 2, 4], "normalize": [False, True]},
    "dge": {"divergence": ["kl", "symkl_div"], "window": [1, 2, 4], "patience": [1, 2], "normalize": [False, True]},
    "distance": {"distance_weight": [0.0, 0.5, 2.0], "normalize": [False, True]},
    "voting": {"patience": [1, 2, 3, 4]},
    "beem": {"normalize": [False, True]},
    "cap": {"nsp_weight": [0.0, 0.1, 3.0]},
}
JUDGED = [(problem, name) for name in OPTIONS for problem in CRITERIA[name].problem_types]


def policies_of(name: str, evidence: Evidence, problem_type: str) -> list[ExitPolicy]:
    """Every combination of a rule's options, with a threshold, one for each exit, and a later first layer in turn."""
    policies = []
    for number, values in enumerate(product(*OPTIONS[name].values())):
        policy = ExitPolicy(name, threshold=1.0, **dict(zip(OPTIONS[name], values)))
        taus = thresholds_between(scores(evidence, policy, problem_type), (0.1, 0.35, 0.6, 0.85))
        own = tuple(taus + taus[::-1])[:EXITS]
        policies += [
            replace(policy, threshold=taus[number % 4]),
            replace(policy, threshold=own[:: 1 - 2 * (number % 2)]),
        ]
        policies.append(replace(policy, threshold=taus[(number + 1) % 4], min_layer=2 + number % 4))
    return policies


def test_every_criterion_is_written_twice():
    assert set(OPTIONS) | {*BY_DIVERGENCE, "patience", "appointed"} == set(CRITERIA)


def where_stopped(fired: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """The answers (B, C) and exits (B,) of rows that may stop at some exits (B, E), at the last one at any rate."""
    fired = fired.clone()
    fired[:, -1] = True
    first = fired.int().argmax(1)
    return answers[torch.arange(len(first)), first], first + 1


@pytest.mark.parametrize("problem_type, name", JUDGED)
def test_rows_stop_and_answer_as_the_formulas_say(name, problem_type):
    evidence, stops = random_evidence(100, problem_type, seed=7), set()
    policies = policies_of(name, evidence, problem_type)
    rows = [Evidence(*(part[number] for part in evidence)) for number in range(100)]
    book = ScoreBook(evidence, problem_type)
    for policy in policies:
        answers, layers = book.of(policy).decide(policy, DEPTHS)
        expected = [by_the_formulas(row, problem_type, policy) for row in rows]
        in_steps = where_stopped(*judge(evidence, policy, problem_type))
        for found, stopped in ((answers, layers), in_steps):
            assert stopped.tolist() == [layer for layer, _ in expected], policy
            tables = predictions(found, problem_type)
            tables = tables if problem_type == REGRESSION else tables.exp()
            np.testing.assert_allclose(tables, [table for _, table in expected], atol=1e-5, err_msg=str(policy))
        stops |= set(layers.tolist())
    assert len(stops) >= 5  # the settings tell the exits apart


@pytest.mark.parametrize("problem_type", LABELS)
@pytest.mark.parametrize("name", OF_SEVERAL_EXITS)
@torch.no_grad()
def test_a_model_s_answers_of_several_exits_are_those_of_the_formulas(name, problem_type):
    model, batch = model_with_varied_rows("bert", name, problem_type), tiny_batch(40, seed=5)
    evidence = recorded_from(model, batch)
    left, others = set(), 0.0
    for share in (0.5, 0.7, 0.9, 0.97):
        policy = ExitPolicy(**RULES[name], threshold=1.0, patience=2, min_layer=2)
        policy = replace(policy, threshold=thresholds_between(scores(evidence, policy, problem_type), (share,))[0])
        output = model(**batch, exit_policy=policy)
        expected = [by_the_formulas(Evidence(logits), problem_type, policy) for logits in evidence.logits]
        assert output.exit_layer.tolist() == [layer for layer, _ in expected]
        answers = predictions(output.logits, problem_type).exp()
        np.testing.assert_allclose(answers, np.stack([table for _, table in expected]), atol=1e-4)
        own = predictions(evidence.logits[torch.arange(40), output.exit_layer - 1], problem_type).exp()
        left, others = left | set(output.exit_layer.tolist()), max(others, (answers - own).abs().max().item())
    assert len(left) >= 2 and others > 0.01


@pytest.mark.parametrize("problem_type", LABELS)
def test_logits_and_tables_are_two_ways_of_saying_the_same(problem_type):
    tables = predictions(random_evidence(50, problem_type).logits[:, 0], problem_type)
    again = predictions(as_logits(tables, problem_type), problem_type)
    torch.testing.assert_close(again, tables)
