"""Calibration: targets are kept on the rows they were chosen on, and the conformal guarantee on rows never seen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.calibration import (
    agreement,
    calibrate,
    conformal,
    ladder,
    policy_for,
)
from modeling_pfberxit.evaluation.frontier import Point, frontier, grid, judging, sweep, with_intervals
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.evaluation.replay import same_answers
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence

EXITS = 6


def recording(rows: int = 400, seed: int = 0, problem_type: str = SINGLE_LABEL, labels: int = 3) -> Recording:
    """Exits that know more the deeper they are, with noise of their own; some rows are hard for all of them."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(rows, 1, 1, generator=generator)
    growth = torch.linspace(0.3, 4.0, EXITS)[:, None] * (1 - hard)
    noise = torch.randn(rows, EXITS, labels, generator=generator)
    if problem_type == SINGLE_LABEL:
        target = torch.randint(labels, (rows,), generator=generator)
        signal = torch.nn.functional.one_hot(target, labels).float()
    elif problem_type == MULTI_LABEL:
        target = (torch.rand(rows, labels, generator=generator) > 0.5).float()
        signal = 2 * target - 1
    else:
        target = torch.randn(rows, generator=generator)
        signal, growth, noise = (
            target[:, None].expand(-1, labels),
            torch.ones(1),
            noise * 2 / (1 + torch.arange(6.0))[:, None],
        )
    logits = growth * signal[:, None] + noise
    lengths = torch.randint(5, 40, (rows,), generator=generator)
    return Recording(Evidence(logits), lengths, target, list(range(1, EXITS + 1)), problem_type)


# ---- targets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rivals() -> list[Point]:
    """Every rule with ten thresholds, on the rows that are chosen on."""
    rows = recording(seed=1)
    grids = [grid(rows, name, steps=10) for name in judging(rows)]
    return [point for policies in grids for point in sweep(rows, policies, "accuracy")]


@pytest.mark.parametrize("speed_up", [1.25, 1.5, 2.0])
def test_a_speed_up_is_reached_on_the_rows_it_was_chosen_on_and_about_reached_on_others(speed_up, rivals):
    found = calibrate(recording(seed=1), recording(seed=2), "accuracy", speed_up=speed_up)
    assert found.chosen.speed_up >= speed_up
    assert found.reported.speed_up >= 0.9 * speed_up
    fast_enough = [point for point in rivals if point.speed_up >= speed_up]
    assert found.chosen.score >= max(point.score for point in fast_enough) - 0.01


def test_a_drop_is_kept_to_and_no_faster_policy_keeps_to_it():
    chosen = recording(seed=3)
    found = calibrate(chosen, recording(seed=4), "accuracy", max_drop=0.02, criteria=["entropy"])
    full = sweep(chosen, [ExitPolicy("appointed", appointed_layer=EXITS)], "accuracy")[0].score
    assert found.chosen.score >= full - 0.02 and found.chosen.layers < EXITS
    faster = [p for p in sweep(chosen, grid(chosen, "entropy", steps=30), "accuracy") if p.layers < found.chosen.layers]
    assert all(point.score < full - 0.02 for point in faster)


def test_milliseconds_are_counted_by_the_given_clock():
    found = calibrate(
        recording(seed=5), recording(seed=6), "accuracy", milliseconds=8.0, time_of=lambda layers: 2.0 + 1.5 * layers
    )
    assert found.chosen.layers <= 4.0


def test_what_is_reported_is_measured_on_the_other_rows():
    one, other = recording(seed=7), recording(seed=8)
    found = calibrate(one, other, "accuracy", speed_up=1.5, criteria=["divergence_v1"])
    assert found.reported == sweep(other, [found.policy], "accuracy")[0]
    assert found.reported != found.chosen


@pytest.mark.parametrize("targets", [{}, {"speed_up": 2.0, "max_drop": 0.1}])
def test_no_target_or_two_are_refused(targets):
    with pytest.raises(ValueError, match="target=.*exactly one of speed_up, max_drop, milliseconds"):
        calibrate(recording(), recording(), "accuracy", **targets)


def test_a_target_out_of_reach_says_what_is_within():
    with pytest.raises(ValueError, match="speed_up=100.0: must be within reach: the fastest policy runs"):
        calibrate(recording(), recording(), "accuracy", speed_up=100.0, criteria=["entropy", "patience"])


def test_a_rule_that_cannot_judge_what_was_recorded_is_refused():
    with pytest.raises(ValueError, match="criteria=.'lte'.: must be rules that can judge"):
        calibrate(recording(), recording(), "accuracy", speed_up=2.0, criteria=["lte"])
    with pytest.raises(ValueError, match="criteria=.'entropy'.: must be rules that can judge"):
        values = recording(problem_type=REGRESSION, labels=1)
        calibrate(values, values, "correlation", speed_up=2.0, criteria=["entropy"])


# ---- the guarantee --------------------------------------------------------------------------------------------------

CONFORMAL = [
    ("divergence_v1", SINGLE_LABEL), ("divergence_v2", SINGLE_LABEL), ("divergence_v3", SINGLE_LABEL),
    ("entropy", SINGLE_LABEL), ("entropy", MULTI_LABEL), ("divergence_v1", MULTI_LABEL), ("pcee", SINGLE_LABEL),
    ("dge", SINGLE_LABEL), ("patience", REGRESSION), ("patience", MULTI_LABEL), ("max_prob", SINGLE_LABEL),
    ("voting", SINGLE_LABEL), ("pcee-all", SINGLE_LABEL), ("window", SINGLE_LABEL), ("appointed", SINGLE_LABEL),
]  # fmt: skip


@pytest.mark.parametrize(("criterion", "problem_type"), CONFORMAL)
@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_early_answers_agree_with_the_full_model_as_often_as_promised(criterion, problem_type, epsilon):
    labels = 1 if problem_type == REGRESSION else 3
    pool = recording(20_000, 11, problem_type, labels)
    name, _, ensemble = criterion.partition("-")
    window = EXITS if name == "window" else 3  # what settles earlier is wrong too often, whatever the threshold
    if (
        name in ("max_prob", "voting") or ensemble
    ):  # answers of several exits are seldom full depth's on such noisy rows
        epsilon = 0.45 + epsilon
    policy = ExitPolicy(name, patience=2, window=window, ensemble=ensemble or "none", window_rule="narrow")
    generator, agreed = torch.Generator().manual_seed(0), []
    for _ in range(60):
        rows = torch.randperm(len(pool), generator=generator)
        calibrated = conformal(pool.select(rows[:200]), policy, epsilon)
        fresh = pool.select(rows[200:700])
        answers, _ = fresh.replay(calibrated)
        same = same_answers(answers, fresh.evidence.logits[:, -1], problem_type, tolerance=0.5)
        agreed.append(same.float().mean().item())
    error = np.std(agreed) / math.sqrt(len(agreed))
    assert np.mean(agreed) >= 1 - epsilon - 3 * error
    if name not in ("patience", "appointed"):  # where the next step may be one too many
        assert np.mean(agreed) < 1, "the promise was never put to the test"


def test_it_uses_what_the_guarantee_leaves_room_for():
    pool = recording(4000, 12)
    fast = [pool.replay(conformal(pool, ExitPolicy("entropy"), eps))[1].float().mean() for eps in (0.01, 0.1, 0.3)]
    assert fast[0] > fast[1] > fast[2]


def binary_entropy(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


def test_the_threshold_by_hand():
    # entropies at exits 1 and 2, the third is the last; exit 1 is wrong in rows a and b, exit 2 in row b
    sure, unsure = 4.0, 1.0
    rows = {
        "a": [[unsure, 0.0], [0.0, sure], [0.0, sure]],
        "b": [[sure, 0.0], [unsure, 0.0], [0.0, sure]],
        "c": [[0.0, unsure], [0.0, sure], [0.0, sure]],
    }
    kept = Recording(
        Evidence(torch.tensor(list(rows.values()))), torch.ones(3, dtype=torch.long), None, [1, 2, 3], SINGLE_LABEL
    )
    low, high = (
        -(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (1 / (1 + math.exp(-x)) for x in (sure, unsure))
    )
    assert agreement(kept).tolist() == [[False, True, True], [False, False, True], [True, True, True]]
    # safe up to: a high (its first exit is wrong and unsure), b low, c any threshold; 2nd smallest of (low, high, inf)
    assert conformal(kept, ExitPolicy("entropy"), epsilon=0.5).threshold == pytest.approx(high)
    assert conformal(kept, ExitPolicy("entropy"), epsilon=0.25).threshold == pytest.approx(low)
    assert conformal(kept, ExitPolicy("entropy"), epsilon=0.1).threshold == 0.0


@pytest.mark.parametrize("criterion", ["divergence_v1", "divergence_v3", "entropy", "max_prob", "voting"])
def test_no_other_threshold_is_faster_and_keeps_the_promise(criterion):
    kept, epsilon = recording(50, 13), 0.6 if criterion == "max_prob" else 0.2
    policy = ExitPolicy(criterion, patience=2, window=3)
    full, allowed = kept.evidence.logits[:, -1], math.floor(epsilon * 51) - 1

    def wrong(tau: float) -> torch.Tensor:
        answers, _ = kept.replay(replace(policy, threshold=tau))
        return ~same_answers(answers, full, SINGLE_LABEL, 0.5)

    occurring = torch.cat([score.flatten() for score in kept.scores.of(policy).exits])
    taus = occurring[occurring.isfinite()].unique().tolist()
    found = conformal(kept, policy, epsilon).threshold
    rising = criterion in ("max_prob", "voting")  # careful above, fast below
    careful = [tau for tau in taus if (tau >= found if rising else tau <= found)]
    faster = [tau for tau in taus if (tau < found if rising else tau > found)]
    ever_wrong = torch.stack([wrong(tau) for tau in (*careful, found)]).any(0)
    assert ever_wrong.sum() <= allowed
    nearest = (max if rising else min)(faster)
    beyond = nearest if rising else float(np.nextafter(np.float32(nearest), np.float32("inf")))
    just_past = found - 1e-7 if rising else float(np.nextafter(np.float32(found), np.float32("inf")))
    assert (ever_wrong | wrong(just_past) | wrong(beyond)).sum() > allowed


def test_a_rule_that_cannot_judge_or_is_wrong_whatever_the_threshold_is_refused():
    with pytest.raises(ValueError, match="larger for window: even where it is most careful"):
        conformal(recording(), ExitPolicy("window", window=2), 0.05)
    with pytest.raises(ValueError, match="criterion='lte': must be one that judges what was recorded: divergence_v1"):
        conformal(recording(), ExitPolicy("lte"), 0.1)
    with pytest.raises(ValueError, match="criterion=None: must be one that judges"):
        conformal(recording(), ExitPolicy(None), 0.1)


# ---- ladder, frontier -----------------------------------------------------------------------------------------------


def test_climbing_the_ladder_takes_longer_and_scores_better():
    rungs = ladder(recording(seed=14), recording(seed=15), "accuracy")
    layers, scores = ([getattr(rung.chosen, name) for rung in rungs] for name in ("layers", "score"))
    assert layers == sorted(set(layers)) and scores == sorted(set(scores)) and len(rungs) >= 3


def test_a_server_gets_the_most_exact_rung_that_fits_its_budget():
    rungs, clock = ladder(recording(seed=14), recording(seed=15), "accuracy"), lambda layers: 2.0 * layers
    for budget in (3.0, 6.0, 9.0, 100.0):
        policy = policy_for(rungs, budget, clock)
        fitting = [rung for rung in rungs if clock(rung.reported.layers) <= budget]
        assert policy == (fitting[-1] if fitting else rungs[0]).policy


def test_no_point_of_a_sweep_lies_above_its_frontier():
    kept = recording(seed=16)
    points = sweep(kept, grid(kept, "divergence_v1", steps=20), "accuracy")
    best = frontier(points)
    for point in points:
        assert max(each.score for each in best if each.layers <= point.layers) >= point.score


def test_intervals_hold_the_score_and_narrow_with_more_rows():
    policy = [ExitPolicy("entropy", threshold=0.5)]
    widths = []
    for rows in (100, 1600):
        kept = recording(rows, 17)
        (point,) = with_intervals(sweep(kept, policy, "accuracy"), kept, "accuracy", resamples=200)
        assert point.low <= point.score <= point.high
        widths.append(point.high - point.low)
    assert widths[1] < widths[0] / 2


# ---- which of the points -------------------------------------------------------------------------------------------


def all_right(exits: int = EXITS) -> Recording:
    """Rows of which every exit says the right thing."""
    labels = torch.arange(30) % 3
    logits = 5 * torch.nn.functional.one_hot(labels, 3).float()[:, None].repeat(1, exits, 1)
    return Recording(Evidence(logits), torch.full((30,), 7), labels, list(range(1, exits + 1)), SINGLE_LABEL)


def test_of_equal_scores_the_one_with_the_fewest_layers_is_chosen():
    kept = all_right()
    assert calibrate(kept, kept, "accuracy", speed_up=1.5, criteria=["appointed"]).chosen.layers == 1
    assert calibrate(kept, kept, "accuracy", max_drop=0.0, criteria=["appointed"]).chosen.layers == 1


def test_a_target_that_is_just_met_is_met():
    kept = all_right()
    deeper = replace(kept, labels=torch.arange(30) % 2)  # right by chance everywhere
    for number in range(EXITS):  # and from exit to exit on a few rows more
        deeper.evidence.logits[: 4 * number, number] = 5 * torch.nn.functional.one_hot(deeper.labels[: 4 * number], 3)
    speed = calibrate(deeper, deeper, "accuracy", speed_up=2.0, criteria=["appointed"])
    time = calibrate(
        deeper, deeper, "accuracy", milliseconds=3.0, time_of=lambda layers: layers, criteria=["appointed"]
    )
    assert speed.chosen.layers == time.chosen.layers == 3
