"""When requests arrive, and which text each asks: a rate that changes over time, and gaps that are irregular.

Gaps with mean 1 are drawn from a seed and laid along the cumulated rate: where the rate is three times as high, three
times as many requests arrive. Exponential gaps give Poisson's process, Pareto's many short ones and a few very long.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..model.validation import above_zero, entry_of, whole

Rate = Callable[[np.ndarray], np.ndarray]  # seconds (N,) -> the rate there (N,), as a multiple of the usual one
GRID = 20_001  # points on which a rate is cumulated


@dataclass(frozen=True)
class Trace:
    """So many seconds of a rate, as a multiple of the usual one."""

    name: str
    seconds: float
    rate: Rate

    def arrivals(self, usual: float, gaps: str = "poisson", seed: int = 0) -> np.ndarray:
        """The seconds at which requests arrive, sorted, (N,).

        Args:
            usual: requests a second where the rate is 1.
            gaps: a name in `GAPS`.

        Raises:
            ValueError: a rate that is not above 0, gaps that are not known.
        """
        draw = GAPS[entry_of(GAPS)("gaps", gaps)]
        times = np.linspace(0, self.seconds, GRID)
        rates = above_zero("usual", usual) * self.rate(times)
        passed = np.concatenate([[0.0], ((rates[1:] + rates[:-1]) / 2 * np.diff(times)).cumsum()])
        generator, at = np.random.default_rng(whole(0)("seed", seed)), np.zeros(1)
        while at[-1] < passed[-1]:  # as many gaps as fill the trace
            more = draw(generator, 1 + int(1.1 * (passed[-1] - at[-1])))
            at = np.concatenate([at, at[-1] + more.cumsum()])
        at = at[1:]
        return np.interp(at[at < passed[-1]], passed, times)


def drawn(texts: int, requests: int, seed: int | np.random.Generator = 0) -> np.ndarray:
    """Which of so many texts each request asks, (M,); the same for a simulated and a real server."""
    return np.random.default_rng(seed).integers(texts, size=requests)


# ---- gaps of mean 1 --------------------------------------------------------------------------------------------------

TAIL = 1.5  # Pareto's exponent: gaps with a mean, without a variance


def exponential(generator: np.random.Generator, count: int) -> np.ndarray:
    """Independent users."""
    return generator.exponential(size=count)


def pareto(generator: np.random.Generator, count: int) -> np.ndarray:
    """Crowds and silences: Lomax gaps, whose variance is infinite."""
    return generator.pareto(TAIL, size=count) * (TAIL - 1)


def regular(generator: np.random.Generator, count: int) -> np.ndarray:
    """A metronome."""
    return np.ones(count)


GAPS = {"poisson": exponential, "pareto": pareto, "regular": regular}

# ---- shapes ----------------------------------------------------------------------------------------------------------


def steady(seconds: float) -> Trace:
    """The usual rate throughout."""
    return Trace("steady", seconds, np.ones_like)


def diurnal(seconds: float, swing: float = 0.8) -> Trace:
    """A day: around the usual rate by `swing`, lowest at the beginning and the end."""
    return Trace("diurnal", seconds, lambda at: 1 - swing * np.cos(2 * np.pi * at / seconds))


def burst(seconds: float, lasts: float = 30.0, times: float = 3.0) -> Trace:
    """The usual rate, in the middle `times` of it for `lasts` seconds."""
    begins = (seconds - lasts) / 2
    return Trace("burst", seconds, lambda at: np.where((at >= begins) & (at < begins + lasts), times, 1.0))


def flash_crowd(seconds: float, times: float = 6.0, fades: float = 10.0) -> Trace:
    """All at once, after a quarter of the time, `times` the usual rate, which fades with a time constant."""
    begins = seconds / 4
    return Trace(
        "flash crowd", seconds,
        lambda at: 1 + np.where(at >= begins, (times - 1) * np.exp(-np.maximum(at - begins, 0) / fades), 0.0),
    )  # fmt: skip


SHAPES: dict[str, Callable[[float], Trace]] = {
    "steady": steady,
    "diurnal": diurnal,
    "burst": burst,
    "flash crowd": flash_crowd,
}
