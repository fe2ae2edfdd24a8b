"""What is loaded costs no garbage collection its time, and what was dropped does not stay."""

import gc
import weakref

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from scripted import Scripted, wait_until  # noqa: E402
from served import service_of, serving  # noqa: E402

from modeling_pfberxit.serving.calls import Point, Request, Served  # noqa: E402
from modeling_pfberxit.serving.engine import Engine  # noqa: E402
from modeling_pfberxit.serving.ladder import FULL_RUNG, Ladder, Rung  # noqa: E402
from modeling_pfberxit.serving.models import Models  # noqa: E402
from modeling_pfberxit.serving.watching import CertificateWatcher  # noqa: E402

LOADED = 100_000  # objects that there are at least


@pytest.fixture(autouse=True)
def others():
    """Other tests find collections as they were."""
    gc.unfreeze()
    yield
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
