"""The criteria of the other systems, by hand: where a row stops, with which answer."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from test_criteria import PREDICTIONS, bits, distributions, first_exit, judge, three_classes
from test_criteria_promises import random_evidence
from torch import Tensor

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, predictions
from modeling_pfberxit.model.scores import score_distance, score_entropy
from modeling_pfberxit.model.steps import start

LABELS = (SINGLE_LABEL, MULTI_LABEL)


def outcome(row: Evidence | Tensor, problem_type: str = SINGLE_LABEL, **policy) -> tuple[int, Tensor]:
    """Where one row (E, ...) stops, the last exit if it never may, and the table of its answer: (exit, (L, K))."""
    row = row if isinstance(row, Evidence) else Evidence(row)
    evidence = Evidence(*(None if part is None else part[None] for part in row))
    depths = list(range(1, len(row.logits) + 1))
    answers, layers = replay(evidence, ExitPolicy(**policy), depths, problem_type)
    return int(layers), predictions(answers, problem_type)[0].exp()


def score_of(row: str, tables: Tensor | None = None, **policy) -> float:
    """What the last exit of one row of letters scores."""
    evidence, policy = Evidence(three_classes(row)[None], None, tables), ExitPolicy(threshold=1.0, **policy)
    state = start(1, 3, policy, len(row), SINGLE_LABEL, torch.device("cpu"))
    for logits in evidence.logits[0, :-1]:
        state.remember(predictions(logits[None], SINGLE_LABEL))
    now = Evidence(evidence.logits[:, -1], None, tables)
    return CRITERIA[policy.criterion].score(predictions(now.logits, SINGLE_LABEL), now, state, policy).item()


# ---- by hand: BranchyNet, DeeBERT, FastBERT -------------------------------------------------------------------------

# H in nats, with ln 0.8 = -0.2231, ln 0.6 = -0.5108, ln 0.4 = -0.9163, ln 0.3 = -1.2040, ln 0.2 = -1.6094,
# ln 0.1 = -2.3026, and over ln 3 = 1.0986:
#   A (0.8, 0.1, 0.1)   0.8 * 0.2231 + 0.2 * 2.3026 = 0.6390   0.5817
#   M (0.6, 0.2, 0.2)   0.6 * 0.5108 + 0.4 * 1.6094 = 0.9503   0.8650
#   a (0.4, 0.3, 0.3)   0.4 * 0.9163 + 0.6 * 1.2040 = 1.0889   0.9912
#   U                   ln 3                        = 1.0986   1
ENTROPIES = {"A": 0.6390, "M": 0.9503, "a": 1.0889, "U": 1.0986}


@pytest.mark.parametrize("letter, nats", ENTROPIES.items())
@pytest.mark.parametrize("criterion", ["entropy", "pcee", "window"])
def test_hand_worked_entropies(criterion, letter, nats):
    assert score_of(letter, criterion=criterion) == pytest.approx(nats, abs=1e-4)
    assert score_of(letter, criterion=criterion, normalize=True) == pytest.approx(nats / 1.0986, abs=1e-4)


@pytest.mark.parametrize(
    "row, policy, expected",
    [
        ("AUUUUU", {"threshold": 1.0}, 1),  # nothing has to be compared
        ("UaMAAA", {"threshold": 1.0}, 3),
        ("UaMAAA", {"threshold": 0.9}, 4),
        ("UaMAAA", {"threshold": 1.09}, 2),
        ("UaMAAA", {"threshold": 1.1}, 1),
        ("UaMAAA", {"threshold": 0.6}, None),
        ("UaMBAA", {"threshold": 0.9, "patience": 5, "window": 6}, 4),  # neither patience nor window count
        ("UaMAAA", {"threshold": 0.9, "normalize": True}, 3),
        ("UaMAAA", {"threshold": 0.5, "normalize": True}, None),
        ("AMAAAA", {"threshold": (0.1, 0.9, 0.7, 9.0, 9.0, 9.0)}, 3),
        ("AMAMMM", {"threshold": 0.7, "min_layer": 2}, 3),
        ("AMMMMM", {"threshold": 0.7, "min_layer": 2}, None),  # what came too early is not kept
    ],
)
def test_entropy_by_hand(row, policy, expected):
    assert first_exit(three_classes(row), criterion="entropy", **policy) == expected


@pytest.mark.parametrize(
    "row, policy, expected",
    [
        # a label has 0.325 nats where it is given or not, ln 2 = 0.693 where it is open:
        # sums                  1.386 1.018 0.650
        ("?? 1? 10", {"threshold": 0.7}, 3),
        ("?? 1? 10", {"threshold": 1.1}, 2),
        ("?? 1? 10", {"threshold": 1.4}, 1),
        # over 2 ln 2           1     0.734 0.469
        ("?? 1? 10", {"threshold": 0.7, "normalize": True}, 3),
        ("?? 1? 10", {"threshold": 0.8, "normalize": True}, 2),
    ],
)
def test_entropy_of_several_labels_by_hand(row, policy, expected):
    assert first_exit(bits(row), MULTI_LABEL, criterion="entropy", **policy) == expected


@pytest.mark.parametrize("classes", [2, 3, 77])
def test_entropy_is_scipy_s(classes):
    logits = random_evidence(30, SINGLE_LABEL).logits.flatten()[: 6 * classes].reshape(6, classes)
    for problem_type in LABELS:
        p = np.stack([distributions(row[None].numpy(), problem_type)[0] for row in logits])  # (B, L, K)
        table = predictions(logits, problem_type)
        plain, scaled = (score_entropy(table, None, None, ExitPolicy(normalize=wish)) for wish in (False, True))
        np.testing.assert_allclose(plain, scipy.stats.entropy(p, axis=-1).sum(-1), rtol=1e-5)
        np.testing.assert_allclose(scaled, scipy.stats.entropy(p, base=p.shape[-1], axis=-1).mean(-1), rtol=1e-5)


# ---- by hand: Shallow-Deep ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, policy, expected, answer",
    [
        ("UaMAMM", {"threshold": 0.7}, 4, "A"),
        ("UaMBMM", {"threshold": 0.5}, 3, "M"),
        ("UaMBMM", {"threshold": 0.3}, 1, "U"),
        ("UaMBMM", {"threshold": 0.0}, 1, "U"),
        ("UaMBMa", {"threshold": 0.9}, 6, "B"),  # no exit is that sure: the surest one answers
        ("BaMUUU", {"threshold": 0.9}, 6, "B"),
        ("UUaMUB", {"threshold": 0.9}, 6, "B"),
        ("BaaaaM", {"threshold": (0.9, 0.9, 0.9, 0.9, 0.9, 0.5)}, 6, "M"),  # the last one is sure enough itself
        ("BMaaaa", {"threshold": 0.5, "min_layer": 2}, 2, "M"),
        ("Baaaaa", {"threshold": 0.5, "min_layer": 2}, 6, "B"),
        # over a guess: A (0.8 - 1/3) / (2/3) = 0.7, M 0.4, a 0.1, U 0
        ("UaMAMM", {"threshold": 0.75, "normalize": True}, 6, "A"),
        ("UaMAMM", {"threshold": 0.65, "normalize": True}, 4, "A"),
        ("UaMAMM", {"threshold": 0.35, "normalize": True}, 3, "M"),
        ("UaMAMM", {"threshold": 0.05, "normalize": True}, 2, "a"),
    ],
)
def test_max_prob_by_hand(row, policy, expected, answer):
    layer, table = outcome(three_classes(row), criterion="max_prob", **policy)
    assert layer == expected
    torch.testing.assert_close(table[0], torch.tensor(PREDICTIONS[answer]))


@pytest.mark.parametrize(
    "row, policy, expected, answer",
    [
        ("?? 1? 10 11", {"threshold": 0.8}, 3, "10"),  # the least sure label: 0.5 0.5 0.9 0.9
        ("?? 1? 10 11", {"threshold": 0.65}, 3, "10"),  # not the mean over the labels
        ("?? 1? 10 11", {"threshold": 0.5}, 1, "??"),
        ("?? 10 1? ?0", {"threshold": 0.95}, 4, "10"),
        ("?? 1? 10 11", {"threshold": 0.85, "normalize": True}, 4, "11"),  # 0 0 0.8 0.8: the newest of the surest
        ("?? 1? 10 11", {"threshold": 0.75, "normalize": True}, 3, "10"),
    ],
)
def test_max_prob_of_several_labels_by_hand(row, policy, expected, answer):
    layer, table = outcome(bits(row), MULTI_LABEL, criterion="max_prob", **policy)
    assert layer == expected
    torch.testing.assert_close(table, predictions(bits(answer), MULTI_LABEL)[0].exp())


# ---- by hand: BERxiT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tau, expected",
    # how likely it is wrong   0.9 0.5 0.3 0.6 0.1
    [(0.95, 1), (0.6, 2), (0.5, 3), (0.2, 5), (0.1, None), (0.05, None), ((0.8, 0.4, 0.2, 0.7, 0.2), 4)],
)
@pytest.mark.parametrize("problem_type", [*LABELS, REGRESSION])
def test_lte_by_hand(problem_type, tau, expected):
    logits = three_classes("UaBMA")
    row = Evidence(logits, torch.tensor([0.9, 0.5, 0.3, 0.6, 0.1]))
    layer, table = outcome(row, problem_type, criterion="lte", threshold=tau)
    assert layer == (expected or 5)
    torch.testing.assert_close(table, predictions(logits[layer - 1][None], problem_type)[0].exp())
    fired, _ = judge(
        Evidence(row.logits[None], row.lte[None]), ExitPolicy("lte", threshold=tau), problem_type, [*range(1, 6)]
    )
    assert fired.any() == (expected is not None)


# ---- by hand: ELBERT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, m, tau, expected",
    [
        # no exit's entropy is below 0: they must settle
        ("AaAaAa", 3, 0.0, 3),  # on the label, not on how sure it is
        ("AABBBB", 3, 0.0, 5),
        ("AABBBB", 2, 0.0, 2),
        ("AABBBB", 1, 0.0, 1),
        ("ABABAB", 2, 0.0, None),
        ("AABBAA", 3, 0.0, None),
        ("AAAAAA", 6, 0.0, 6),
        # or one is sure enough on its own: H(A) = 0.639, H(M) = 0.950, H(a) = 1.089
        ("abABAB", 3, 0.7, 3),
        ("abMaMM", 3, 1.0, 3),
        ("abMaMM", 3, 0.6, 5),
        ("aaaaaa", 3, 0.7, 3),
    ],
)
def test_window_by_hand(row, m, tau, expected):
    assert first_exit(three_classes(row), criterion="window", window=m, threshold=tau) == expected


@pytest.mark.parametrize(
    "row, m, rule, expected",
    [
        # probability of the predicted label: A 0.8, M 0.6, a 0.4 for the first class, B 0.8, b 0.4 for the second
        ("aMAAAA", 3, {"window_rule": "monotone"}, 3),
        ("AMaaaa", 3, {"window_rule": "monotone"}, 3),  # falling is monotone as well
        ("aAMaAa", 3, {"window_rule": "monotone"}, 4),  # 0.4 0.8 0.6, then 0.8 0.6 0.4
        ("aAaAaA", 3, {"window_rule": "monotone"}, None),
        ("aAaAaA", 2, {"window_rule": "monotone"}, 2),
        ("AAAAAA", 3, {"window_rule": "monotone"}, 3),
        ("abBBBB", 3, {"window_rule": "monotone"}, 4),  # a says another label, though its second class rises
        ("aMAaMA", 4, {"window_rule": "monotone"}, None),
        ("aMAMMM", 3, {"window_rule": "narrow", "window_range": 0.25}, 4),  # 0.4, then 0.2 apart
        ("aMAMMM", 3, {"window_rule": "narrow", "window_range": 0.45}, 3),
        ("aMAMMM", 3, {"window_rule": "narrow", "window_range": 0.15}, 6),
        ("aMAMMA", 3, {"window_rule": "narrow", "window_range": 0.15}, None),
        ("abMaaa", 2, {"window_rule": "narrow", "window_range": 0.25}, 4),  # a and b are alike, but not one label
        ("AAAAAA", 3, {"window_rule": "narrow", "window_range": 0.0}, 3),
    ],
)
def test_the_window_s_rules_by_hand(row, m, rule, expected):
    assert first_exit(three_classes(row), criterion="window", window=m, threshold=0.0, **rule) == expected


@pytest.mark.parametrize(
    "row, m, tau, expected",
    [
        ("10 11 11 11", 3, 0.0, 4),  # the second label settles later
        ("10 11 11 11", 2, 0.0, 3),
        ("10 11 10 11", 2, 0.0, None),
        ("1? 10 11 10", 3, 0.7, 2),  # 0.650 nats
    ],
)
def test_window_asks_all_labels(row, m, tau, expected):
    assert first_exit(bits(row), MULTI_LABEL, criterion="window", window=m, threshold=tau) == expected


# ---- by hand: PCEE-BERT ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, policy, expected, answers",
    [
        # sure below 0.7: A and B (0.639), not M (0.950); the answer of the exit, of its sure run, of all so far
        ("MABMMM", {"patience": 2}, 3, [(0.1, 0.8, 0.1), (0.45, 0.45, 0.1), (0.5, 1.1 / 3, 0.4 / 3)]),
        ("AMAAMM", {"patience": 2}, 4, [(0.8, 0.1, 0.1), (0.8, 0.1, 0.1), (0.75, 0.125, 0.125)]),
        ("ABMMMM", {"patience": 1}, 1, [(0.8, 0.1, 0.1)] * 3),
        ("ABAMMM", {"patience": 3}, 3, [(0.8, 0.1, 0.1), (1.7 / 3, 1 / 3, 0.1), (1.7 / 3, 1 / 3, 0.1)]),
        # normalised 0.582, 0.865
        ("MABMMM", {"patience": 2, "threshold": 0.6, "normalize": True}, 3, [(0.1, 0.8, 0.1)]),
        ("MABMMM", {"patience": 2, "threshold": 0.5, "normalize": True}, 6, [(0.6, 0.2, 0.2)]),
        # never sure: at the end the run is what there is of it, at least the last exit
        ("BMMMMM", {"patience": 2}, 6, [(0.6, 0.2, 0.2), (0.6, 0.2, 0.2), (3.1 / 6, 1.8 / 6, 1.1 / 6)]),
        ("MMMMBA", {"patience": 3}, 6, [(0.8, 0.1, 0.1), (0.45, 0.45, 0.1), (3.3 / 6, 1.7 / 6, 1.0 / 6)]),
        # kept in by min_layer, a run is longer than patience: its last two
        ("ABBBMM", {"patience": 2, "min_layer": 3}, 3, [(0.1, 0.8, 0.1), (0.1, 0.8, 0.1), (1 / 3, 1.7 / 3, 0.1)]),
    ],
)
def test_pcee_by_hand(row, policy, expected, answers):
    for ensemble, answer in zip(("none", "run", "all"), answers):
        wish = {"threshold": 0.7, **policy, "ensemble": ensemble}
        layer, table = outcome(three_classes(row), criterion="pcee", **wish)
        assert layer == expected
        torch.testing.assert_close(table[0], torch.tensor(answer))


def test_pcee_of_several_labels_by_hand():
    # 0.650 nats are below 0.7; the labels of the run: 0.9, and (0.9 + 0.1) / 2; of all: (0.9 + 0.9 + 0.5) / 3
    for ensemble, given in (("none", (0.9, 0.1)), ("run", (0.9, 0.5)), ("all", (2.3 / 3, 1.5 / 3))):
        policy = {"criterion": "pcee", "threshold": 0.7, "patience": 2, "ensemble": ensemble}
        layer, table = outcome(bits("?? 11 10 00"), MULTI_LABEL, **policy)
        assert layer == 3
        torch.testing.assert_close(table[:, 0], torch.tensor(given))


# ---- by hand: BADGE -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, m, expected",
    [
        # CE on A: A 0.639, B 2.095, M 0.6 * 0.2231 + 0.4 * 2.3026 = 1.0549, U 1.609
        ("AA", 1, 0.6390),
        ("AA", 3, 0.6390),  # one exit behind it
        ("ABB", 2, (0.6390 + 2.0946) / 2),
        ("AABB", 3, (0.6390 + 2 * 2.0946) / 3),
        ("AABB", 1, 0.6390),
        ("AAM", 2, 1.0549),
    ],
)
def test_dge_is_the_mean_divergence_by_hand(row, m, expected):
    assert score_of(row, criterion="dge", window=m) == pytest.approx(expected, abs=1e-4)
    assert score_of(row, criterion="dge", window=m, normalize=True) == pytest.approx(expected / 1.0986, abs=1e-4)


@pytest.mark.parametrize(
    "row, m, tau, t, expected",
    [
        # AABBBB, m = 2: -  0.639 2.095 1.367 0.639 0.639
        ("AABBBB", 2, 1.0, 1, 2),
        ("AABBBB", 2, 1.0, 2, 6),
        ("AABBBB", 2, 1.4, 2, 5),
        ("AABBBB", 2, 1.4, 3, 6),
        ("AABBBB", 2, 0.6, 1, None),
        ("AABBBB", 1, 1.0, 2, 5),  # as v1
        ("ABABAB", 2, 1.4, 1, 3),  # (2.095 + 0.639) / 2, where v2 would hold 2.095 against tau
        ("ABABAB", 2, 1.3, 1, None),
        ("AAAAAA", 6, 1.0, 5, 6),
        ("AAAAAA", 6, 1.0, 6, None),
    ],
)
def test_dge_by_hand(row, m, tau, t, expected):
    policy = {"criterion": "dge", "window": m, "threshold": tau, "patience": t}
    assert first_exit(three_classes(row), **policy) == expected


@pytest.mark.parametrize("problem_type", LABELS)
def test_dge_with_a_window_of_one_is_v1(problem_type):
    evidence = random_evidence(200, problem_type)
    v1 = ExitPolicy("divergence_v1", "symkl_div", threshold=0.5, patience=2)
    narrow, wide = (replace(v1, criterion="dge", window=m) for m in (1, 2))
    fired = judge(evidence, v1, problem_type)[0]
    assert torch.equal(judge(evidence, narrow, problem_type)[0], fired)
    assert not torch.equal(judge(evidence, wide, problem_type)[0], fired)


# ---- by hand: DE3-BERT ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "letter, distances, policy, expected",
    [
        # A predicts the first class, H = 0.6390, 1 / H = 1.5649; normalised 0.5817, 1.7192
        ("A", (1.0, 4.0, 2.0), {}, 0.3594),  # DR = (1 + (1 - 2) / 2) / 2 = 0.25: 2 / (4 + 1.5649)
        ("A", (4.0, 1.0, 3.0), {}, 0.7386),  # DR = (1 + (4 - 1) / 4) / 2 = 0.875: 2 / (1.1429 + 1.5649)
        ("A", (3.0, 3.0, 3.0), {}, 0.5611),  # DR = 0.5: 2 / (2 + 1.5649)
        ("A", (0.0, 0.0, 0.0), {}, 0.5611),  # in the same place as all prototypes, they tell nothing
        ("B", (1.0, 4.0, 2.0), {}, 0.7386),  # DR = (1 + (4 - 1) / 4) / 2
        ("A", (1.0, 4.0, 2.0), {"distance_weight": 3.0}, 0.2949),  # 4 / (12 + 1.5649)
        ("A", (1.0, 4.0, 2.0), {"distance_weight": 0.0}, 0.6390),  # nothing but entropy
        ("A", (1.0, 4.0, 2.0), {"normalize": True}, 0.3497),  # 2 / (4 + 1.7192)
        ("A", (0.0, 4.0, 2.0), {}, 0.0),  # on the prototype: DR = 0
        ("U", (9.0, 0.0, 9.0), {}, 1.0470),  # on another one's: DR = 1, H = 1.0986: 2 / (1 + 0.9102)
    ],
)
def test_hand_worked_distance_scores(letter, distances, policy, expected):
    found = score_of(letter, torch.tensor([[distances]]), criterion="distance", **policy)
    assert found == pytest.approx(expected, abs=1e-4)


def test_distances_of_several_labels_by_hand():
    # Label 1 is given: (1 + (1 - 2) / 2) / 2 = 0.25. Label 2 is not: (1 + (4 - 1) / 4) / 2 = 0.875. Mean 0.5625.
    # H = 0.6502, 2 / (1.7778 + 1.5381) = 0.6032; normalised H = 0.4690, 2 / (1.7778 + 2.1322) = 0.5115
    evidence = Evidence(bits("10"), None, torch.tensor([[[1.0, 2.0], [1.0, 4.0]]]))
    now = predictions(evidence.logits, MULTI_LABEL)
    for wish, expected in ((False, 0.6032), (True, 0.5115)):
        policy = ExitPolicy("distance", normalize=wish)
        assert score_distance(now, evidence, None, policy).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tau, expected", [(0.3, None), (0.5, 3), (0.7, 2), (0.8, 1), ((0.7, 0.5, 0.3, 0.5), 4)])
def test_distance_by_hand(tau, expected):
    near, far, between_all = (1.0, 4.0, 2.0), (4.0, 1.0, 3.0), (3.0, 3.0, 3.0)  # 0.359, 0.739, 0.561
    row = Evidence(three_classes("AAAA"), None, torch.tensor([far, between_all, near, near])[:, None])
    fired, answers = judge(
        Evidence(row.logits[None], None, row.distances[None]),
        ExitPolicy("distance", threshold=tau),
        SINGLE_LABEL,
        [*range(1, 5)],
    )
    assert (int(fired[0].nonzero()[0]) + 1 if fired.any() else None) == expected
    assert torch.equal(answers, row.logits[None])


# ---- by hand: BEEM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, tau, expected",
    [
        # exits 2, 4, 5 and 6 agree with the one before: 0.2 x 0.8, nothing, 0.4 x 0.8, + 0.5 x 0.8, + 0.6 x 0.8
        ("AABBBB", 0.15, 2),  # 0, 0.16
        ("AABBBB", 0.17, 4),  # 0, 0.16, 0, 0.32
        ("AABBBB", 0.33, 5),  # 0, 0.16, 0, 0.32, 0.72
        ("AABBBB", 0.73, 6),
        ("AAaAAA", 0.27, 3),  # 0.16 + 0.3 x 0.4: an exit that is less sure adds less
        ("AAaAAA", 0.29, 4),  # + 0.4 x 0.8
        ("ABABAB", 0.01, 6),  # no two neighbours agree
        ("ABABAB", 0.0, 1),
    ],
)
def test_beem_by_hand(row, tau, expected):
    layer, table = outcome(three_classes(row), criterion="beem", threshold=tau)
    assert layer == expected
    answer = {"A": (0.8, 0.1, 0.1), "B": (0.1, 0.8, 0.1), "a": (0.4, 0.3, 0.3)}[row[expected - 1]]
    torch.testing.assert_close(table[0], torch.tensor(answer))


# ---- by hand: voting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, policy, expected, answer",
    [
        # shares of the majority         1  1/2 2/3 3/4 ...
        ("ABAAAA", {"threshold": 0.6}, 3, (0.8, 0.1, 0.1)),  # two votes of three
        ("ABAAAA", {"threshold": 0.7}, 4, (0.8, 0.1, 0.1)),
        ("aBMAAA", {"threshold": 0.6}, 3, (0.5, 0.25, 0.25)),  # a and M voted for it, in the mean
        ("aBMAAA", {"threshold": 0.7}, 4, (0.6, 0.2, 0.2)),
        ("ABABBB", {"threshold": 0.6, "patience": 3}, 5, (0.1, 0.8, 0.1)),
        ("AABBBB", {"threshold": 0.0}, 2, (0.8, 0.1, 0.1)),
        ("AABBBB", {"threshold": 1.0}, 2, (0.8, 0.1, 0.1)),
        ("ABBBBB", {"threshold": 1.0}, 6, (0.1, 0.8, 0.1)),  # never of one mind: the majority answers
        ("ABAAAb", {"threshold": 0.0, "patience": 5}, 6, (0.8, 0.1, 0.1)),
        ("AMAMAA", {"threshold": 0.0, "patience": 1}, 1, (0.8, 0.1, 0.1)),
        # a tie goes to the newest
        ("ABABAb", {"threshold": 0.6, "patience": 5}, 6, (0.5 / 3, 2.0 / 3, 0.5 / 3)),  # the mean of B, B and b
        ("BABAba", {"threshold": 0.6, "patience": 5}, 6, (2.0 / 3, 0.5 / 3, 0.5 / 3)),
        ("ABAAAA", {"threshold": 0.0, "patience": 1, "min_layer": 2}, 2, (0.1, 0.8, 0.1)),
        ("ABAAAA", {"threshold": (0.9, 0.9, 0.9, 0.9, 0.7, 0.9)}, 5, (0.8, 0.1, 0.1)),
    ],
)
def test_voting_by_hand(row, policy, expected, answer):
    layer, table = outcome(three_classes(row), criterion="voting", **{"patience": 2, **policy})
    assert layer == expected
    torch.testing.assert_close(table[0], torch.tensor(answer))


@pytest.mark.parametrize(
    "row, policy, expected, given",
    [
        # each label has its own majority; the smaller share counts: 1 1/2 2/3 1/2
        ("10 11 11 10", {"threshold": 0.6, "patience": 2}, 3, (0.9, 0.9)),
        ("10 11 10 11", {"threshold": 0.6, "patience": 2}, 3, (0.9, 0.1)),
        ("10 01 11 11", {"threshold": 0.6, "patience": 3}, 4, (0.9, 0.9)),  # 3/4 each, not by the same exits
        ("11 11 00 00", {"threshold": 0.9, "patience": 3}, 4, (0.1, 0.1)),
    ],
)
def test_voting_of_several_labels_by_hand(row, policy, expected, given):
    layer, table = outcome(bits(row), MULTI_LABEL, criterion="voting", **policy)
    assert layer == expected
    torch.testing.assert_close(table[:, 0], torch.tensor(given))
