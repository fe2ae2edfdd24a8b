"""Frontiers over seeds: what is interpolated, what the band covers, and that nothing is chosen where it is reported."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_config

from modeling_pfberxit import ExitPolicy, PFBerxitConfig
from modeling_pfberxit.evaluation.frontier import Point, sweep
from modeling_pfberxit.evaluation.frontier_report import as_markdown
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import REGRESSION, SINGLE_LABEL, Evidence
from modeling_pfberxit.studies.operating_points import measure, starred
from modeling_pfberxit.studies.seed_bands import SHARES, along, at_shares, band, interval, settings, thinned
from modeling_pfberxit.studies.trainings import Trained


def recording(rows: int, seed: int) -> Recording:
    """Deeper exits know more."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    known = torch.arange(1, 7)[:, None] * torch.nn.functional.one_hot(labels, 2)[:, None] / 2
    logits = torch.randn(rows, 6, 2, generator=generator) + known
    source = {"metric": "accuracy", "run": {"seed": seed}}
    return Recording(Evidence(logits), torch.full((rows,), 9), labels, [1, 2, 3, 4, 5, 6], SINGLE_LABEL, source)


@pytest.fixture(scope="module")
def models() -> list[tuple[PFBerxitConfig, Trained]]:
    config = PFBerxitConfig.from_backbone(tiny_config())
    return [(config, Trained(recording(120, 10 + seed), recording(150, seed))) for seed in range(3)]


def test_between_settings_lie_straight_lines_by_hand():
    found = at_shares([0.4, 0.2], [0.8, 0.9], np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert found[:4] == pytest.approx([0.9, 0.9, 0.85, 0.8]) and np.isnan(found[4])


def test_a_rule_that_cannot_judge_the_task_has_no_curve(models):
    config, kept = models[0]
    assert not np.isnan(along(config, kept, SHARES)).all()
    of_values = [
        replace(each, evidence=Evidence(each.evidence.logits[..., :1]), labels=each.labels.float(),
                problem_type=REGRESSION)
        for each in (kept.chosen_on, kept.reported_on)
    ]  # fmt: skip
    assert config.exit_criterion == "divergence_v1" and np.isnan(along(config, Trained(*of_values), SHARES)).all()


def test_one_setting_stays_for_each_interval_of_layers_saved():
    points = [Point(ExitPolicy(), score, 6 * (1 - saved), saved) for saved, score in ((0.41, 0.7), (0.4, 0.8), (0, 1))]
    assert thinned(points) == points[1:]


def test_of_one_seed_the_band_is_that_of_its_rows_and_seeds_that_differ_widen_it():
    rows = np.random.default_rng(0).normal(0.8, 0.01, (1, 4000, 1))
    low, high = interval(rows)
    assert low == pytest.approx(0.8 - 0.0196, abs=1e-3) and high == pytest.approx(0.8 + 0.0196, abs=1e-3)
    alike, apart = np.repeat(rows, 3, 0), np.concatenate([rows - 0.1, rows, rows + 0.1])
    assert np.ptp(interval(alike)) == pytest.approx(high - low)
    assert np.ptp(interval(apart)) > 3 * np.ptp(interval(alike))


def test_settings_are_chosen_on_held_out_rows_and_reported_on_the_others(models):
    config, kept = models[0]
    found = settings(config, kept, "entropy")
    swapped = settings(config, Trained(kept.reported_on, kept.chosen_on), "entropy")
    assert found == sweep(kept.reported_on, [point.policy for point in found], "accuracy", config)
    assert {point.policy for point in found} != {point.policy for point in swapped}
    fewer = Trained(kept.chosen_on, kept.reported_on.select(torch.arange(75)))
    assert [point.policy for point in settings(config, fewer, "entropy")] == [point.policy for point in found]


def test_the_band_holds_the_mean_of_what_the_seeds_do(models):
    found = band(models, "appointed", resamples=60)
    saved = [point.saved for point in found]
    assert saved == sorted(set(saved)), "a share that no setting needs is no point of its own"
    slowest = [settings(config, kept, "appointed")[-1] for config, kept in models]
    assert found[0].score == pytest.approx(np.mean([point.score for point in slowest]))
    assert found[0].sd == pytest.approx(np.std([point.score for point in slowest], ddof=1))
    assert found[0].layers == pytest.approx(np.mean([point.layers for point in slowest]))
    for point in found:
        assert point.low < point.score < point.high and 0 < point.macs <= 1
        assert point.saved == pytest.approx(1 - point.layers / 6)


def test_a_score_no_better_than_the_majority_is_marked():
    assert [starred([value], 0.7) for value in (0.69, 0.7, 0.71)] == ["0.690*", "0.700*", "0.710"]
    assert starred([0.6, 0.9], 0.7) == "0.750 ± 0.212"


def test_a_frontier_is_told_at_the_slowest_setting_that_is_fast_enough():
    saved = {0.7: 0.6, 0.8: 0.3, 0.9: 0.0}  # score -> share of the layers, 2.5, 1.43 and 1 times as fast
    points = [Point(ExitPolicy(), score, 6 * (1 - share), share, 0.5, score - 0.1, score + 0.1)
              for score, share in saved.items()]  # fmt: skip
    *_, entropy, none = as_markdown({"entropy": points, "lte": points[2:]}, "accuracy").splitlines()
    assert entropy == "| entropy | 0.800 (0.700 to 0.900) | 0.700 (0.600 to 0.800) | 0.700 (0.600 to 0.800) |"
    assert none == "| lte | – | – | – |"


def test_an_operating_point_keeps_its_promise_where_it_was_chosen_and_says_what_it_did_elsewhere(models):
    config, kept = models[0]
    found = measure(config, kept, (1.5, 2.0))
    for speed_up, point in zip((1.5, 2.0), found["points"].values()):
        assert point["chosen_saved"] >= 1 - 1 / speed_up - 1e-9
        (replayed,) = sweep(kept.reported_on, [ExitPolicy(**point["policy"])], "accuracy")
        assert (point["score"], point["saved"]) == (replayed.score, replayed.saved)
    assert set(found["points"]) == {"1.5x", "2x"} and found["full"] > found["majority"]
