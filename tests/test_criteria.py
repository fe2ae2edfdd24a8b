"""The paper's criteria, PABEE's and a fixed layer: hand-worked tables, and the formulas once more in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.model.evidence import DIVERGENCES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, predictions
from modeling_pfberxit.model.scores import divergences_from_past
from modeling_pfberxit.model.steps import start, step

EXITS = 6
DEPTHS = list(range(1, EXITS + 1))
BY_DIVERGENCE = ("divergence_v1", "divergence_v2", "divergence_v3")


def judge(
    evidence: Evidence, policy: ExitPolicy, problem_type: str, depths: list[int] = DEPTHS
) -> tuple[Tensor, Tensor]:
    """Which rows may stop at which exit, (B, E), and the answers they would leave with, (B, E, C)."""
    rows, exits, labels = evidence.logits.shape
    state = start(rows, labels, policy, exits, problem_type, evidence.logits.device)
    steps = [
        step(evidence.at(number), state, policy, torch.full((rows,), depth)) for number, depth in enumerate(depths)
    ]
    fired, answers = zip(*steps)
    return torch.stack(fired, dim=1), torch.stack(answers, dim=1)


def fires(logits: Tensor, policy: ExitPolicy, problem_type: str, depths: list[int] = DEPTHS) -> Tensor:
    """Which rows may stop at which exit: logits (B, E, C) -> (B, E)."""
    return judge(Evidence(logits), policy, problem_type, depths)[0]


def first_exit(row: Tensor, problem_type: str = SINGLE_LABEL, **policy) -> int | None:
    """The exit (1-based) at which one row (E, C) stops, None where the rule never fires."""
    fired = fires(row[None], ExitPolicy(**policy), problem_type, list(range(1, len(row) + 1)))[0]
    return int(fired.nonzero()[0]) + 1 if fired.any() else None


# ---- by hand --------------------------------------------------------------------------------------------------------

# CE(now, before) of three classes; ln 0.8 = -0.223, ln 0.1 = -2.303, ln 0.4 = -0.916, ln 0.3 = -1.204, ln 3 = 1.099:
#   now \ before    A       B       a       U
#   A             0.639   2.095   0.974   1.099      A on A: 0.8 * 0.223 + 0.2 * 2.303
#   B             2.095   0.639   1.175   1.099      B on A: 0.8 * 2.303 + 0.1 * 0.223 + 0.1 * 2.303
#   a             1.471   1.679   1.089   1.099      A on a: 0.8 * 0.916 + 0.2 * 1.204
#   U             1.609   1.609   1.108   1.099      U on A: (0.223 + 2 * 2.303) / 3
PREDICTIONS = {
    "A": (0.8, 0.1, 0.1), "M": (0.6, 0.2, 0.2), "a": (0.4, 0.3, 0.3), "U": (1 / 3, 1 / 3, 1 / 3),
    "B": (0.1, 0.8, 0.1), "b": (0.3, 0.4, 0.3),
}  # fmt: skip
HAND_SCORES = {
    "AA": 0.639, "AB": 2.095, "Aa": 0.974, "AU": 1.099,
    "BA": 2.095, "BB": 0.639, "Ba": 1.175, "BU": 1.099,
    "aA": 1.471, "aB": 1.679, "aa": 1.089, "aU": 1.099,
    "UA": 1.609, "UB": 1.609, "Ua": 1.108, "UU": 1.099,
}  # fmt: skip


def three_classes(row: str) -> Tensor:
    """One letter for each exit -> logits (E, 3)."""
    return torch.tensor([PREDICTIONS[letter] for letter in row]).log()


@pytest.mark.parametrize("pair, expected", HAND_SCORES.items())
def test_hand_worked_scores_of_three_classes(pair, expected):
    policy = ExitPolicy(threshold=1.0)
    state = start(1, 3, policy, 2, SINGLE_LABEL, torch.device("cpu"))
    now, before = (predictions(three_classes(letter), SINGLE_LABEL) for letter in pair)
    state.remember(before)
    assert divergences_from_past(now, state, policy).item() == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    "row, tau, t, expected",
    [
        # below tau = 1:                            1 = yes, 0 = no, from the second exit on
        ("AAAAAA", 1.0, 1, 2),  #                   1 1 1 1 1
        ("AAAAAA", 1.0, 3, 4),
        ("AAAAAA", 1.0, 5, 6),
        ("AAAAAA", 1.0, 6, None),  #                six exits have five scores
        ("AAAAAA", 0.6, 1, None),  #                0.639 is not below 0.6
        ("AABBBB", 1.0, 1, 2),  #                   1 0 1 1 1
        ("AABBBB", 1.0, 2, 5),  #                   counts 1 0 1 2
        ("AABBBB", 1.0, 3, 6),
        ("AABAAB", 1.0, 2, None),  #                1 0 0 1 0
        ("UUUAAA", 1.0, 2, 6),  #                   0 0 0 1 1
        ("UUUAAA", 1.3, 2, 3),  #                   1.099 is below 1.3
        ("AaAaAa", 1.0, 1, 3),  #                   0 1 0 1 0: a on A scores 1.471, A on a 0.974
        ("AaAaAa", 1.0, 2, None),
        ("AaAaAa", 1.5, 2, 3),
    ],
)
def test_v1_by_hand(row, tau, t, expected):
    assert first_exit(three_classes(row), criterion="divergence_v1", threshold=tau, patience=t) == expected


@pytest.mark.parametrize(
    "row, m, t, expected",
    [
        ("AABBBB", 1, 2, 5),  # as v1
        ("AABBBB", 2, 1, 2),  # exit 2 has only exit 1 behind it
        ("AABBBB", 2, 2, 6),  # passes 2, 5, 6: at 4 the exits behind are B and A
        ("AABBBB", 3, 1, 2),
        ("AABBBB", 3, 2, None),  # passes 2 and 6: at 5 an A is still in the window
        ("AAAAAA", 5, 3, 4),
        ("ABABAB", 2, 1, None),
        ("ABAAAA", 2, 1, 5),  # at 4 the window is A, B
        ("ABAAAA", 3, 1, 6),
        ("BAAAAA", 5, 1, None),  # at 6 the window still holds exit 1
        ("BAAAAA", 4, 1, 6),
    ],
)
def test_v2_by_hand(row, m, t, expected):
    policy = {"criterion": "divergence_v2", "threshold": 1.0, "window": m, "patience": t}
    assert first_exit(three_classes(row), **policy) == expected


@pytest.mark.parametrize(
    "row, m, t, expected",
    [
        ("ABABAB", 1, 1, None),
        ("ABABAB", 2, 1, 3),  # A on (B, A): one of two
        ("ABABAB", 3, 2, None),  # exits 3 to 6: one of three
        ("ABABAB", 4, 2, 5),  # A on (B, A, B, A): two of four, though never in a row
        ("AABAAA", 3, 2, 4),  # A on (B, A, A)
        ("AABAAA", 2, 2, 6),  # exit 4: (B, A) one; 5: (A, B) one; 6: (A, A) two
        ("AAAAAA", 3, 3, 4),  # three scores are there at exit 4 for the first time
        ("AABBBB", 3, 2, 5),
        ("UUAUAU", 2, 1, 5),  # A on (U, A)
    ],
)
def test_v3_by_hand(row, m, t, expected):
    policy = {"criterion": "divergence_v3", "threshold": 1.0, "window": m, "patience": t}
    assert first_exit(three_classes(row), **policy) == expected


@pytest.mark.parametrize(
    "tau, t, expected",
    # p(first of two classes)      0.5   0.6   0.9   0.9   0.95  0.95
    # CE(now, before)                    0.693 0.551 0.325 0.215 0.199       0.551 = 0.9 * 0.511 + 0.1 * 0.916
    [(0.7, 1, 2), (0.6, 1, 3), (0.6, 2, 4), (0.5, 2, 5), (0.5, 3, 6), (0.3, 2, 6), (0.2, 1, 6), (0.2, 2, None)],
)
def test_v1_by_hand_with_two_classes(tau, t, expected):
    p = torch.tensor([0.5, 0.6, 0.9, 0.9, 0.95, 0.95])
    row = torch.stack([p, 1 - p], dim=-1).log()
    assert first_exit(row, criterion="divergence_v1", threshold=tau, patience=t) == expected


def bits(row: str) -> Tensor:
    """ "10 1?": at each exit the labels that are given, with probability 0.9, 0.1 or, unknown, 0.5 -> logits (E, C)."""
    given = torch.tensor([[{"1": 0.9, "0": 0.1, "?": 0.5}[bit] for bit in exit_] for exit_ in row.split()])
    return given.logit()


@pytest.mark.parametrize(
    "row, policy, expected",
    [
        # A label scores 0.325 where the exits agree and 0.9 * 2.303 + 0.1 * 0.105 = 2.083 where they do not:
        # sums over both labels                         0.650 2.408 0.650 0.650
        ("11 11 10 10 10", {"threshold": 0.7, "patience": 1}, 2),
        ("11 11 10 10 10", {"threshold": 0.7, "patience": 2}, 5),
        ("11 11 10 10 10", {"threshold": 0.6, "patience": 1}, None),
        ("11 11 10 10 10", {"threshold": 2.5, "patience": 2}, 3),
        # each label over ln 2, averaged                0.469 1.737 0.469 0.469
        ("11 11 10 10 10", {"threshold": 0.5, "patience": 2, "normalize": True}, 5),
        ("11 11 10 10 10", {"threshold": 0.4, "patience": 1, "normalize": True}, None),
        ("11 11 10 10 10", {"threshold": 1.8, "patience": 2, "normalize": True}, 3),
        ("10 01 10 01 10", {"criterion": "divergence_v3", "threshold": 0.7, "patience": 2, "window": 4}, 5),
        ("10 11 11 11 01", {"criterion": "divergence_v2", "threshold": 0.7, "patience": 1, "window": 2}, 4),
    ],
)
def test_divergences_of_several_labels_by_hand(row, policy, expected):
    assert first_exit(bits(row), MULTI_LABEL, **policy) == expected


@pytest.mark.parametrize(
    "row, t, expected",
    [
        ("AABBBB", 1, 2),  # agreements 1 0 1 1 1
        ("AABBBB", 2, 5),
        ("AABBBB", 3, 6),
        ("AABBBB", 4, None),
        ("aAaAaA", 2, 3),  # the label counts, not how sure it is
        ("ABaaaa", 2, 5),
        ("ABABAB", 1, None),
        ("AAAAAA", 6, None),  # six exits can agree five times
    ],
)
@pytest.mark.parametrize("tau", [None, 0.0, 5.0])
def test_patience_by_hand(row, t, tau, expected):
    assert first_exit(three_classes(row), criterion="patience", patience=t, threshold=tau) == expected


@pytest.mark.parametrize(
    "row, t, expected",
    [("10 11 11 11 01", 1, 3), ("10 11 11 11 01", 2, 4), ("10 11 11 11 01", 3, None), ("10 11 10 11 10", 1, None)],
)
def test_patience_with_several_labels_asks_all_of_them(row, t, expected):
    assert first_exit(bits(row), MULTI_LABEL, criterion="patience", patience=t) == expected


@pytest.mark.parametrize(
    "values, tau, t, expected",
    [
        # distances                              0.4  0.1  0.06  0.03  0.01
        ([[1.0], [1.4], [1.5], [1.44], [1.47], [1.46]], 0.2, 1, 3),
        ([[1.0], [1.4], [1.5], [1.44], [1.47], [1.46]], 0.2, 2, 4),
        ([[1.0], [1.4], [1.5], [1.44], [1.47], [1.46]], 0.05, 1, 5),
        ([[1.0], [1.4], [1.5], [1.44], [1.47], [1.46]], 0.05, 2, 6),
        ([[1.0], [1.4], [1.5], [1.44], [1.47], [1.46]], 0.05, 3, None),
        ([[0.0], [0.1], [0.2], [0.3], [0.4]], 0.15, 4, 5),  # a slow drift is compared with the exit before alone
        ([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], 0.5, 2, 4),  # the farthest output counts
    ],
)
def test_patience_with_values_by_hand(values, tau, t, expected):
    policy = {"criterion": "patience", "threshold": tau, "patience": t}
    assert first_exit(torch.tensor(values), REGRESSION, **policy) == expected


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
@pytest.mark.parametrize("row", ["AAAAAA", "ABaUBA"])
@pytest.mark.parametrize("layer", DEPTHS)
def test_appointed_stops_at_its_layer_whatever_is_predicted(layer, row, problem_type):
    assert first_exit(three_classes(row), problem_type, criterion="appointed", appointed_layer=layer) == layer


@pytest.mark.parametrize(
    "row, taus, t, expected",
    [
        ("AAAAAA", (9.0, 0.1, 0.1, 1.0, 0.1, 1.0), 1, 4),  # each exit is held against its own; all score 0.639
        ("AAAAAA", (9.0, 0.1, 0.1, 1.0, 0.1, 1.0), 2, None),
        ("AAAAAA", (0.0, 0.1, 0.1, 0.1, 1.0, 1.0), 2, 6),
        ("AAAAAA", (9.0, 0.1, 0.1, 0.1, 0.1, 0.1), 1, None),  # the first exit has nothing to be compared with
        ("AABBBB", (0.0, 0.1, 2.5, 0.1, 0.1, 0.1), 1, 3),
    ],
)
def test_each_exit_may_have_its_own_threshold(row, taus, t, expected):
    for criterion in ("divergence_v1", "divergence_v2"):
        policy = {"criterion": criterion, "threshold": taus, "patience": t, "window": 1}
        assert first_exit(three_classes(row), **policy) == expected
    if t == 1:
        policy = {"criterion": "divergence_v3", "threshold": taus, "patience": 1, "window": 1}
        assert first_exit(three_classes(row), **policy) == expected


@pytest.mark.parametrize(
    "row, t, min_layer, expected",
    [
        ("AAAAAA", 1, 1, 2),
        ("AAAAAA", 1, 4, 4),
        ("AAAAAA", 2, 4, 4),  # agreement before that layer counts
        ("AAABBB", 2, 3, 3),
        ("AAABBB", 2, 4, 6),  # but a stop that came too early is not kept
        ("AAAAAA", 1, 6, 6),
    ],
)
@pytest.mark.parametrize("criterion", ["divergence_v1", "patience"])
def test_no_row_leaves_before_min_layer(row, t, min_layer, criterion, expected):
    policy = {"criterion": criterion, "threshold": 1.0, "patience": t, "min_layer": min_layer}
    assert first_exit(three_classes(row), **policy) == expected


def test_min_layer_counts_layers_and_patience_counts_exits():
    policy = ExitPolicy(threshold=1.0, patience=1, min_layer=7)
    fired = fires(three_classes("AAAAAA")[None], policy, SINGLE_LABEL, depths=[2, 4, 6, 8, 10, 12])
    assert fired.tolist() == [[False, False, False, True, True, True]]
    policy = ExitPolicy(threshold=1.0, patience=3)
    fired = fires(three_classes("AAAAAA")[None], policy, SINGLE_LABEL, depths=[2, 4, 6, 8, 10, 12])
    assert fired.tolist() == [[False, False, False, True, True, True]]


# ---- the formulas once more -----------------------------------------------------------------------------------------


def distributions(row: np.ndarray, problem_type: str) -> np.ndarray:
    """Logits (E, C) -> (E, L, K): one distribution over the classes, or the two outcomes of each label."""
    row = row.astype(np.float64)
    if problem_type == SINGLE_LABEL:
        powers = np.exp(row - row.max(-1, keepdims=True))
        return (powers / powers.sum(-1, keepdims=True))[:, None]
    return np.stack([1 / (1 + np.exp(-row)), 1 / (1 + np.exp(row))], axis=-1)


def cross_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return -(p * np.log(q)).sum(-1)


def relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


FORMULAS = {
    "kl": cross_entropy,
    "rekl": lambda p, q: cross_entropy(q, p),
    "bikl": lambda p, q: cross_entropy(p, q) + cross_entropy(q, p),
    "jskd": lambda p, q: (cross_entropy(p, (p + q) / 2) + cross_entropy(q, (p + q) / 2)) / 2,
    "kl_div": relative_entropy,
    "rekl_div": lambda p, q: relative_entropy(q, p),
    "symkl_div": lambda p, q: relative_entropy(p, q) + relative_entropy(q, p),
    "js_div": lambda p, q: (relative_entropy(p, (p + q) / 2) + relative_entropy(q, (p + q) / 2)) / 2,
}


def pair_scores(row: np.ndarray, problem_type: str, divergence: str) -> list[list[float]]:
    """s[i][j] of one row's exits i and j."""
    if problem_type == REGRESSION:
        return np.abs(row[:, None] - row[None]).max(-1).tolist()
    p = distributions(row, problem_type)
    return FORMULAS[divergence](p[:, None], p[None]).sum(-1).tolist()


def same_labels(row: np.ndarray, problem_type: str, i: int, j: int) -> bool:
    if problem_type == SINGLE_LABEL:
        return row[i].argmax() == row[j].argmax()
    return ((row[i] > 0) == (row[j] > 0)).all()


def stop_of(row: np.ndarray, s: list[list[float]], problem_type: str, policy: ExitPolicy) -> int | None:
    """The exit (1-based) of one row, by the paper's words."""
    t, m, count = policy.patience, policy.window, 0
    for i in range(len(row)):
        tau = policy.threshold[i] if isinstance(policy.threshold, tuple) else policy.threshold
        before = range(max(0, i - m), i)
        if policy.criterion == "appointed":
            stop = i + 1 == policy.appointed_layer
        elif policy.criterion == "divergence_v3":
            stop = sum(s[i][j] < tau for j in before) >= t
        else:
            if i == 0:
                passes = False
            elif policy.criterion == "divergence_v1":
                passes = s[i][i - 1] < tau
            elif policy.criterion == "divergence_v2":
                passes = all(s[i][j] < tau for j in before)
            elif problem_type == REGRESSION:
                passes = s[i][i - 1] < tau
            else:
                passes = same_labels(row, problem_type, i, i - 1)
            count = count + 1 if passes else 0
            stop = count >= t
        if stop and i + 1 >= policy.min_layer:
            return i + 1
    return None


def random_logits(rows: int, classes: int = 3, seed: int = 0) -> Tensor:
    """Logits (B, E, C) of exits that lean the same way, more or less."""
    generator = torch.Generator().manual_seed(seed)
    leaning = 1.5 * torch.randn(rows, 1, classes, generator=generator)
    return leaning + torch.randn(rows, EXITS, classes, generator=generator)


def thresholds_between(scores: list, shares: tuple[float, ...] = (0.3, 0.5, 0.8)) -> list[float]:
    """Thresholds that these shares of the scores are below, each in a gap that no rounding crosses."""
    values = np.unique(scores)
    taus = []
    for share in shares:
        near = values[int(share * (len(values) - 1)) :][: min(40, max(2, len(values) // 10))]
        widest = np.diff(near).argmax()
        assert near[widest + 1] - near[widest] > 2e-5
        taus.append(float(near[widest : widest + 2].mean()))
    return taus


def later_pairs(scores: list[list[list[float]]]) -> list[float]:
    return [s[i][j] for s in scores for i in range(EXITS) for j in range(i)]


def settings_of(criterion: str, taus: list[float]) -> list[ExitPolicy]:
    """Every patience and window, with a threshold in turn, then thresholds for each exit and later first layers."""
    windows = range(1, EXITS + 1) if criterion in ("divergence_v2", "divergence_v3") else [3]
    pairs = [(t, m) for m in windows for t in range(1, EXITS + 1) if t <= m or criterion != "divergence_v3"]
    policies = [
        ExitPolicy(criterion, threshold=taus[number % len(taus)], patience=t, window=m)
        for number, (t, m) in enumerate(pairs)
    ]
    own = (taus * EXITS)[:EXITS]
    return [
        *policies,
        *(ExitPolicy(criterion, threshold=tau, patience=1, window=2) for tau in taus),
        ExitPolicy(criterion, threshold=own, patience=1, window=2),
        ExitPolicy(criterion, threshold=own[::-1], patience=2, window=3),
        ExitPolicy(criterion, threshold=taus[1], patience=1, window=2, min_layer=4),
        ExitPolicy(criterion, threshold=taus[2], patience=2, window=3, min_layer=3),
    ]


def check_against_the_words(logits: Tensor, problem_type: str, policies: list[ExitPolicy], scores: list) -> None:
    stops = set()
    for policy in policies:
        fired = fires(logits, policy, problem_type)
        found = torch.where(fired.any(1), fired.int().argmax(1) + 1, 0).tolist()
        expected = [stop_of(row, s, problem_type, policy) or 0 for row, s in zip(logits.numpy(), scores)]
        assert found == expected, policy
        stops |= set(found)
    assert len(stops) >= 5  # the settings tell the exits apart


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("criterion", BY_DIVERGENCE)
def test_divergence_criteria_do_what_the_paper_says(criterion, divergence, problem_type):
    logits = random_logits(200)
    scores = [pair_scores(row, problem_type, divergence) for row in logits.numpy()]
    policies = settings_of(criterion, thresholds_between(later_pairs(scores)))
    policies = [replace(policy, divergence=divergence) for policy in policies]
    check_against_the_words(logits, problem_type, policies, scores)


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_patience_does_what_pabee_says(problem_type):
    logits = random_logits(200, classes=2)
    scores = [pair_scores(row, problem_type, "kl") for row in logits.numpy()]
    policies = settings_of("patience", thresholds_between(later_pairs(scores)))
    check_against_the_words(logits, problem_type, policies, scores)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_v2_with_a_window_of_one_is_v1(problem_type, divergence):
    logits = random_logits(300, seed=1)
    scores = [pair_scores(row, problem_type, divergence) for row in logits.numpy()]
    for tau in thresholds_between(later_pairs(scores)):
        for t in range(1, EXITS):
            v1 = ExitPolicy("divergence_v1", divergence, tau, t)
            v2 = ExitPolicy("divergence_v2", divergence, tau, t, window=1)
            wider = ExitPolicy("divergence_v2", divergence, tau, t, window=3)
            assert torch.equal(fires(logits, v1, problem_type), fires(logits, v2, problem_type))
            if t == 1:
                assert not torch.equal(fires(logits, v1, problem_type), fires(logits, wider, problem_type))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("criterion", BY_DIVERGENCE)
def test_a_threshold_of_zero_lets_no_row_leave(criterion, divergence):
    logits = random_logits(300)[:, :1].expand(-1, EXITS, -1)  # every exit says the same
    policy = ExitPolicy(criterion, divergence, threshold=0.0, patience=1, window=1)
    assert not fires(logits, policy, SINGLE_LABEL).any()
    assert fires(logits, replace(policy, threshold=9.0), SINGLE_LABEL)[:, 1:].all()
