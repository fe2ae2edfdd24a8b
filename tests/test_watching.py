"""A share of what is served is held against full depth, whatever the traffic, and `/metrics` tells what was found."""

import numpy as np
import pytest

from modeling_pfberxit.serving.calls import Answer, Point, Request, Served
from modeling_pfberxit.serving.controller import Controller
from modeling_pfberxit.serving.ladder import FULL_RUNG, Ladder, Rung
from modeling_pfberxit.serving.watching import TOGETHER, CertificateWatcher

LADDER = Ladder((FULL_RUNG, Rung("1%", 0.01, 4.0), Rung("5%", 0.05, 2.0, tolerance=0.5)))
KEY = b"a key of the test"


def served(watcher: CertificateWatcher, rung: str = "1%", logits=(1.0, 0.0), point: Point | None = None):
    """A row that has arrived and was answered."""
    request = Request(Served("m", None, Point("default", None), None, watcher), [{"input_ids": [1, 2]}], point)
    (row,) = request.rows()
    watcher.arrived(row)
    watcher.answered(row, answer(logits), rung)
    return row


def answer(logits) -> Answer:
    return Answer(np.array(logits, np.float32), 2, "1%")


def all_of(**options) -> CertificateWatcher:
    return CertificateWatcher(LADDER, share=1.0, key=KEY, **options)


# ---- which rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_share_is_drawn_by_a_hash(share):
    watcher = CertificateWatcher(LADDER, share=share, key=KEY)
    drawn = [watcher.drawn(number) for number in range(20_000)]
    assert np.mean(drawn) == pytest.approx(share, abs=0.01 if 0 < share < 1 else 0)
    assert drawn == [CertificateWatcher(LADDER, share=share, key=KEY).drawn(number) for number in range(20_000)]


def test_two_servers_draw_other_rows_and_nobody_can_tell_which():
    one, other = (CertificateWatcher(LADDER, share=0.5) for _ in range(2))
    assert one.key != other.key and [one.drawn(n) for n in range(100)] != [other.drawn(n) for n in range(100)]


def test_what_is_drawn_depends_on_neither_load_nor_rung_nor_text():
    """Rows arrive while the queue is full, empty, and in turns; the same ones are drawn."""
    quick, slow = (CertificateWatcher(LADDER, share=0.1, key=KEY, room=3) for _ in range(2))
    first = [served(quick, "1%").watched for _ in range(500)]
    second = []
    for number in range(500):
        second.append(served(slow, "5%", logits=(number, 0)).watched)
        for row in slow.due(float(number), idle=True):
            slow.judged(row, answer((1, 0)))
    assert first == second and quick.dropped and not slow.dropped


@pytest.mark.parametrize(("rung", "point"), [("1%", Point("custom", None)), ("full-depth", None), ("default", None)])
def test_rows_with_a_policy_of_their_own_or_without_a_promise_are_left_out(rung, point):
    watcher = all_of()
    served(watcher, rung, point=point)
    assert not watcher.waiting and not watcher.due(9.0, idle=True)


# ---- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded_and_drops_are_counted():
    watcher = all_of(room=10)
    for _ in range(25):
        served(watcher)
    assert len(watcher.waiting) == 10 and watcher.dropped == 15


def test_rows_run_when_nothing_else_waits_or_they_have_waited_long_enough():
    watcher = all_of(patience=5.0)
    watcher.due(100.0, idle=False)
    rows = [served(watcher) for _ in range(TOGETHER + 2)]
    assert watcher.due(104.9, idle=False) == []
    assert watcher.due(105.0, idle=False) == rows[:TOGETHER]
    for row in rows[:TOGETHER]:
        watcher.judged(row, answer((1, 0)))
    assert watcher.due(105.0, idle=True) == rows[TOGETHER:] and watcher.dropped == 0


def test_rows_that_could_not_be_judged_count_as_dropped():
    watcher = all_of()
    served(watcher)
    watcher.due(1.0, idle=True)
    watcher.due(2.0, idle=True)
    assert watcher.dropped == 1 and watcher.agreement is None


# ---- the judgement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "rung", "mine", "full", "same"),
    [
        ("softmax", "1%", (2.0, 1.0), (0.3, 0.1), True),
        ("softmax", "1%", (2.0, 1.0), (0.1, 0.3), False),
        ("softmax", "1%", (np.nan, np.nan), (0.1, 0.3), False),
        ("sigmoid", "1%", (2.0, -1.0), (0.3, -0.1), True),
        ("sigmoid", "1%", (2.0, -1.0), (0.3, 0.1), False),
        ("none", "5%", (2.0,), (2.4,), True),
        ("none", "5%", (2.0,), (2.6,), False),
    ],
)
def test_an_answer_is_judged_as_its_certificate_counts(activation, rung, mine, full, same):
    watcher = all_of(activation=activation)
    row = served(watcher, rung, mine)
    assert watcher.due(0.0, idle=True) == [row]
    watcher.judged(row, answer(full))
    assert watcher.agreement == float(same)
    number = ["1%", "5%"].index(rung)
    assert watcher.alarm.rows[number] == 1 and watcher.alarm.missed[number] == (not same)


def test_answers_that_differ_more_often_than_certified_ring():
    watcher = all_of()
    for number in range(1_000):
        row = served(watcher, "1%", (1.0, 0.0))
        watcher.due(0.0, idle=True)
        watcher.judged(row, answer((0.0, 1.0) if number % 20 == 0 else (1.0, 0.0)))
    assert watcher.alarm.ringing and watcher.agreement == 0.95


@pytest.mark.parametrize(
    ("options", "said"),
    [({"share": 1.1}, "share=1.1"), ({"room": 0}, "room=0"), ({"activation": "relu"}, "activation='relu'")],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        CertificateWatcher(LADDER, **options)


# ---- what Prometheus reads -------------------------------------------------------------------------------------------


class Queue:
    """An engine, as gauges see it."""

    waiting = 7

    def oldest_wait(self, now: float) -> float:
        return now - 98.0


def sample_of(text: str) -> dict[str, float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        " ".join([sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_tell_what_happened():
    pytest.importorskip("prometheus_client")

    from modeling_pfberxit.serving.meter import PrometheusMeter

    watcher, controller = all_of(), Controller(LADDER, floor=0.02)
    model = Served("m", None, Point("default", None), controller, watcher)
    meter = PrometheusMeter(clock=lambda: 100.0)
    meter.follow(Queue(), {"m": model})
    request = Request(model, [{"input_ids": [1] * length} for length in (3, 5)])
    answers = [Answer(np.zeros(2), layer, "1%", waited=0.03, ran=0.01) for layer in (2, 6)]
    meter.batch("m", request.rows(), answers, 10, 0.01)
    meter.request("/predict", 200, 0.04)
    meter.request("/predict", 429, 0.001)
    meter.left("m", 2, "late")
    row = served(watcher)
    watcher.due(0.0, idle=True)
    watcher.judged(row, answer((0.0, 1.0)))
    body, kind = meter.text()
    found = sample_of(body.decode())
    assert kind.startswith("text/plain")
    expected = {
        "pfberxit_requests_total route=/predict status=200": 1,
        "pfberxit_requests_total route=/predict status=429": 1,
        "pfberxit_request_seconds_bucket le=0.05 route=/predict": 2,
        "pfberxit_request_seconds_bucket le=0.005 route=/predict": 1,
        "pfberxit_queue_rows": 7,
        "pfberxit_queue_age_seconds": 2,
        "pfberxit_batch_rows_sum model=m": 2,
        "pfberxit_batch_tokens_sum model=m": 10,
        "pfberxit_exit_layer_total layer=2 model=m": 1,
        "pfberxit_exit_layer_total layer=6 model=m": 1,
        "pfberxit_rung_rows_total model=m rung=1%": 2,
        "pfberxit_left_rows_total model=m why=late": 2,
        "pfberxit_rung model=m": 1,
        "pfberxit_judged_rows_total model=m rung=1% same=no": 1,
        "pfberxit_judged_rows_total model=m rung=1% same=yes": 0,
        "pfberxit_agreement model=m": 0,
        "pfberxit_agreement_alarm model=m": 0,
        "pfberxit_shadow_rows model=m": 0,
        "pfberxit_shadow_dropped_rows_total model=m": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    meter.follow(Queue(), {})
    assert not any("alarm model=m" in name for name in sample_of(meter.text()[0].decode()))
