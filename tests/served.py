"""A server on loopback in a thread of this process, and a model that stands in for real ones."""

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from tiny import save_backbone, tiny_model
from transformers import AutoTokenizer

from modeling_pfberxit.serving.batching import Limits
from modeling_pfberxit.serving.calls import FULL, OWN, Found, Point
from modeling_pfberxit.serving.limits import HttpLimits
from modeling_pfberxit.serving.start import Loading, Place, Rule, make_service, server_of

POINTS = {
    "careful": {"criterion": "entropy", "threshold": 0.3},
    "quick": {"criterion": "appointed", "appointed_layer": 2},
}
WORDS = 40  # tokens that the tokenizer of `saved` reads


def saved(folder: Path, names=("refund", "delivery", "other"), backbone: str | None = None, **knobs) -> str:
    """A model of random weights with a tokenizer of the words w0, w1 ..., in a folder."""
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = tiny_model(**named, exit_criterion="entropy", exit_threshold=0.8, **knobs)
    model.config.operating_points = POINTS
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(folder.with_name(f"{folder.name}-encoder")))
    tokenizer.model_max_length = WORDS
    tokenizer.save_pretrained(folder)
    return str(folder)


class Scripted:
    """A predictor whose answer to a row is its first token, and that can be held up.

    Args:
        seconds: that a batch takes.
    """

    labels, activation, depth, max_length, together, mixes = ["no", "yes"], "softmax", 6, 64, None, False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches, self.points = seconds, [], {}
        self.free = threading.Event()
        self.free.set()

    def point(self, asked) -> Point:
        return Point(asked or OWN, asked, 6.0 if asked == FULL else 2.0)

    def read(self, texts: Sequence):
        return [{"input_ids": [int(word) if word.isdigit() else 1 for word in text.split()]} for text in texts], [
            False for _ in texts
        ]

    def run(self, rows, points) -> Found:
        self.free.wait(20)
        time.sleep(self.seconds)
        ids = [list(row["input_ids"]) for row in rows]
        self.batches.append((ids, [point.name for point in points]))
        if any(row[0] == 666 for row in ids):
            raise RuntimeError("w1 w2 is a secret text")
        return Found(np.array([[0.0, row[0]] for row in ids], np.float32), [len(row) for row in ids])


def service_of(first, limits=None, http=None, rule=None, more=None, root=None, loading=None, **options):
    """A service of a folder's model, or of a predictor."""
    loading = loading or Loading(device="cpu")
    first = loading.first(first) if isinstance(first, str) else first
    return make_service(first, rule or Rule(), loading, more or {}, root, limits or Limits(), http or HttpLimits())


@contextmanager
def serving(service, drain: int = 5):
    """The address of a server that is warm."""
    server = server_of(service, Place(port=free_port(), drain=drain))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.config.port}"
    wait_until(lambda: healthy(address))
    yield address
    server.should_exit = True
    thread.join(drain + 5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(holds, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
