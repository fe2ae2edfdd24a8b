"""What is loaded costs no garbage collection its time, and what was dropped does not stay."""

import gc
import socket
import time
import weakref
from types import FrameType

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from scripted import Scripted, wait_until  # noqa: E402
from served import service_of, serving  # noqa: E402

from modeling_pfberxit.serving.batching import Limits  # noqa: E402
from modeling_pfberxit.serving.calls import Point, Request, Served  # noqa: E402
from modeling_pfberxit.serving.engine import Engine  # noqa: E402
from modeling_pfberxit.serving.ladder import FULL, FULL_RUNG, Ladder, Rung  # noqa: E402
from modeling_pfberxit.serving.limits import HttpLimits  # noqa: E402
from modeling_pfberxit.serving.models import Models  # noqa: E402
from modeling_pfberxit.serving.watching import CertificateWatcher  # noqa: E402

LOADED = 100_000  # objects that there are at least


@pytest.fixture(autouse=True)
def others():
    """Other tests find collections as they were."""
    gc.unfreeze()
    yield
    gc.enable()
    gc.unfreeze()


def test_once_ready_garbage_collections_pass_by_what_is_loaded():
    with serving(service_of(Scripted())):
        assert gc.get_freeze_count() > LOADED


@pytest.fixture
def watched_models():
    """Models whose adapters are scripted and watched, warm; and the engine that runs them."""
    engine, point, ladder = Engine(), Point("1%", None), Ladder((FULL_RUNG, Rung("1%", 0.01, 2.0)))
    engine.start()

    def load(name: str, folder: str) -> Served:
        return Served(name, Scripted(), point, watcher=CertificateWatcher(ladder, share=1.0))

    models = Models(engine, Served("default", Scripted(), point), load)
    models.warm_up()
    yield models
    engine.drain(5)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_model_that_was_dropped_or_replaced_is_gone_once_its_last_request_is_answered(watched_models, replaced):
    models, engine = watched_models, watched_models.engine
    models.add("x", "folder")
    gone, predictor = weakref.ref(models.get("x")), models.get("x").predictor
    predictor.free.clear()
    answers = [engine.submit(Request(models.get("x"), [{"input_ids": [7]}])) for _ in range(2)]
    wait_until(lambda: predictor.busy)
    models.add("x", "folder") if replaced else models.drop("x")
    assert gone() is not None and gc.get_freeze_count() > LOADED
    predictor.free.set()
    assert [answer.result(5)[0].logits[1] for answer in answers] == [7, 7]
    wait_until(lambda: gone() is None, 5)


def test_what_is_left_in_a_circle_is_found_although_much_is_loaded():
    with serving(service_of(Scripted())):
        circle, before = [], gc.get_stats()[2]["collections"]
        circle.append(circle)
        gc.collect(1)  # old enough that only a full collection looks at it
        kept = [[] for _ in range(100_000)]
        assert gc.get_stats()[2]["collections"] > before and len(kept) == 100_000


# ---- requests without an answer --------------------------------------------------------------------------------------

BODY = b'{"inputs": "7"}'
HEAD = b"POST /predict HTTP/1.1\r\nHost: server\r\nConnection: close\r\n"
ASKED = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
WAITS = "gone", "late"  # for an answer of a model that is held up
ENDS = {
    "gone": (ASKED, b""),
    "late": (ASKED, b" 504 "),
    "too large, as declared": (HEAD + b"Content-Length: 99\r\n\r\n", b" 413 "),
    "too large, as sent": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n63\r\n" + b"[" * 99 + b"\r\n", b" 413 "),
    "too slow": (HEAD + b"Content-Length: 9\r\n\r\n", b" 408 "),
}


def answer(port: int, sent: bytes, gone: bool) -> bytes:
    """What the server answers, from its first bytes on; nothing to a client that goes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        if gone:
            time.sleep(0.1)
            return b""
        return connection.makefile("rb").read()


@pytest.mark.parametrize("end", ENDS)
def test_a_request_without_an_answer_is_gone_with_all_it_held_before_any_collection(end):
    sent, status = ENDS[end]
    predictor = Scripted()
    limits = HttpLimits(body=64, deadline=20 if end == "gone" else 0.3, upload=0.3 if end == "too slow" else 10)
    with serving(service_of(predictor, http=limits)) as address:
        port = int(address.rpartition(":")[2])
        for again in range(2):  # what the first one loads is none of a request
            predictor.free.clear() if end in WAITS else predictor.free.set()
            gc.disable()
            assert status in answer(port, sent, end == "gone")
            predictor.free.set()
            time.sleep(0.2)
            held = [] if again == 0 else frames_in_circles()
            gc.enable()
    assert not held


def frames_in_circles() -> list[str]:
    """Functions of ours whose locals only a collection would free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    frames = [each.f_code for each in gc.garbage if isinstance(each, FrameType)]
    gc.garbage.clear()
    return [code.co_name for code in frames if "modeling_pfberxit" in code.co_filename]


def test_a_function_that_fails_on_the_engines_thread_leaves_no_circle():
    class Kept:
        """What the function holds."""

    def fail():
        kept = Kept()
        held.append(weakref.ref(kept))
        raise ValueError(len(held))

    engine, held = Engine(), []
    engine.start()
    gc.disable()
    with pytest.raises(ValueError):
        engine.call(fail).result(5)
    gc.enable()
    engine.drain(5)
    assert held[0]() is None


@pytest.mark.parametrize("together, longest", [(None, 64), (2, 64), (None, 300), (1, 4096)])
def test_no_request_pays_for_the_memory_of_the_largest_batch(together, longest):
    predictor, engine = Scripted(), Engine(Limits(tokens=512, rows=16))
    predictor.together, predictor.max_length = together, longest
    engine.start()
    Models(engine, Served("default", predictor, Point("own", None)), None).warm_up()
    engine.drain(5)
    length = min(longest, 512)
    largest = [ids for ids, points in predictor.batches if set(points) == {FULL} and len(ids[0]) == length]
    assert [len(ids) for ids in largest] == [min(16, together or 16, 512 // length)]
