"""The frontier of every criterion as a CSV and a table. The picture is in `plots`."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import NAMES
from .clock import Clock
from .frontier import Point, frontier, grid, judging, sweep, with_intervals
from .plots import Banded
from .recording import Recording
from .tables import table


def frontiers(
    recording: Recording, metric: str, config: PFBerxitConfig | None = None, resamples: int = 200
) -> dict[str, list[Point]]:
    """The frontier of every criterion whose evidence was recorded, with 95 % intervals of its scores."""
    found = {}
    for name in judging(recording):
        points = frontier(sweep(recording, grid(recording, name), metric, config))
        found[name] = with_intervals(points, recording, metric, resamples)
    return found


def write_csv(found: dict[str, list[Point]], path: str | Path, clock: Clock | None = None) -> None:
    """One line per point: its policy, score with interval, layers, speed-up by layers, relative multiply-adds.

    A clock adds milliseconds a row, a column for each batch size and length that it measured.
    """
    times = {f"ms_batch{size}_length{length}": clock.at(size, length) for size, length in clock.lines} if clock else {}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES, "score", "low", "high", "layers", "saved", "speed_up", "macs", *times])
        for points in found.values():
            for point in points:
                stated = point.policy.stated()
                policy = [stated.get(name) for name in NAMES]
                numbers = (
                    point.score, point.low, point.high, point.layers, point.saved, point.speed_up, point.macs,
                    *(time_of(point.layers) for time_of in times.values()),
                )  # fmt: skip
                writer.writerow([*policy, *("" if value is None else f"{value:.5g}" for value in numbers)])


def as_markdown(
    found: Mapping[str, Sequence[Banded]], metric: str, speed_ups: tuple[float, ...] = (1.25, 1.5, 2.0)
) -> str:
    """For every criterion the score at these layer speed-ups, or just beyond; a dash where it has no such point."""
    titles = ["criterion", *(f"{metric} at {speed_up:g}×" for speed_up in speed_ups)]
    rows = ([name, *(score_at(points, speed_up) for speed_up in speed_ups)] for name, points in found.items())
    return table(titles, rows)


def score_at(points: Sequence[Banded], speed_up: float) -> str:
    """The score with its interval of the slowest point that is at least this fast."""
    fast = [point for point in points if point.speed_up >= speed_up]
    nearest = min(fast, key=lambda point: point.speed_up, default=None)
    return "–" if nearest is None else f"{nearest.score:.3f} ({nearest.low:.3f} to {nearest.high:.3f})"
