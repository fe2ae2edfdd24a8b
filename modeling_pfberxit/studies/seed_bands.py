"""Frontiers of one model trained with several seeds: every rule's mean, with a band for seeds and rows together.

Settings come from the frontier on held-out rows and are reported on the others, so that nothing is chosen where it is
measured. Between the settings of a model, scores are interpolated linearly.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..data.metrics import majority_in_words
from ..evaluation import plots
from ..evaluation.frontier import Point, frontier, grid, judging, layer_scores, resampled_scores, sweep
from ..evaluation.frontier_report import as_markdown
from ..evaluation.tables import spread
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.exit_policy import configured_policy
from .paper_study import Study
from .trainings import Trained

SHARES = np.arange(0.0, 0.85, 0.05)


@dataclass(frozen=True)
class Reached:
    """A point of a rule's mean frontier over seeds."""

    layers: float  # executed, mean over rows
    saved: float  # the share of layers that was not executed
    macs: float  # multiply-adds relative to full depth
    score: float
    sd: float  # of the score over seeds; 0 for a single one
    low: float  # of the 95 % interval of the mean score, seeds and rows drawn anew together
    high: float

    @property
    def speed_up(self) -> float:
        """Layer speed-up."""
        return 1 / (1 - self.saved)


def settings(config: PFBerxitConfig, kept: Trained, criterion: str) -> list[Point]:
    """A rule's settings on the held-out rows' frontier, measured on the reported rows, most layers saved first."""
    metric = kept.metric
    tried = sweep(kept.chosen_on, grid(kept.chosen_on, criterion, configured_policy(config)), metric)
    return sweep(kept.reported_on, [point.policy for point in frontier(tried)], metric, config)


def thinned(points: Sequence[Point], width: float = 0.05) -> list[Point]:
    """One setting for each interval of layers saved: the last, which scores best on the rows it was chosen on."""
    return list({round(point.saved / width): point for point in points}.values())


def at_shares(saved: Sequence[float], values: Sequence[float], shares: np.ndarray) -> np.ndarray:
    """Values where at least such shares are saved, interpolated between settings; NaN where no setting saves enough.

    Example: settings that save 0.2 and 0.4 with values 0.9 and 0.8 give 0.9 at 0.1, 0.85 at 0.3 and NaN at 0.5.
    """
    places, numbers = np.unique(saved, return_index=True)
    known = np.asarray(values)[numbers]
    return np.interp(shares, places, known, left=known[0], right=np.nan)


def along(config: PFBerxitConfig, kept: Trained, shares: np.ndarray) -> np.ndarray:
    """The config's rule: reported score at each share of layers saved, NaN where it cannot judge or save so much."""
    if config.exit_criterion not in judging(kept.chosen_on):
        return np.full(len(shares), np.nan)
    points = settings(config, kept, config.exit_criterion)
    return at_shares([point.saved for point in points], [point.score for point in points], shares)


def band(models: Sequence[tuple[PFBerxitConfig, Trained]], criterion: str, resamples: int) -> list[Reached]:
    """The mean frontier of one rule over several seeds, at those of `SHARES` that all of them can save."""
    curves, redrawn = [], []
    for config, kept in models:
        points = thinned(settings(config, kept, criterion))
        saved = [point.saved for point in points]
        values = ([getattr(point, name) for point in points] for name in ("layers", "saved", "macs", "score"))
        curves.append([at_shares(saved, each, SHARES) for each in values])
        drawn = resampled_scores(points, kept.reported_on, kept.metric, resamples)
        redrawn.append([at_shares(saved, row, SHARES) for row in drawn])
    scores = np.array(curves)[:, -1]
    sd = scores.std(0, ddof=1) if len(models) > 1 else np.zeros(len(SHARES))
    found = np.vstack([np.mean(curves, 0), sd, interval(np.array(redrawn))])
    return list(dict.fromkeys(Reached(*column) for column in found.T.tolist() if not np.isnan(column).any()))


def interval(redrawn: np.ndarray, seed: int = 0) -> np.ndarray:
    """The 95 % interval of the mean over seeds drawn anew: scores (seeds, resamples of rows, shares) -> (2, shares)."""
    seeds, resamples, _ = redrawn.shape
    drawn = np.random.default_rng(seed).integers(0, seeds, (resamples, seeds))
    means = redrawn[drawn, np.arange(resamples)[:, None]].mean(1)
    return np.quantile(means, [0.025, 0.975], axis=0)


def write_csv(found: dict[str, list[Reached]], seeds: int, path: str | Path) -> None:
    """One line per rule and point, most layers first."""
    names = [*Reached.__dataclass_fields__]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["criterion", *names, "speed_up", "seeds"])
        for criterion, points in found.items():
            for point in points:
                numbers = [f"{value:.5g}" for value in (*asdict(point).values(), point.speed_up)]
                writer.writerow([criterion, *numbers, seeds])


def frontiers(study: Study, resamples: int = 100) -> str:
    """The frontier of every rule on PF-BERxiT's model, task by task: CSV, picture, table."""
    tables = []
    for task in study.tasks:
        models = study.judged(task)
        recording, metric = models[0][1].reported_on, models[0][1].facts["metric"]
        found = {rule: points for rule in judging(recording) if (points := band(models, rule, resamples))}
        full = [layer_scores(kept.reported_on, metric)[-1] for _, kept in models]
        write_csv(found, len(models), study.folder / f"frontier-{task}.csv")
        title = f"{task}: {len(recording)} rows, {len(models)} seed(s), 95 % bootstrap over seeds and rows"
        plots.frontiers(found, float(np.mean(full)), metric, study.folder / f"frontier-{task}.png", title)
        head = f"**{task}**: {metric} {spread(full)} at full depth, {majority_in_words(metric, models[0][1].majority)}"
        tables.append(f"{head}\n\n{as_markdown(found, metric)}")
    return "\n\n".join(tables)
