"""Eq. 6 to 8 and their relatives, against hand-worked numbers, scipy and what divergences must satisfy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import Tensor

from modeling_pfberxit import ExitPolicy, PFBerxitConfig
from modeling_pfberxit.model.evidence import DIVERGENCE_ALIASES, DIVERGENCES, MULTI_LABEL, SINGLE_LABEL, predictions
from modeling_pfberxit.model.scores import divergences_from_past
from modeling_pfberxit.model.steps import start

LN2 = math.log(2)
CROSS_ENTROPIES = ("kl", "rekl", "bikl", "jskd")
TRUE_DIVERGENCES = ("kl_div", "rekl_div", "symkl_div", "js_div")
SYMMETRIC = ("bikl", "jskd", "symkl_div", "js_div")
ASYMMETRIC = ("kl", "rekl", "kl_div", "rekl_div")
CLASSES = (2, 3, 7, 77)


def score(name: str, i: Tensor, j: Tensor) -> Tensor:
    """The divergence between two tables of probabilities, in double precision."""
    return DIVERGENCES[name].of(i.double().log(), j.double().log())


def random_pairs(classes: int, pairs: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, pairs, classes, generator=generator, dtype=torch.float64)
    return tuple(logits.softmax(-1))


@st.composite
def two_predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two distributions over the same 2 to 6 classes; sometimes the same one."""
    classes = draw(st.integers(2, 6))
    logits = st.lists(st.floats(-8, 8), min_size=classes, max_size=classes)
    p = draw(logits)
    q = draw(st.one_of(st.just(p), logits))
    return tuple(torch.tensor([p, q], dtype=torch.float64).softmax(-1))


# A coin toss against (0.9, 0.1), in nats. With ln 0.5 = -0.693147, ln 0.9 = -0.105361, ln 0.1 = -2.302585:
#   CE(i, j) = 0.5 * 0.105361 + 0.5 * 2.302585 = 1.203973         H(i) = 0.693147
#   CE(j, i) = 0.9 * 0.693147 + 0.1 * 0.693147 = 0.693147         H(j) = 0.9 * 0.105361 + 0.1 * 2.302585 = 0.325083
#   mean (0.7, 0.3): H = 0.7 * 0.356675 + 0.3 * 1.203973 = 0.610864
COIN_AND_SURE = {
    "kl": 1.203973,
    "rekl": 0.693147,
    "bikl": 1.203973 + 0.693147,
    "jskd": 0.610864,
    "kl_div": 1.203973 - 0.693147,
    "rekl_div": 0.693147 - 0.325083,
    "symkl_div": 1.203973 - 0.693147 + 0.693147 - 0.325083,
    "js_div": 0.610864 - (0.693147 + 0.325083) / 2,
}
# (1/2, 1/4, 1/8, 1/8) against four equal classes, in bits:
#   CE(i, j) = 2                                                  H(i) = 1/2 * 1 + 1/4 * 2 + 1/8 * 3 + 1/8 * 3 = 1.75
#   CE(j, i) = (1 + 2 + 3 + 3) / 4 = 2.25                         H(j) = 2
#   mean (3/8, 2/8, 3/16, 3/16): H = 3/8 (3 - log2 3) + 2/8 * 2 + 3/8 (4 - log2 3) = 3.125 - 3/4 log2 3 = 1.936278
HALVES_AND_EQUAL = {
    "kl": 2 * LN2,
    "rekl": 2.25 * LN2,
    "bikl": 4.25 * LN2,
    "jskd": 1.936278 * LN2,
    "kl_div": 0.25 * LN2,
    "rekl_div": 0.25 * LN2,
    "symkl_div": 0.5 * LN2,
    "js_div": (1.936278 - (1.75 + 2) / 2) * LN2,
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize(
    "i, j, expected",
    [
        ((0.5, 0.5), (0.9, 0.1), COIN_AND_SURE),
        ((0.5, 0.25, 0.125, 0.125), (0.25, 0.25, 0.25, 0.25), HALVES_AND_EQUAL),
    ],
)
def test_divergence_is_the_number_worked_out_by_hand(name, i, j, expected):
    assert score(name, torch.tensor(i), torch.tensor(j)).item() == pytest.approx(expected[name], abs=2e-6)


@pytest.mark.parametrize(
    "top, nats", [(0.6, 0.673), (0.7, 0.611), (0.8, 0.500), (0.9, 0.325), (0.95, 0.199), (0.99, 0.056)]
)
def test_cross_entropies_of_agreeing_exits_shrink_as_they_get_surer(top, nats):
    p = torch.tensor([top, 1 - top])
    assert score("kl", p, p).item() == pytest.approx(nats, abs=5e-4)
    assert score("rekl", p, p).item() == pytest.approx(nats, abs=5e-4)
    assert score("bikl", p, p).item() == pytest.approx(2 * nats, abs=1e-3)
    assert score("jskd", p, p).item() == pytest.approx(nats, abs=5e-4)


@pytest.mark.parametrize("classes", CLASSES)
def test_every_divergence_agrees_with_scipy(classes):
    p, q = random_pairs(classes)
    p_, q_ = p.numpy(), q.numpy()
    h = {"p": entropy(p_, axis=-1), "q": entropy(q_, axis=-1)}
    pq, qp = entropy(p_, q_, axis=-1), entropy(q_, p_, axis=-1)
    expected = {
        "kl": h["p"] + pq,
        "rekl": h["q"] + qp,
        "bikl": h["p"] + pq + h["q"] + qp,
        "jskd": entropy((p_ + q_) / 2, axis=-1),
        "kl_div": pq,
        "rekl_div": qp,
        "symkl_div": pq + qp,
        "js_div": jensenshannon(p_, q_, axis=-1) ** 2,
    }
    assert set(expected) == set(DIVERGENCES)
    for name, values in expected.items():
        torch.testing.assert_close(score(name, p, q), torch.from_numpy(values), rtol=1e-9, atol=1e-12, msg=name)


@settings(max_examples=50, deadline=None)
@given(two_predictions())
def test_relations_between_the_divergences_hold(pair):
    p, q = pair
    s = {name: score(name, p, q).item() for name in DIVERGENCES}
    near = {"abs": 1e-12, "rel": 1e-9}
    mean = (p + q) / 2
    assert s["bikl"] == pytest.approx(s["kl"] + s["rekl"], **near)
    assert s["symkl_div"] == pytest.approx(s["kl_div"] + s["rekl_div"], **near)
    assert s["jskd"] == pytest.approx(entropy(mean), **near)
    assert s["jskd"] == pytest.approx((score("kl", p, mean) + score("kl", q, mean)).item() / 2, **near)
    assert s["kl"] == pytest.approx(entropy(p) + s["kl_div"], **near)
    assert s["rekl"] == pytest.approx(entropy(q) + s["rekl_div"], **near)
    assert -1e-12 <= s["js_div"] <= LN2 + 1e-12


@settings(max_examples=50, deadline=None)
@given(two_predictions())
def test_swapping_the_exits_changes_only_the_asymmetric_ones(pair):
    p, q = pair
    for name in SYMMETRIC:
        assert score(name, p, q).item() == pytest.approx(score(name, q, p).item(), abs=1e-12)
    for name, other in (("kl", "rekl"), ("kl_div", "rekl_div")):
        assert score(name, p, q).item() == pytest.approx(score(other, q, p).item(), abs=1e-12)


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_kl_and_rekl_are_asymmetric(name):
    p, q = random_pairs(3)
    assert (score(name, p, q) - score(name, q, p)).abs().median() > 0.1


@settings(max_examples=50, deadline=None)
@given(two_predictions())
def test_true_divergences_are_zero_exactly_where_predictions_are_equal(pair):
    p, q = pair
    apart = (p - q).abs().sum().item() / 2  # total variation; Pinsker: KL >= 2 TV^2, and from it JS >= TV^2 / 2
    lowest = {"kl_div": 2.0, "rekl_div": 2.0, "symkl_div": 4.0, "js_div": 0.5}
    assert set(lowest) == set(TRUE_DIVERGENCES)
    for name, factor in lowest.items():
        assert score(name, p, q).item() >= factor * apart**2 - 1e-12
        assert score(name, p, p).item() == pytest.approx(0.0, abs=1e-12)
        assert score(name, q, q).item() == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(two_predictions())
def test_cross_entropies_are_small_only_where_both_exits_are_sure(pair):
    p, q = pair
    h_p, h_q = entropy(p), entropy(q)
    lowest = {"kl": h_p, "rekl": h_q, "bikl": h_p + h_q, "jskd": (h_p + h_q) / 2}
    assert set(lowest) == set(CROSS_ENTROPIES)
    for name, nats in lowest.items():
        assert score(name, p, q).item() >= nats - 1e-12


@pytest.mark.parametrize("name", TRUE_DIVERGENCES)
def test_true_divergences_are_never_negative_in_single_precision(name):
    generator = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(2000, 5, generator=generator)).log_softmax(-1)
    q = (p + 1e-4 * torch.randn(p.shape, generator=generator)).log_softmax(-1)
    assert DIVERGENCES[name].of(p, p).min().item() >= 0
    assert DIVERGENCES[name].of(p, q).min().item() >= 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_tables_of_any_shape_are_scored_cell_by_cell(name):
    p, q = (table.reshape(5, 2, 5, 3) for table in random_pairs(3, pairs=50))
    scores = score(name, p, q)
    assert scores.shape == (5, 2, 5)
    assert scores[3, 1, 2].item() == pytest.approx(score(name, p[3, 1, 2], q[3, 1, 2]).item(), abs=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_predictions_of_vanishing_probability_give_finite_scores(name):
    sure, other = torch.tensor([200.0, 0.0, -200.0]), torch.tensor([-200.0, 0.0, 200.0])
    assert DIVERGENCES[name].of(sure.log_softmax(-1), other.log_softmax(-1)).isfinite()


@pytest.mark.parametrize("alias, name", [("kd", "kl"), ("rekd", "rekl"), ("symkd", "bikl")])
def test_f_pabee_s_names_mean_the_same_formulas(alias, name):
    assert DIVERGENCE_ALIASES[alias] == name
    assert ExitPolicy(divergence=alias) == ExitPolicy(divergence=name)
    assert PFBerxitConfig(exit_divergence=alias).exit_divergence == name


def test_every_divergence_is_listed_once():
    assert set(DIVERGENCES) == set(CROSS_ENTROPIES) | set(TRUE_DIVERGENCES)
    assert set(DIVERGENCE_ALIASES) == {"kd", "rekd", "symkd"}


# ---- normalisation --------------------------------------------------------------------------------------------------


def scores_between(before: Tensor, now: Tensor, problem_type: str, divergence: str, normalize: bool) -> Tensor:
    """What the criteria see: logits (B, C) of an exit against those of the exit before."""
    policy = ExitPolicy(divergence=divergence, threshold=1.0, normalize=normalize)
    state = start(*before.shape, policy, 2, problem_type, before.device)
    state.remember(predictions(before, problem_type))
    return divergences_from_past(predictions(now, problem_type), state, policy)[:, 0]


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_two_clueless_exits_score_one_with_any_number_of_classes(name, classes, problem_type):
    clueless = torch.zeros(1, classes)
    normalized = scores_between(clueless, clueless, problem_type, name, True).item()
    plain = scores_between(clueless, clueless, problem_type, name, False).item()
    nats = math.log(classes) if problem_type == SINGLE_LABEL else classes * LN2
    assert normalized == pytest.approx(1.0, abs=1e-6)
    assert plain == pytest.approx((2 if name == "bikl" else 1) * nats, rel=1e-6)


@pytest.mark.parametrize("name", TRUE_DIVERGENCES)
@pytest.mark.parametrize("classes", CLASSES)
def test_two_clueless_exits_do_not_differ(name, classes):
    clueless = torch.zeros(1, classes)
    assert scores_between(clueless, clueless, SINGLE_LABEL, name, True).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("classes", CLASSES)
def test_exits_sure_of_different_classes_reach_the_bound_of_js(classes):
    one = torch.full((1, classes), -50.0)
    other = one.clone()
    one[0, 0] = other[0, 1] = 50.0
    assert scores_between(one, other, SINGLE_LABEL, "js_div", True).item() == pytest.approx(1.0, abs=1e-6)
    assert scores_between(one, other, SINGLE_LABEL, "js_div", False).item() == pytest.approx(LN2, abs=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_normalized_scores_do_not_grow_with_the_number_of_labels(name):
    generator = torch.Generator().manual_seed(0)
    before, now = torch.randn(2, 20, 1, generator=generator)
    one = scores_between(before, now, MULTI_LABEL, name, True)
    many = scores_between(before.expand(-1, 9), now.expand(-1, 9), MULTI_LABEL, name, True)
    summed = scores_between(before.expand(-1, 9), now.expand(-1, 9), MULTI_LABEL, name, False)
    torch.testing.assert_close(many, one)
    torch.testing.assert_close(summed, 9 * scores_between(before, now, MULTI_LABEL, name, False))
