"""When rows leave: hand-worked tables, the paper's formulas once more in NumPy, and what must hold for every rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.criteria import (
    CRITERIA,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Evidence,
    ExitState,
    divergences_from_past,
    predictions,
    step,
)
from modeling_pfberxit.divergences import DIVERGENCES
from modeling_pfberxit.evaluation.replay import record, replay

EXITS = 6
DEPTHS = list(range(1, EXITS + 1))
BY_DIVERGENCE = ("divergence_v1", "divergence_v2", "divergence_v3")
JUDGED = [(problem, name) for name, rule in CRITERIA.items() for problem in rule.problem_types]
GENEROUS = {"threshold": 1e9, "patience": 1, "window": 2, "appointed_layer": 1}


def fires(logits: Tensor, policy: ExitPolicy, problem_type: str, depths: list[int] = DEPTHS) -> Tensor:
    """Which rows may stop at which exit: logits (B, E, C) -> (B, E)."""
    state = ExitState.start(logits.shape[0], logits.shape[2], policy, problem_type, logits.device)
    stops = [
        step(Evidence(logits[:, number]), state, policy, torch.full((logits.shape[0],), depth))[0]
        for number, depth in enumerate(depths)
    ]
    return torch.stack(stops, dim=1)


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
PREDICTIONS = {"A": (0.8, 0.1, 0.1), "B": (0.1, 0.8, 0.1), "a": (0.4, 0.3, 0.3), "U": (1 / 3, 1 / 3, 1 / 3)}
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
    state = ExitState.start(1, 3, policy, SINGLE_LABEL, torch.device("cpu"))
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
    """ "10 11": at each exit the labels that are given, each with probability 0.9 or 0.1 -> logits (E, C)."""
    given = torch.tensor([[0.9 if bit == "1" else 0.1 for bit in exit_] for exit_ in row.split()])
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
    values = np.sort(np.array(scores).ravel())
    taus = []
    for share in shares:
        near = values[int(share * (len(values) - 1)) :][:40]
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


# ---- whatever the rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type, criterion", JUDGED)
def test_nan_never_exits_early(criterion, problem_type):
    policy = ExitPolicy(criterion, **GENEROUS)
    clean = torch.ones(1, EXITS, 3)
    first = 0 if criterion == "appointed" else 1
    assert fires(clean, policy, problem_type).tolist() == [[False] * first + [True] * (EXITS - first)]
    assert not fires(torch.full_like(clean, torch.nan), policy, problem_type).any()
    for number in range(EXITS):
        for label in range(3):
            spoilt = clean.clone()
            spoilt[0, number, label] = torch.nan
            beside = fires(torch.cat([clean, spoilt]), policy, problem_type)
            assert not beside[1, number]
            assert torch.equal(beside[:1], fires(clean, policy, problem_type))


@pytest.mark.parametrize(
    "policy, expected",
    [
        ({"criterion": "divergence_v1", "patience": 2}, 6),  # A A nan A A A: passes 1 0 0 1 1
        ({"criterion": "divergence_v2", "patience": 2, "window": 2}, None),  # 1 0 0 0 1
        ({"criterion": "divergence_v3", "patience": 2, "window": 3}, 4),  # A on (nan, A, A)
        ({"criterion": "divergence_v3", "patience": 2, "window": 2}, 6),  # A on (nan, A), (A, nan), (A, A)
        ({"criterion": "patience", "patience": 2}, 6),
        ({"criterion": "patience", "patience": 3}, None),
    ],
)
def test_nan_agrees_with_nothing(policy, expected):
    row = three_classes("AAAAAA")
    row[2] = torch.nan
    assert first_exit(row, threshold=1.0, **policy) == expected


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_whose_exits_emit_nan_runs_to_its_last_layer(criterion):
    model = tiny_model("bert", num_labels=3)
    policy, batch = ExitPolicy(criterion, **GENEROUS), tiny_batch(6)
    assert model(**batch, exit_policy=policy).exit_layer.max() < 6
    with torch.no_grad():
        for classifier in model.exits.classifiers[:-1]:
            classifier.bias.fill_(torch.nan)
    output = model(**batch, exit_policy=policy)
    assert output.exit_layer.tolist() == [6] * 6
    assert output.logits.isfinite().all()


def setting(problem_type: str, criterion: str, logits: Tensor, patience: int = 1) -> ExitPolicy:
    """A policy under which the rows of these logits part."""
    scores = later_pairs([pair_scores(row, problem_type, "kl") for row in logits.numpy()])
    tau = thresholds_between(scores, (0.4,))[0]
    return ExitPolicy(criterion, threshold=tau, patience=patience, window=2, appointed_layer=3)


@pytest.mark.parametrize("problem_type, criterion", JUDGED)
def test_rows_never_see_each_other(criterion, problem_type):
    logits = random_logits(40)
    policy = setting(problem_type, criterion, logits)
    whole = fires(logits, policy, problem_type)
    assert whole.any() and not whole.all()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fires(logits[order], policy, problem_type), whole[order])
    for size in (1, 7):
        pieces = [fires(piece, policy, problem_type) for piece in logits.split(size)]
        assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("problem_type, criterion", JUDGED)
def test_rows_that_leave_change_nothing_for_those_that_stay(criterion, problem_type):
    logits = random_logits(40, seed=2)
    policy = setting(problem_type, criterion, logits)
    whole = fires(logits, policy, problem_type)
    state = ExitState.start(40, 3, policy, problem_type, logits.device)
    rows, stay = torch.arange(40), torch.arange(39, -1, -3)
    for number, depth in enumerate(DEPTHS):
        if depth == 4:
            rows, state = rows[stay], state.select(stay)
        fired, answer = step(Evidence(logits[rows, number]), state, policy, torch.full_like(rows, depth))
        assert torch.equal(fired, whole[rows, number])
        assert torch.equal(answer, logits[rows, number])


@pytest.mark.parametrize("own_thresholds", [False, True])
@pytest.mark.parametrize("problem_type, criterion", JUDGED)
def test_rows_of_different_depths_can_stand_in_one_batch(criterion, problem_type, own_thresholds):
    logits = random_logits(40, seed=3)
    policy = setting(problem_type, criterion, logits)
    if own_thresholds:
        tau = policy.threshold
        policy = replace(policy, threshold=(tau, 0.2 * tau, 2 * tau, tau, 0.5 * tau, 2 * tau))
    whole = fires(logits, policy, problem_type)
    late = 2  # the second half of the rows stands two exits behind the first
    ahead = ExitState.start(20, 3, policy, problem_type, logits.device)
    for number in range(late):
        step(Evidence(logits[:20, number]), ahead, policy, torch.full((20,), number + 1))
    behind = ExitState.start(20, 3, policy, problem_type, logits.device)
    joined = {name: torch.cat([getattr(ahead, name), getattr(behind, name)]) for name in ("past", "seen", "count")}
    state = replace(ahead, **joined)
    for number in range(EXITS - late):
        depth = torch.tensor([number + late + 1] * 20 + [number + 1] * 20)
        now = torch.cat([logits[:20, number + late], logits[20:, number]])
        fired, _ = step(Evidence(now), state, policy, depth)
        assert torch.equal(fired, torch.cat([whole[:20, number + late], whole[20:, number]]))


@pytest.mark.parametrize("problem_type, criterion", JUDGED)
def test_scores_are_single_precision_whatever_the_logits_are(criterion, problem_type):
    logits = random_logits(100).bfloat16()
    policy = setting(problem_type, criterion, logits.float())
    assert predictions(logits[:, 0], problem_type).dtype == torch.float32
    assert torch.equal(fires(logits, policy, problem_type), fires(logits.float(), policy, problem_type))


# ---- online and replayed --------------------------------------------------------------------------------------------

OUTPUTS = {SINGLE_LABEL: 3, MULTI_LABEL: 2, REGRESSION: 1}


def model_with_varied_rows(family: str, **knobs) -> PFBerxitForSequenceClassification:
    """A tiny model whose answers depend on the tokens enough for rows to part."""
    model = tiny_model(family, seed=2, **knobs)
    model.backbone.embeddings.word_embeddings.weight.mul_(30)
    return model


def compare_with_replay(
    model: PFBerxitForSequenceClassification,
    policies: list[ExitPolicy],
    recorded: Tensor,
    batch: dict[str, Tensor],
) -> set[int]:
    """Run every policy online and from the record; returns the layers at which rows left."""
    left = set()
    for policy in policies:
        online = model(**batch, exit_policy=policy)
        answers, layers = replay(recorded, policy, model.exit_depths, model.config.problem_type)
        assert online.exit_layer.tolist() == layers.tolist(), policy
        looked_at = model(**batch, exit_policy=policy, output_hidden_states=True)  # no row leaves the batch
        assert looked_at.exit_layer.tolist() == layers.tolist(), policy
        torch.testing.assert_close(looked_at.logits, answers, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(online.logits, answers, rtol=1e-4, atol=1e-4)
        exits = torch.tensor([model.exit_depths.index(layer) for layer in layers.tolist()])
        assert torch.equal(answers, recorded[torch.arange(len(recorded)), exits])
        left |= set(layers.tolist())
    return left


@pytest.mark.parametrize("family", ["albert", "bert"])
@pytest.mark.parametrize("problem_type, criterion", JUDGED)
@torch.no_grad()
def test_online_equals_replay(criterion, problem_type, family):
    model = model_with_varied_rows(family, num_labels=OUTPUTS[problem_type], problem_type=problem_type)
    batch = tiny_batch(40)
    recorded, labels = record(model, [{**batch, "labels": torch.zeros(40)}])
    assert recorded.shape == (40, EXITS, OUTPUTS[problem_type]) and labels.shape == (40,)
    taus = thresholds_between(later_pairs([pair_scores(r, problem_type, "kl") for r in recorded.numpy()]), (0.4, 0.7))
    policies = [
        ExitPolicy(criterion, threshold=taus[0], patience=1, window=2, appointed_layer=2),
        ExitPolicy(criterion, threshold=taus[1], patience=1, window=3, appointed_layer=3, min_layer=3),
        ExitPolicy(criterion, threshold=taus[1], patience=2, window=3, appointed_layer=5),
        ExitPolicy(criterion, threshold=(taus * EXITS)[:EXITS], patience=1, window=2, appointed_layer=6),
    ]
    assert len(compare_with_replay(model, policies, recorded, batch)) >= 3


@pytest.mark.parametrize("criterion", CRITERIA)
@torch.no_grad()
def test_online_equals_replay_where_only_some_layers_have_exits(criterion):
    model = model_with_varied_rows(
        "albert-groups", num_labels=3, problem_type=SINGLE_LABEL, exit_layers=[2, 3, 5, 8, 10]
    )
    batch = tiny_batch(40, seed=1)
    recorded, _ = record(model, [{**batch, "labels": torch.zeros(40)}])
    assert model.exit_depths == [2, 3, 5, 8, 10, 12]
    tau = thresholds_between(later_pairs([pair_scores(row, SINGLE_LABEL, "kl") for row in recorded.numpy()]))[1]
    policies = [
        ExitPolicy(criterion, threshold=tau, patience=1, window=2, appointed_layer=3),
        ExitPolicy(criterion, threshold=tau, patience=1, window=3, min_layer=6, appointed_layer=10),
        ExitPolicy(criterion, threshold=(tau, 0.1, 2 * tau, tau, 9.0, 0.1), patience=1, window=2, appointed_layer=5),
    ]
    left = compare_with_replay(model, policies, recorded, batch)
    assert left <= set(model.exit_depths) and len(left) >= 3
