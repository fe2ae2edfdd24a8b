"""The alarm of a server: it seldom rings while certificates hold, and soon when they do not."""

from statistics import median

import numpy as np
import pytest
from scipy.stats import binom

from modeling_pfberxit.evaluation.betting import BLOCK, after, money, no_bets
from modeling_pfberxit.evaluation.bounds import evidence
from modeling_pfberxit.serving.watching import Alarm

TURN = 500  # rows that one rung answers before the next does


def rang(streams: int, epsilons, rates, rows: int, delta: float, seed: int = 0) -> np.ndarray:
    """The row at which each of many streams rings, 0 where it never does; rungs take turns."""
    generator = np.random.default_rng(seed)
    bets, seen = [(no_bets(streams), 1.0) for _ in epsilons], [0] * len(epsilons)
    each, at = np.ones((len(epsilons), streams)), np.zeros(streams, int)
    for row in range(rows):
        rung = row // TURN % len(epsilons)
        rate = rates[rung](row) if callable(rates[rung]) else rates[rung]
        bets[rung] = after(*bets[rung], seen[rung], generator.random(streams) < rate, epsilons[rung])
        seen[rung] += 1
        each[rung] = money(*bets[rung])
        at[(each.mean(0) >= 1 / delta) & (at == 0)] = row + 1
    return at


@pytest.mark.parametrize("epsilons", [(0.01,), (0.01, 0.02, 0.05)])
def test_at_most_delta_of_streams_at_exactly_epsilon_ring(epsilons):
    falsely = int((rang(300, epsilons, epsilons, 10_000, delta=0.2) > 0).sum())
    assert binom.sf(falsely - 1, 300, 0.2) > 0.01, falsely  # no evidence that more than delta do


@pytest.mark.slow
@pytest.mark.parametrize("epsilons", [(0.01,), (0.01, 0.02, 0.05)])
def test_at_most_delta_of_a_thousand_streams_of_a_million_rows_ring(epsilons):
    assert (rang(1000, epsilons, epsilons, 1_000_000, delta=0.05) > 0).mean() <= 0.05


def test_money_is_that_of_the_evidence_laid_out_block_by_block():
    alarm, epsilon, rows = Alarm((0.02,)), 0.02, 3 * BLOCK + 50
    differs = np.random.default_rng(0).random(rows) < 0.03
    for each in differs:
        alarm.add(0, bool(each))
    parts = [(1 / 2, 0), (1 / 6, BLOCK), (1 / 12, 2 * BLOCK), (1 / 20, 3 * BLOCK)]
    bets = sum(part * evidence(differs[begin:].sum(), rows - begin, epsilon).mean() for part, begin in parts)
    assert alarm.evidence == pytest.approx(bets + 1 / 5)


def test_each_rung_answers_for_its_own_rate():
    alarm = Alarm((0.01, 0.05))
    for row in range(2_000):
        alarm.add(0, False)
        alarm.add(1, row % 20 == 0)  # 5 %: as promised by this rung, five times what the other promises
    assert not alarm.ringing
    for row in range(2_000):
        alarm.add(0, row % 20 == 0)
    assert alarm.ringing and alarm.rows.tolist() == [4_000, 2_000] and alarm.missed.tolist() == [100, 100]


@pytest.mark.parametrize(("times", "before", "soon"), [(2, 2_000, 3_500), (5, 2_000, 500), (10, 2_000, 200),
                                                       (5, 20_000, 700)])  # fmt: skip
def test_it_rings_soon_after_texts_change_however_long_they_did_not(times, before, soon):
    epsilon = 0.01
    rate = lambda row: epsilon / 2 if row < before else times * epsilon  # noqa: E731
    at = rang(50, (epsilon,), (rate,), before + 2 * soon, delta=0.05)
    late = [each - before for each in at.tolist() if not 0 < each <= before]
    assert len(late) > 45 and median(each if each > 0 else 10**6 for each in late) < soon


def test_it_rings_on():
    alarm = Alarm((0.01,))
    while not alarm.add(0, True):
        pass
    for _ in range(5_000):
        alarm.add(0, False)
    assert alarm.evidence < 1 and alarm.ringing


@pytest.mark.parametrize(("epsilons", "delta", "said"), [((0.0,), 0.05, "epsilon=0.0"), ((0.01,), 1.0, "delta=1.0")])
def test_rates_and_probabilities_out_of_range_are_refused(epsilons, delta, said):
    with pytest.raises(ValueError, match=said):
        Alarm(epsilons, delta)
