"""A predictor that stands in for real ones, and a wait for what happens in another thread."""

import threading
import time
from collections.abc import Sequence

import numpy as np

from modeling_pfberxit.serving.calls import Found, Point
from modeling_pfberxit.serving.ladder import FULL
from modeling_pfberxit.serving.predictors import OWN

SECRET = "what a client wrote"


class Scripted:
    """A predictor whose answer to a row is its first token, and that can be held up.

    Args:
        seconds: that a batch takes.
    """

    labels, activation, depth, max_length, together, mixes = ["no", "yes"], "softmax", 6, 64, None, False
    points, facts = {}, {}
    known = {OWN: Point(OWN, None, 2.0), FULL: Point(FULL, FULL, 6.0)}

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []
        self.free, self.busy, self.readable = threading.Event(), False, threading.Event()
        self.free.set()
        self.readable.set()

    def point(self, asked) -> Point:
        if isinstance(asked, dict):
            raise ValueError("must be a name")
        return Point(asked or OWN, str(asked), 6.0 if asked == FULL else 2.0)

    def read(self, texts: Sequence):
        self.readable.wait(20)
        words = [text.split() for text in texts]
        return [{"input_ids": [int(word) if word.isdigit() else 1 for word in each]} for each in words], [False] * len(
            texts
        )

    def run(self, rows, points) -> Found:
        self.busy = True
        self.free.wait(20)
        self.busy = False
        time.sleep(self.seconds)
        ids = [list(row["input_ids"]) for row in rows]
        self.batches.append((ids, [point.name for point in points]))
        if any(row[0] == 666 for row in ids):
            raise RuntimeError(SECRET)
        return Found(np.array([[0.0, row[0]] for row in ids], np.float32), [len(row) for row in ids])


def wait_until(holds, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
