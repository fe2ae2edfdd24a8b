"""Certificates hold: 1,000 simulated calibrations break no bound more often than its confidence allows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation import fixed_sequence
from modeling_pfberxit.evaluation.bounds import mean_p_value, most_misses, rate_p_value, rows_needed, upper_bound
from modeling_pfberxit.evaluation.certificates import certify
from modeling_pfberxit.evaluation.claims import Counter
from modeling_pfberxit.evaluation.fixed_sequence import AtMost, compared, last_passed, sequence
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from modeling_pfberxit.model.exit_policy import static

EPSILON, DELTA, ROWS, RUNS = 0.02, 0.1, 500, 1000


def planted(misses: torch.Tensor, labels: torch.Tensor | None = None) -> Recording:
    """Two classes: rows (N, E - 1) whose inner exits answer otherwise than the last one, which always says class 0."""
    wrong = torch.cat([misses, torch.zeros(len(misses), 1, dtype=torch.bool)], dim=1).float()
    logits = torch.stack([1 - wrong, wrong], dim=-1) * 4
    lengths = torch.full((len(misses),), 5)
    return Recording(Evidence(logits), lengths, labels, list(range(1, wrong.shape[1] + 1)), SINGLE_LABEL)


def rates(*each: float, rows: int = 20_000, seed: int = 0) -> Recording:
    """Exits, the deepest first, that independently miss exactly these shares of the rows."""
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for rate in each:
        column = torch.zeros(rows, dtype=torch.bool)
        column[torch.randperm(rows, generator=generator)[: round(rate * rows)]] = True
        columns.append(column)
    return planted(torch.stack(columns[::-1], dim=1))


def not_monotone() -> Recording:
    """One row in forty is wrong and sure at the second exit, and right and less sure at the first."""
    logits = torch.zeros(20_000, 3, 2)
    generator = torch.Generator().manual_seed(0)
    logits[:, 0, 0] = 1 + 2 * torch.rand(20_000, generator=generator)
    logits[:, 1, 0] = 2 + 2 * torch.rand(20_000, generator=generator)
    logits[:500, 0, 0], logits[:500, 1], logits[:, 2, 0] = 1.5, torch.tensor([0.0, 3.0]), 4.0
    return Recording(Evidence(logits), torch.full((20_000,), 5), None, [1, 2, 3], SINGLE_LABEL)


def recorded() -> Recording:
    """What a model's exits say of 2,000 rows; they know what the last one will say, the deeper the better."""
    model = tiny_model("bert", num_labels=3, exit_layers=[2, 4])
    kept = record(model, [tiny_batch(500, seed=seed) for seed in range(4)])
    logits, share = kept.evidence.logits, torch.tensor([[0.75], [0.9], [1.0]])
    return replace(kept, evidence=Evidence((1 - share) * logits + share * logits[:, -1:]))


def simulated(pool: Recording, policies: list[ExitPolicy], procedure=last_passed, test: AtMost | None = None) -> int:
    """How often, of `RUNS`, rows drawn from the pool certify a setting whose rate in the pool is above epsilon."""
    whole = Counter(pool, "differ", None, False)
    true = {policy: whole(pool.replay(policy)[0])[""].mean() for policy in policies}
    test = test or AtMost(whole.claim, EPSILON, DELTA)
    generator, broken = torch.Generator().manual_seed(1), 0
    for _ in range(RUNS):
        part = pool.select(torch.randint(len(pool), (ROWS,), generator=generator))
        taken, _ = procedure(part, policies, Counter(part, "differ", None, False), test)
        broken += taken is not None and true[taken.policy] > EPSILON
    return broken


ALLOWED = int(binom.ppf(0.999, RUNS, DELTA))  # more than so many of the runs are no accident
LAYERS = {"at the edge": (EPSILON + 0.001,), "up and down": (0.005, 0.03, 0.004, 0.021, 0.004, 0.04)}


def appointed(pool: Recording) -> list[ExitPolicy]:
    """Every inner exit as a setting, the deepest first."""
    return [static(layer) for layer in pool.exit_depths[-2::-1]]


@pytest.mark.parametrize("each", LAYERS.values(), ids=LAYERS)
def test_planted_rates_above_epsilon_are_certified_no_more_often_than_delta_allows(each):
    pool = rates(*each)
    assert simulated(pool, appointed(pool)) <= ALLOWED


@pytest.mark.parametrize("make", [not_monotone, recorded])
def test_thresholds_chosen_on_other_rows_break_the_bound_no_more_often_than_delta_allows(make):
    pool = make()
    whole = Counter(pool, "differ", None, False)
    test = AtMost(whole.claim, EPSILON, DELTA)
    part = pool.select(torch.arange(0, len(pool), 7))
    counter = Counter(part, "differ", None, False)
    chosen = sequence(part, counter, test, 1.0, compared(part, counter, ["entropy"]))
    steps = chosen[:: max(1, len(chosen) // 5)]
    assert len(steps) > 3
    assert simulated(pool, steps) <= ALLOWED


def test_trying_settings_until_one_passes_breaks_it():
    def until_one_passes(part, policies, counter, test):
        found = [last_passed(part, [policy], counter, test) for policy in policies]
        return next((each for each in found if each[0]), found[0])

    pool = rates(*[EPSILON + 0.001] * 4)
    assert simulated(pool, appointed(pool)) <= ALLOWED
    assert simulated(pool, appointed(pool), until_one_passes) > ALLOWED


def test_a_bound_on_the_rows_that_chose_the_setting_breaks_it():
    def on_its_own_rows(part, policies, counter, test):
        best = min(policies, key=lambda policy: counter(part.replay(policy)[0])[""].sum())
        return last_passed(part, [best], counter, test)

    pool = rates(*[EPSILON + 0.001] * 4)
    assert simulated(pool, appointed(pool), on_its_own_rows) > ALLOWED


def test_swapping_epsilon_and_delta_breaks_it():
    pool = rates(EPSILON + 0.01)
    claim = Counter(pool, "differ", None, False).claim
    assert simulated(pool, appointed(pool), test=AtMost(claim, DELTA, EPSILON)) > ALLOWED


@pytest.mark.slow
def test_certificates_of_a_rule_chosen_each_time_hold(monkeypatch):
    monkeypatch.setattr(fixed_sequence, "COARSE", 8)
    monkeypatch.setattr(fixed_sequence, "FINE", 40)
    pool, generator, broken, passed = recorded(), torch.Generator().manual_seed(2), 0, 0
    whole = Counter(pool, "differ", None, False)
    for _ in range(RUNS):
        rows = torch.randint(len(pool), (2 * ROWS,), generator=generator)
        parts = (pool.select(part) for part in rows.chunk(2))
        (made,) = certify(*parts, (EPSILON,), 1 - DELTA, criteria=["entropy", "patience"])
        broken, passed = broken + (whole(pool.replay(made.policy)[0])[""].mean() > EPSILON), passed + made.passed
    assert broken <= ALLOWED and passed > RUNS / 2


# ---- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("misses", "rows"), [(0, 299), (3, 500), (20, 1000), (7, 7)])
def test_bounds_of_rates_are_those_of_clopper_and_pearson(misses, rows):
    expected = binomtest(misses, rows, alternative="less").proportion_ci(0.95, "exact").high
    assert upper_bound(misses, rows, 0.05) == pytest.approx(expected)
    assert (rate_p_value(misses, rows, 0.01) <= 0.05) == (expected <= 0.01)


def test_a_certificate_takes_so_many_rows_and_not_one_less():
    assert rows_needed(0.01) == 299 and rows_needed(0.02) == 149 and rows_needed(0.005) == 598
    for misses in (0, 1, 5):
        rows = rows_needed(0.01, 0.95, misses)
        assert upper_bound(misses, rows, 0.05) <= 0.01 < upper_bound(misses, rows - 1, 0.05)
        assert most_misses(rows, 0.01, 0.05) == misses == most_misses(rows - 1, 0.01, 0.05) + 1


@pytest.mark.parametrize(("values", "shares"), [((-1, 0, 1), (0.02, 0.94, 0.04)), ((0, 1), (0.979, 0.021))])
def test_means_above_epsilon_win_their_bet_no_more_often_than_delta_allows(values, shares):
    drawn = np.random.default_rng(0).choice(values, (RUNS, 800), p=shares).astype(float)
    mean, low = float(np.dot(values, shares)), float(values[0])
    won = sum(mean_p_value(row, low, 1.0, mean - 1e-4, DELTA) <= DELTA for row in drawn)
    assert won <= ALLOWED
    assert sum(mean_p_value(row, low, 1.0, mean + 0.05, DELTA) <= DELTA for row in drawn) > 0.9 * RUNS


# ---- what is counted ------------------------------------------------------------------------------------------------


def tables(logits: list, problem_type: str, labels: list | None = None) -> Recording:
    """A recording of two exits, rows of (E, C)."""
    kept = torch.tensor(logits, dtype=torch.float)
    return Recording(
        Evidence(kept), torch.full((len(kept),), 5), None if labels is None else torch.tensor(labels), [1, 2],
        problem_type, label_names=["benign", "attack"][: kept.shape[-1]],
    )  # fmt: skip


def counted(kept: Recording, claim: str = "differ", tolerance: float | None = None, per_label=False) -> dict:
    """What each row adds where all answer at the first exit."""
    found = Counter(kept, claim, tolerance, per_label)(kept.evidence.logits[:, 0])
    return {name: values.tolist() for name, values in found.items()}


def test_one_label_differs_where_the_arg_max_does():
    kept = tables([[[2, 1], [3, 1]], [[2, 1], [1, 3]], [[1, 2], [1, 3]]], SINGLE_LABEL, [0, 0, 1])
    assert counted(kept) == {"": [0, 1, 0]}
    assert counted(kept, per_label=True) == {"": [0, 1, 0], "benign": [0], "attack": [1, 0]}
    assert counted(kept, per_label=["attack"]) == {"attack": [1, 0]}
    assert counted(kept, "newly_wrong") == {"": [0, 0, 0]} and counted(kept, "accuracy_drop") == {"": [0, -1, 0]}


def test_several_labels_differ_where_any_decision_flips_and_a_label_where_it_is_lost():
    kept = tables([[[1, -1], [2, -2]], [[1, -1], [1, 1]], [[1, 1], [-1, 1]]], MULTI_LABEL, [[1, 0], [1, 1], [1, 1]])
    assert counted(kept, per_label=True) == {"": [0, 1, 1], "benign": [0, 0], "attack": [1, 0]}
    assert counted(kept, "flips") == {"": [0, 0.5, 0.5]} and counted(kept, "newly_wrong") == {"": [0, 1, 0]}


def test_a_row_without_an_answer_is_lost_for_each_of_its_labels_and_flips_all():
    kept = tables([[[math.nan, math.nan], [2, -2]], [[1, -1], [1, -1]]], MULTI_LABEL)
    assert counted(kept, per_label=True) == {"": [1, 0], "benign": [1, 0], "attack": []}
    assert counted(kept, "flips") == {"": [1, 0]}


def test_values_differ_where_they_are_farther_apart_than_the_tolerance_which_must_be_given():
    kept = tables([[[1.0], [1.2]], [[1.0], [1.4]]], REGRESSION, [1.0, 1.0])
    assert counted(kept, tolerance=0.3) == {"": [0, 1]}
    with pytest.raises(ValueError, match="tolerance=None: must be given for regression"):
        counted(kept)
    with pytest.raises(ValueError, match="tolerance=0.1: must be left out for single_label"):
        counted(tables([[[2, 1], [3, 1]]], SINGLE_LABEL), tolerance=0.1)


@pytest.mark.parametrize("metric", ["micro_f1", "matthews", "correlation"])
def test_what_is_no_mean_over_rows_gets_no_bound_and_this_is_said(metric):
    with pytest.raises(ValueError, match="are no means over rows and get no bound"):
        counted(tables([[[2, 1], [3, 1]]], SINGLE_LABEL), metric)


# ---- certify --------------------------------------------------------------------------------------------------------


def test_the_last_setting_that_passed_is_taken_and_none_behind_the_first_that_fails():
    pool = rates(0.001, 0.002, 0.2, 0.0, rows=4000)
    counter = Counter(pool, "differ", None, False)
    taken, tested = last_passed(pool, appointed(pool), counter, AtMost(counter.claim, 0.01, 0.05))
    assert taken.policy == appointed(pool)[1] and tested == 3


def test_a_rule_that_is_given_is_kept_and_a_whole_policy_is_tested_alone():
    kept = [not_monotone().select(torch.arange(start, 20_000, 3)) for start in (0, 1)]
    (rule,) = certify(*kept, policy=ExitPolicy("entropy", min_layer=2))
    assert rule.policy.criterion == "entropy" and rule.policy.min_layer == 2 and rule.policy.threshold is not None
    (alone,) = certify(*kept, policy=ExitPolicy("entropy", threshold=1e-6))
    assert alone.passed and alone.policy == ExitPolicy("entropy", threshold=1e-6) and alone.tested == 1


def test_rows_in_the_order_of_their_labels_win_no_bet():
    """First the rows that gained, then those that lost as many: the mean is 0.05, whatever a bet made on the way."""
    answers = torch.tensor([[0, 1]] * 450 + [[0, 0]] * 1000 + [[1, 0]] * 550)  # at the first exit, at the last
    logits = torch.nn.functional.one_hot(answers, 2).float()
    right = torch.zeros(2000, dtype=torch.long)
    kept = Recording(Evidence(logits), torch.full((2000,), 5), right, [1, 2], SINGLE_LABEL)
    (made,) = certify(None, kept, (0.04,), policy=static(1), claim="accuracy_drop")
    assert not made.passed


def gaining(rows: int, lost: int, gained: int) -> Recording:
    """Two exits; the first is sure of three rows in four, and of the others it loses and gains some."""
    logits = torch.tensor([[[0.5, 0.0], [3.0, 0.0]]]).repeat(rows, 1, 1)
    logits[: 3 * rows // 4, 0, 0] = 3 + torch.rand(3 * rows // 4, generator=torch.Generator().manual_seed(0))
    logits[-lost - gained :, 0] = torch.tensor([0.0, 0.5])
    labels = torch.zeros(rows, dtype=torch.long)
    labels[rows - gained :] = 1
    return Recording(Evidence(logits), torch.full((rows,), 5), labels, [1, 2], SINGLE_LABEL)


@pytest.mark.parametrize("claim", ["accuracy_drop", "newly_wrong"])
def test_a_rule_is_chosen_that_passes_at_its_slowest_whatever_is_lost_and_gained_in_turn(claim):
    """Leaving at once gains accuracy on the choosing rows, by luck, and loses it on the others."""
    lucky, others = gaining(400, 0 if claim == "newly_wrong" else 6, 14), gaining(1000, 60, 10)
    (made,) = certify(lucky, others, (0.02,), claim=claim, criteria=["appointed", "entropy"])
    assert made.passed and made.policy.criterion == "entropy" and made.saved > 0.2
    assert not certify(lucky, others, (0.02,), claim=claim, criteria=["appointed"])[0].passed


def test_none_passes_is_full_depth():
    pool = rates(0.5, 0.5)
    (made,) = certify(pool, pool, (0.001,))
    assert not made.passed and made.policy == ExitPolicy(criterion=None) and made.saved == 0
    assert "No setting passed" in made.in_words()


def test_several_share_one_delta_and_have_names_of_their_own():
    pool = rates(0.001, 0.004, 0.012)
    made = certify(pool, pool, (0.005, 0.01, 0.02))
    assert [each.name for each in made] == ["certified-0.5%", "certified-1%", "certified-2%"]
    assert all(each.delta == pytest.approx(0.05 / 3) for each in made)
    assert made[0].saved < made[2].saved


def test_labels_with_too_few_rows_are_uncertified_with_the_number_it_takes():
    rows = torch.cat([torch.zeros(2000, dtype=torch.long), torch.ones(100, dtype=torch.long)])
    logits = torch.nn.functional.one_hot(rows, 2).float()[:, None].expand(-1, 3, -1)
    kept = Recording(Evidence(logits), torch.full((2100,), 5), None, [1, 2, 3], SINGLE_LABEL, {}, ["benign", "attack"])
    (made,) = certify(kept, kept, per_label=True)
    assert made.labels["benign"].certified and made.labels["attack"] == (100, 0.0, 299)
    assert "attack (100 of 299)" in made.in_words()
    (none,) = certify(kept, kept, per_label=["attack"])
    assert not none.passed


def test_a_label_that_misses_too_often_fails_where_all_rows_together_pass():
    misses = torch.zeros(4000, 1, dtype=torch.bool)
    misses[:15] = True  # of the 400 rows that the last exit calls an attack
    kept = planted(misses)
    logits = kept.evidence.logits.clone()
    logits[:400] = logits[:400].flip(-1)
    kept = replace(kept, evidence=Evidence(logits), label_names=["benign", "attack"])
    assert certify(kept, kept)[0].saved > 0
    assert not certify(kept, kept, per_label=True, criteria=["appointed"])[0].passed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"differ": (0.0,)}, "differ=0.0: must be a number between 0 and 1"),
        ({"differ": (0.01, 0.01)}, "none twice"),
        ({"confidence": 95}, "confidence=95: must be a number between 0 and 1"),
        ({"differ": (0.001,)}, "certify='2000 rows': must be at least 2995"),
        ({"claim": "speed"}, "claim='speed': must be one of differ, newly_wrong"),
        ({"claim": "newly_wrong"}, "must be made on labelled rows"),
        ({"criteria": ["lte"]}, "criteria=.'lte'.: must be rules that can judge"),
        ({"per_label": ["label 7"]}, "per_label=.'label 7'.: must be labels of label 0, label 1"),
    ],
)
def test_what_cannot_be_certified_is_refused_by_name(values, message):
    pool = rates(0.01, rows=2000)
    with pytest.raises(ValueError, match=message):
        certify(pool, pool, **values)
