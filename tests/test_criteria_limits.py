"""What exit criteria mean for any number of classes, and where they mean nothing and say so."""

from dataclasses import replace

import pytest
import torch
from test_criteria import DEPTHS, EXITS, judge
from test_criteria_promises import random_evidence, scores
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, predictions
from modeling_pfberxit.model.scores import score_confidence

LABELS = (SINGLE_LABEL, MULTI_LABEL)


# ---- one threshold for any number of classes ------------------------------------------------------------------------


def clueless(size: int, problem_type: str) -> Evidence:
    """Exits that know nothing, of as many classes or labels."""
    shape = (size, 2) if problem_type == MULTI_LABEL else (1, size)
    return Evidence(torch.zeros(1, EXITS, size), None, torch.ones(1, EXITS, *shape), torch.full((1, EXITS), 0.5))


@pytest.mark.parametrize("problem_type", LABELS)
@pytest.mark.parametrize(
    "policy, expected",
    [
        ({"criterion": "entropy"}, 1.0),
        ({"criterion": "pcee"}, 1.0),
        ({"criterion": "max_prob"}, 0.0),
        ({"criterion": "distance"}, 2 / 3),  # DR = 1 / 2, H = 1: 2 / (2 + 1)
        ({"criterion": "distance", "distance_weight": 3.0}, 4 / 7),  # 4 / (6 + 1)
        ({"criterion": "dge", "divergence": "kl"}, 1.0),
        ({"criterion": "dge", "divergence": "bikl"}, 1.0),
        ({"criterion": "dge", "divergence": "symkl_div"}, 0.0),
    ],
)
def test_normalised_scores_of_clueless_exits_are_the_same_for_2_and_for_77(policy, expected, problem_type):
    for size in (2, 3, 77):
        normalised = ExitPolicy(**policy, threshold=1.0, normalize=True)
        found = scores(clueless(size, problem_type), normalised, problem_type)
        assert found and found == pytest.approx([expected] * len(found), abs=1e-5)
    plain = ExitPolicy(**policy, threshold=1.0)
    few, many = (scores(clueless(size, problem_type), plain, problem_type)[0] for size in (2, 77))
    per_label = plain.criterion == "max_prob" and problem_type == MULTI_LABEL  # each has two outcomes at any rate
    assert (few == pytest.approx(many, abs=1e-3)) == (per_label or plain.divergence == "symkl_div")


@pytest.mark.parametrize("criterion", ["entropy", "pcee", "window", "dge", "distance", "max_prob"])
def test_one_normalised_threshold_stops_the_clueless_of_any_number_of_classes(criterion):
    policy = ExitPolicy(criterion, patience=1, window=1 if criterion == "dge" else 3, normalize=True)
    clue = {"max_prob": 0.0, "distance": 2 / 3}.get(criterion, 1.0)  # what the clueless score
    for size in (2, 77):
        evidence = clueless(size, SINGLE_LABEL)
        evidence = evidence._replace(logits=evidence.logits.clone())
        evidence.logits[:, ::2, 0] += 1e-4  # another label at every other exit, or ELBERT's window would settle
        evidence.logits[:, 1::2, 1] += 1e-4
        below, above = (
            judge(evidence, replace(policy, threshold=max(clue + gap, 0.0)), SINGLE_LABEL)[0] for gap in (-0.01, 0.01)
        )
        if criterion == "max_prob":
            below, above = above, below
        assert not below.any()
        assert above[:, 1:].all()


def test_a_normalised_probability_is_a_scale_from_guess_to_certainty():
    for size in (2, 77):
        sure, unsure = torch.full((1, size), -200.0), torch.zeros(1, size)
        sure[0, 0] = 200.0
        for logits, expected in ((sure, 1.0), (unsure, 0.0)):
            found = score_confidence(predictions(logits, SINGLE_LABEL), None, None, ExitPolicy(normalize=True))
            assert found.item() == pytest.approx(expected, abs=1e-6)


def test_learned_scores_and_shares_of_votes_have_no_unit_to_normalise():
    evidence = random_evidence(50, SINGLE_LABEL)
    for policy in (ExitPolicy("lte", threshold=0.4), ExitPolicy("voting", threshold=0.6)):
        plain, scaled = (judge(evidence, replace(policy, normalize=wish), SINGLE_LABEL) for wish in (False, True))
        assert torch.equal(plain[0], scaled[0]) and torch.equal(plain[1], scaled[1])


# ---- refusals -------------------------------------------------------------------------------------------------------


def refusal(policy: ExitPolicy, **knobs) -> str:
    """The error that a call ends in, before any layer runs."""
    model, ran = tiny_model("bert", **knobs), []
    for part in (model.backbone.encoder, model.depths, model.exits):
        for module in part.modules():
            module.register_forward_pre_hook(lambda *_: ran.append(True))
    with pytest.raises(ValueError) as error:
        model(**tiny_batch(3), exit_policy=policy)
    assert not ran and "\n" not in str(error.value)
    assert model(**tiny_batch(3), exit_policy={"criterion": None}).logits.isfinite().all() and ran
    return str(error.value)


ABLE_OF_VALUES = [name for name, rule in CRITERIA.items() if REGRESSION in rule.problem_types]


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ABLE_OF_VALUES])
def test_rules_that_compare_probabilities_are_refused_for_values(name):
    message = refusal(ExitPolicy(name, threshold=0.5), num_labels=1, use_lte=True)
    assert message == f"exit_criterion={name!r}: must be a rule for regression: {', '.join(ABLE_OF_VALUES)}."
    assert set(ABLE_OF_VALUES) == {"patience", "lte", "appointed"}


@pytest.mark.parametrize(
    "name, knob, other", [("lte", "use_lte", "use_prototypes"), ("distance", "use_prototypes", "use_lte")]
)
@pytest.mark.parametrize("problem_type", LABELS)
def test_rules_are_refused_where_exits_do_not_emit_what_they_judge(problem_type, name, knob, other):
    policy = ExitPolicy(name, threshold=0.5)
    message = refusal(policy, num_labels=3, problem_type=problem_type, **{other: True})
    assert message.startswith(f"exit_criterion={name!r}: must be one of ") and f"{knob}=True" in message
    named = message.split("one of ")[1].split(", or ")[0].split(", ")
    able = [each for each in CRITERIA if problem_type in CRITERIA[each].problem_types]
    assert named == [each for each in able if each not in (name, "cap")]  # exits emit what the other one judges
    model = tiny_model("bert", num_labels=3, problem_type=problem_type, **{knob: True})
    assert model(**tiny_batch(3), exit_policy=replace(policy, threshold=1e9)).exit_layer.tolist() == [1] * 3


def test_what_a_refusal_names_instead_can_judge_the_problem():
    message = refusal(ExitPolicy("lte", threshold=0.5), num_labels=1)
    assert message.startswith("exit_criterion='lte': must be ") and "use_lte=True" in message
    named = message.split("one of ")[1].split(", or ")[0].split(", ")
    assert all(REGRESSION in CRITERIA[name].problem_types for name in named)


def test_prototypes_made_for_another_problem_are_refused():
    model, ran = tiny_model("bert", num_labels=3, problem_type=SINGLE_LABEL, use_prototypes=True), []
    model.config.problem_type = MULTI_LABEL
    model.depths[0].register_forward_pre_hook(lambda *_: ran.append(True))
    with pytest.raises(ValueError, match="problem_type|exit_criterion"):
        model(**tiny_batch(3), exit_policy=ExitPolicy("distance", threshold=0.5))
    assert not ran


@pytest.mark.parametrize("name, part", [("lte", "lte"), ("distance", "distances"), ("cap", "nsp")])
def test_replay_says_what_a_record_lacks(name, part):
    evidence = random_evidence(4, SINGLE_LABEL)._replace(**{part: None})
    with pytest.raises(ValueError, match=name):
        replay(evidence, ExitPolicy(name, threshold=0.5), DEPTHS, SINGLE_LABEL)


@pytest.mark.parametrize(
    "wish, field, value, allowed",
    [
        ({"criterion": "pcee", "patience": 7}, "patience", 7, "number of exits, 6"),
        ({"criterion": "dge", "patience": 7}, "patience", 7, "number of exits, 6"),
        ({"criterion": "voting", "patience": 7}, "patience", 7, "number of exits, 6"),
        ({"criterion": "dge", "window": 7}, "window", 7, "number of exits, 6"),
        ({"criterion": "window", "window": 7}, "window", 7, "number of exits, 6"),
    ],
)
def test_counts_beyond_the_number_of_exits_are_refused(wish, field, value, allowed):
    message = refusal(ExitPolicy(threshold=0.5, **wish), num_labels=3)
    assert message.startswith(f"exit_{field}={value}: must be ") and allowed in message


@pytest.mark.parametrize("name", ["entropy", "max_prob", "lte", "window", "distance"])
def test_rules_without_patience_are_not_held_against_it(name):
    model = tiny_model("bert", num_labels=3, use_lte=True, use_prototypes=True)
    policy = ExitPolicy(name, threshold=0.0 if name == "max_prob" else 1e9, patience=9)
    assert model(**tiny_batch(3), exit_policy=policy).exit_layer.tolist() == [1] * 3


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("window_rule", "wide", "agree, monotone, narrow"),
        ("window_range", 1.5, "between 0.0 and 1.0"),
        ("window_range", -0.1, "between 0.0 and 1.0"),
        ("ensemble", "some", "none, run, all"),
        ("ensemble", None, "none, run, all"),
        ("distance_weight", -1.0, ">= 0"),
        ("distance_weight", float("nan"), "finite number"),
    ],
)
def test_bad_values_of_the_new_fields_are_refused(field, value, allowed):
    with pytest.raises(ValueError) as error:
        ExitPolicy(**{field: value})
    assert str(error.value).startswith(f"{field}={value!r}: must be ") and allowed in str(error.value)
