"""A server on loopback in a thread of this process, and models for it."""

import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
from scripted import wait_until
from tiny import save_backbone, tiny_model
from transformers import AutoTokenizer

from modeling_pfberxit.serving.batching import Limits
from modeling_pfberxit.serving.limits import HttpLimits
from modeling_pfberxit.serving.start import Loading, Place, Rule, make_service, server_of

POINTS = {
    "careful": {"criterion": "entropy", "threshold": 0.3},
    "quick": {"criterion": "appointed", "appointed_layer": 2},
}
WORDS = 40  # tokens that the tokenizer of `saved` reads


def saved(folder: Path, names=("refund", "delivery", "other"), **knobs) -> str:
    """A model of random weights with a tokenizer of the words w0, w1 ..., in a folder."""
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = tiny_model(**named, exit_criterion="entropy", exit_threshold=0.8, **knobs)
    model.config.operating_points = POINTS
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(folder.with_name(f"{folder.name}-encoder")))
    tokenizer.model_max_length = WORDS
    tokenizer.save_pretrained(folder)
    return str(folder)


def service_of(first, limits=None, http=None, rule=None, more=None, root=None, loading=None, meter=None):
    """A service of a folder's model, or of a predictor."""
    loading = loading or Loading(device="cpu")
    first = loading.first(first) if isinstance(first, str) else first
    return make_service(
        first, rule or Rule(), loading, more or {}, root, limits or Limits(), http or HttpLimits(), meter
    )


@contextmanager
def serving(service, drain: int = 5, trace: bool = False):
    """The address of a server that is warm."""
    server = server_of(service, Place(port=free_port(), drain=drain, trace=trace))
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
