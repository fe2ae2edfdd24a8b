"""Labels with thresholds of their own: one may leave early and another never, online as in replay and in streams."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import rows_of, tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.evaluation.claims import Counter
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from modeling_pfberxit.model.exit_policy import describe

NAMES = {0: "benign", 1: "attack", 2: "odd"}


def tables(logits: list, problem_type: str) -> Recording:
    """A recording of rows (E, C) with three exits."""
    kept = torch.tensor(logits, dtype=torch.float)
    return Recording(
        Evidence(kept), torch.full((len(kept),), 5), None, [1, 2, 3], problem_type, {}, ["benign", "attack"]
    )


def layers(kept: Recording, **fields) -> list[int]:
    """Where the rows exit."""
    return kept.replay(ExitPolicy(**fields))[1].tolist()


def test_a_label_may_leave_early_and_another_never_or_only_when_surer():
    sure, surer = [[3.0, 0], [0, 3.0]], [[5.0, 0], [0, 5.0]]
    kept = tables([[row] * 3 for row in (*sure, *surer)], SINGLE_LABEL)  # entropies 0.19 and 0.04
    assert layers(kept, criterion="entropy", threshold=0.3) == [1, 1, 1, 1]
    assert layers(kept, criterion="entropy", threshold=0.3, label_thresholds={"attack": None}) == [1, 3, 1, 3]
    assert layers(kept, criterion="entropy", threshold=0.3, label_thresholds={"attack": 0.1}) == [1, 3, 1, 1]
    assert layers(kept, criterion="entropy", label_thresholds={"benign": 0.1}) == [3, 3, 1, 3]  # others: no threshold
    assert layers(kept, criterion="max_prob", threshold=0.9, label_thresholds={1: None}) == [1, 3, 1, 3]
    assert layers(kept, criterion="patience", patience=1, label_thresholds={"attack": None}) == [2, 3, 2, 3]


def test_of_several_labels_each_must_pass_its_own():
    rows = [[3.0, -3.0], [3.0, 3.0], [3.0, -0.5], [-3.0, -3.0]]
    kept = tables([[row] * 3 for row in rows], MULTI_LABEL)
    assert layers(kept, criterion="entropy", threshold=0.3, label_thresholds={"benign": 0.3}) == [1, 1, 3, 1]
    assert layers(kept, criterion="entropy", threshold=0.3, label_thresholds={"attack": None}) == [1, 3, 3, 1]
    assert layers(kept, criterion="entropy", threshold=0.7, label_thresholds={"benign": 0.1}) == [3, 3, 3, 1]


def test_counts_are_kept_for_every_label():
    kept = tables([[[3, 0], [3, 3], [3, 3]], [[3, 3], [3, 3], [3, 3]]], MULTI_LABEL)
    fields = {"criterion": "pcee", "patience": 2, "threshold": 0.3, "label_thresholds": {"benign": 0.3}}
    assert layers(kept, **fields) == [3, 2]


CASES = [
    ("entropy", 0.4), ("divergence_v1", 0.8), ("divergence_v3", 0.8), ("max_prob", 0.6), ("patience", None),
    ("pcee", 0.6), ("voting", 0.6), ("dge", 0.8), ("window", 0.3), ("lte", 0.5), ("distance", 0.6),
]  # fmt: skip


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_online_replay_and_streams_agree(family, problem_type):
    model = tiny_model(
        family, num_labels=3, problem_type=problem_type, id2label=NAMES, use_lte=True, use_prototypes=True
    )
    batch, early = tiny_batch(40), 0
    kept, rows = record(model, [dict(batch)]), [{"input_ids": ids} for ids in rows_of(batch)]
    for criterion, tau in CASES:
        policy = ExitPolicy(criterion, threshold=tau, patience=1, label_thresholds={"attack": None, "odd": 0.5})
        answers, depths = kept.replay(policy)
        online, stream = model(**batch, exit_policy=policy), model.predict(rows, policy, 7, progress=False)
        assert torch.equal(online.exit_layer, depths) and torch.equal(stream.exit_layer, depths), criterion
        torch.testing.assert_close(online.logits, answers, atol=2e-5, rtol=1e-4)
        left, early = depths < 6, early + (depths < 6).sum()
        attack = answers[:, 1] > 0 if problem_type == MULTI_LABEL else answers.argmax(1) == 1
        assert not (left & attack).any(), criterion
    assert early


def test_a_label_is_missed_only_where_another_one_may_leave_early():
    kept = tables([[[3, 0], [0, 3], [0, 3]], [[0, 3], [0, 3], [0, 3]]], SINGLE_LABEL)
    count, policy = Counter(kept, "differ", None, ["attack"]), ExitPolicy("entropy", threshold=0.3)
    missed = [
        count(kept.replay(replace(policy, label_thresholds=each))[0])["attack"].sum()
        for each in (None, {"attack": None}, {"benign": None})
    ]
    assert missed == [1, 1, 0]


def test_names_travel_with_config_and_operating_points(tmp_path):
    model = tiny_model("bert", num_labels=3, id2label=NAMES)
    policy = ExitPolicy("entropy", threshold=0.5, label_thresholds={"attack": None, "odd": 0.2})
    model.config.exit_policy = policy
    model.config.operating_points = {"guarded": policy.stated()}
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["exit_label_thresholds"] == {"attack": None, "odd": 0.2}
    loaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = tiny_batch(20)
    for asked in (None, "guarded", policy):
        assert torch.equal(loaded(**batch, exit_policy=asked).exit_layer, model(**batch).exit_layer)
    assert describe(policy) == "entropy, threshold 0.5, attack never, odd 0.2 (BranchyNet, DeeBERT, FastBERT)"


@pytest.mark.parametrize(
    ("fields", "problem_type", "message"),
    [
        ({"label_thresholds": {"virus": None}}, SINGLE_LABEL, "'virus': must be a label, benign, attack, odd, or its"),
        ({"label_thresholds": {3: None}}, SINGLE_LABEL, "'3': must be a label"),
        ({"criterion": "appointed", "appointed_layer": 3}, SINGLE_LABEL, "with appointed, which reads none"),
        ({"criterion": "patience"}, REGRESSION, "must be left out for values"),
        ({"criterion": "pcee", "ensemble": "run"}, SINGLE_LABEL, "must be left out with a run's mean"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_before_a_layer_runs(fields, problem_type, message):
    model = tiny_model("bert", num_labels=3, problem_type=problem_type, id2label=NAMES)
    policy = {"criterion": "entropy", "threshold": 0.5, "label_thresholds": {"attack": None}, **fields}
    with pytest.raises(ValueError, match=message):
        model(**tiny_batch(3), exit_policy=policy)


@pytest.mark.parametrize("twice", [
    {"attack": None, "1": 0.5}, {1: 0.5, "attack": None}, {1: 0.5, "1": None}, [("attack", 0.5), ("attack", None)],
])  # fmt: skip
def test_a_label_that_is_given_twice_is_refused_whatever_the_order(twice):
    model = tiny_model("bert", num_labels=3, id2label=NAMES)
    policy = {"criterion": "entropy", "threshold": 0.5, "label_thresholds": twice}
    with pytest.raises(ValueError, match="label_thresholds=.*: must be every label once"):
        model(**tiny_batch(3), exit_policy=policy)


def test_unknown_labels_are_refused_also_where_early_exit_is_off():
    model = tiny_model("bert", num_labels=3, id2label=NAMES)
    with pytest.raises(ValueError, match="'typo': must be a label"):
        model(**tiny_batch(3), exit_policy={"criterion": "entropy", "label_thresholds": {"typo": None}})
    known = {"criterion": "entropy", "label_thresholds": {"attack": None}}
    assert model(**tiny_batch(3), exit_policy=known).exit_layer.tolist() == [6] * 3


@pytest.mark.parametrize("value", [{}, {"attack": -1}, {"attack": "low"}, "attack", [("attack",)], {1.5: None}])
def test_values_that_can_never_be_right_are_refused(value):
    with pytest.raises(ValueError, match="label_thresholds"):
        ExitPolicy(label_thresholds=value)


def test_names_that_are_other_labels_numbers_are_refused():
    model = tiny_model("bert", num_labels=2, id2label={0: "1", 1: "0"})
    with pytest.raises(ValueError, match="not one label's name and another's number"):
        model(**tiny_batch(3), exit_policy=ExitPolicy("entropy", threshold=0.5, label_thresholds={"1": None}))
