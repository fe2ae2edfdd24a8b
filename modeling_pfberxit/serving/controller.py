"""Which rung of the ladder answers now: up at once when requests wait, back step by step when they no longer do.

The age of the oldest request that waits says how far behind an engine is, whatever its batches and its hardware. A pure
state machine: times are given to it, so a simulation runs the same code as a server.
"""

import math
from dataclasses import dataclass, replace

from ..model.validation import above_zero
from .ladder import Ladder


@dataclass(frozen=True)
class Reaction:
    """How a controller reacts, times in seconds.

    Args:
        step: the age of the queue from which the second rung answers; the third does from twice that, and so on.
        calm: the share of a rung's age below which the queue is calm again.
        rest: how long it must be calm for one step back.
        patience: how often `rest` may double: it does when a step back had to be taken again before as long had passed.
    """

    step: float = 0.05
    calm: float = 0.5
    rest: float = 2.0
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("step", "calm", "rest"):
            above_zero(name, getattr(self, name))


@dataclass(frozen=True)
class State:
    """Where a controller stands: its rung, since when the queue is calm, the last step back, failed ones, last look."""

    rung: int = 0
    calm_since: float | None = None
    stepped_back: float = -math.inf
    failed: int = 0
    seen: float | None = None


def step(state: State, now: float, age: float, rungs: int, reaction: Reaction) -> State:
    """The state after the oldest request has waited for `age` seconds at the time `now`.

    Example: with three rungs and a step of 0.05 s, an age of 0.12 s leads to the third; 2 s below 0.05 s, one back.
    """
    state = replace(rested(state, now - age, reaction), seen=now)
    wanted = 0 if age < reaction.step else min(rungs - 1, 1 + int(math.log2(age / reaction.step)))
    rest = reaction.rest * 2**state.failed
    if wanted > state.rung:
        hasty = now - state.stepped_back < rest
        return State(wanted, failed=min(state.failed + 1, reaction.patience) if hasty else 0, seen=now)
    if state.rung == 0 or age >= reaction.calm * reaction.step * 2 ** (state.rung - 1):
        return replace(state, calm_since=None)
    since = now if state.calm_since is None else state.calm_since
    if now - since < rest:
        return replace(state, calm_since=since)
    return replace(state, rung=state.rung - 1, calm_since=now, stepped_back=now)


def rested(state: State, until: float, reaction: Reaction) -> State:
    """The state after silence from the last look until the oldest request arrived: nobody asks while nothing waits."""
    if state.seen is None or until <= state.seen:
        return state
    since = state.seen if state.calm_since is None else state.calm_since
    rest = reaction.rest * 2**state.failed
    back = min(state.rung, int((until - since) // rest))
    if not back:
        return state
    at = since + back * rest
    return replace(state, rung=state.rung - back, calm_since=at, stepped_back=at)


class Controller:
    """Moves along a ladder by the age of a queue, from the most careful certified rung down to the floor.

    Args:
        floor: the share of answers that may differ, at most; None: any rung may answer.

    Raises:
        ValueError: a floor out of range.
    """

    def __init__(self, ladder: Ladder, floor: float | None = None, reaction: Reaction | None = None) -> None:
        self.ladder, self.reaction, self.state = ladder, reaction or Reaction(), State()
        self.lowest = ladder.lowest(floor)
        self.highest = min(1, self.lowest)  # full depth is for requests whose own floor asks for it

    @property
    def number(self) -> int:
        """The rung for rows that bring no floor, as its number in the ladder."""
        return self.highest + self.state.rung

    def rung(self, now: float, oldest_wait: float, differ: float | None = None) -> str:
        """The name of the rung that answers rows of the next batch.

        Args:
            now: seconds on a clock that never runs back.
            oldest_wait: seconds that the oldest row has waited; 0: none waits.
            differ: a request's own floor; a lower one than the operator's counts when all others are at theirs.

        Raises:
            ValueError: a floor out of range.
        """
        self.state = step(self.state, now, oldest_wait, 1 + self.lowest - self.highest, self.reaction)
        if differ is None:
            return self.ladder[self.number].name
        own = self.ladder.lowest(differ)
        return self.ladder[own if self.number == self.lowest else min(own, self.number)].name

    def within(self, differ: float | None = None) -> list[str]:
        """The names of the rungs down to a request's floor, or the operator's, from careful to fast."""
        lowest = self.lowest if differ is None else self.ladder.lowest(differ)
        return [rung.name for rung in self.ladder.rungs[: lowest + 1]]

    @property
    def between(self) -> list[str]:
        """The names of the rungs that it moves between by itself."""
        return [rung.name for rung in self.ladder.rungs[self.highest : self.lowest + 1]]

    @property
    def current(self) -> str:
        """The name of the rung that answers rows that bring no floor."""
        return self.ladder[self.number].name


class Fixed:
    """Stays on one rung whatever waits: serving without a controller."""

    def __init__(self, ladder: Ladder, name: str) -> None:
        self.ladder, self.name = ladder, name
        self.number = [rung.name for rung in ladder].index(name)

    def rung(self, now: float, oldest_wait: float, differ: float | None = None) -> str:
        """The one rung, or a more careful one where a request asks for it."""
        return self.ladder[min(self.number, self.ladder.lowest(differ))].name

    def within(self, differ: float | None = None) -> list[str]:
        """The rungs down to it."""
        return [rung.name for rung in self.ladder.rungs[: min(self.number, self.ladder.lowest(differ)) + 1]]

    @property
    def between(self) -> list[str]:
        """The one rung."""
        return [self.name]

    @property
    def current(self) -> str:
        """The one rung."""
        return self.name


Steering = Controller | Fixed  # what chooses rungs
