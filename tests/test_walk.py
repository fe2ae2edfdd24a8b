"""A walk knows where its text leaves under every threshold and patience, as the model itself has it."""

import math
from dataclasses import replace
from itertools import product
from random import Random

import pytest
import torch
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.walk import walk
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, kl

HEADS = {"use_lte": True, "use_prototypes": True, "use_nsp": True}


@pytest.fixture(scope="module")
def model():
    return tiny_model("bert", num_labels=3, **HEADS)


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(1, seed=3)


def agree(found, model, batch, policy):
    """Hold a walk against the model at and just below some thresholds, and above them all."""
    known = found.thresholds
    taus = [*known, *(math.nextafter(tau, 0.0) for tau in known if tau), known[-1] + 9] if known else [policy.threshold]
    asked = list(product(found.patiences or [policy.patience], taus))
    for patience, tau in Random(0).sample(asked, min(12, len(asked))):
        online = model(**batch, exit_policy=replace(policy, threshold=tau, patience=patience))
        outcome = found.at(0.0 if tau is None else tau, patience)
        assert outcome.exit_layer == online.exit_layer.item(), (tau, patience)
        torch.testing.assert_close(torch.tensor([outcome.logits]), online.logits, equal_nan=True)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "appointed"])
def test_every_rule_leaves_where_the_model_does(model, batch, criterion):
    policy = ExitPolicy(criterion, threshold=0.5)
    found = walk(record(model, [dict(batch)], progress=False), policy)
    assert len({outcome.exit_layer for outcome in found.outcomes}) > 1
    agree(found, model, batch, policy)


@pytest.mark.parametrize(
    "policy",
    [
        ExitPolicy("entropy", threshold=0.4, label_thresholds={"0": None}),
        ExitPolicy("divergence_v1", threshold=0.3, answer="abstain", unsure_below=0.8, window=2),
        ExitPolicy("pcee", threshold=0.7, ensemble="run"),
        ExitPolicy("divergence_v1", threshold=[0.5, 0.4, 0.3, 0.3, 0.3, 0.3], min_layer=3),
        ExitPolicy("appointed", appointed_layer=2),
        ExitPolicy(None),
    ],
    ids=lambda policy: f"{policy.criterion}-{policy.answer}",
)  # fmt: skip
def test_what_else_a_policy_says_stays_in_force(model, batch, policy):
    found = walk(record(model, [dict(batch)], progress=False), policy)
    assert found.outcomes[found.own].exit_layer == model(**batch, exit_policy=policy).exit_layer.item()
    agree(found, model, batch, policy)


@pytest.mark.parametrize(
    "problem_type, policy",
    [
        (MULTI_LABEL, ExitPolicy("entropy", threshold=0.5, label_thresholds={"1": 0.2})),
        (MULTI_LABEL, ExitPolicy("divergence_v1", threshold=0.5)),
        (REGRESSION, ExitPolicy("patience", threshold=0.5)),
    ],
)
def test_several_labels_and_values(problem_type, policy, batch):
    model = tiny_model("bert", num_labels=3, problem_type=problem_type)
    found = walk(record(model, [dict(batch)], progress=False), policy)
    agree(found, model, batch, policy)


def test_scores_are_the_divergences_between_neighbours(model, batch):
    recording = record(model, [dict(batch)], progress=False)
    found = walk(recording, ExitPolicy("divergence_v1"))
    tables = recording.evidence.logits[0].log_softmax(-1)
    assert math.isnan(found.scores[0][0])
    for number in range(1, 6):
        assert found.scores[number] == [pytest.approx(kl(tables[number], tables[number - 1]).item(), rel=1e-5)]
    assert found.layers == [1, 2, 3, 4, 5, 6] and found.own == 0 and found.outcomes[0].exit_layer == 6


def test_a_walk_is_of_one_row(model):
    with pytest.raises(ValueError, match="recording='2 rows'"):
        walk(record(model, [tiny_batch(2)], progress=False), ExitPolicy())


def test_a_patience_that_does_not_fit_is_refused_by_name(model, batch):
    found = walk(record(model, [dict(batch)], progress=False), ExitPolicy("divergence_v3", threshold=0.5, window=2))
    assert found.patiences == [1, 2]
    with pytest.raises(ValueError, match="patience=3"):
        found.at(0.3, 3)
