"""What a server refuses, and how: a status, a field, a header, and never a word of a text in a log."""

import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from scripted import SECRET, Scripted, wait_until

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from served import service_of, serving  # noqa: E402

from modeling_pfberxit.serving.batching import Limits  # noqa: E402
from modeling_pfberxit.serving.limits import HttpLimits  # noqa: E402


@pytest.fixture(scope="module")
def address():
    http = HttpLimits(body=2000, texts=4, characters=100, upload=0.5)
    with serving(service_of(Scripted(), http=http)) as found:
        yield found


def refused(address: str, body, path: str = "/predict") -> tuple[int, str | None]:
    """The status and the field of a body that is not answered; JSON of it, if it is no string."""
    content = body if isinstance(body, (str, bytes)) else json.dumps(body)
    response = httpx.post(address + path, content=content)
    assert response.status_code != 200 and set(response.json()) <= {"error", "error_type", "field"}
    return response.status_code, response.json().get("field")


WRONG = {
    "no field": ({}, "inputs"),
    "no object": ([], None),
    "a number": ({"inputs": 3}, "inputs"),
    "nothing": ({"inputs": None}, "inputs"),
    "an empty text": ({"inputs": ""}, "inputs"),
    "an empty list": ({"inputs": []}, "inputs"),
    "three texts": ({"inputs": ["a", "b", "c"]}, "inputs"),
    "a text in a batch": ({"inputs": [["1"], "2"]}, "inputs[1]"),
    "three in a batch": ({"inputs": [["1"], ["1", "2", "3"]]}, "inputs[1]"),
    "a number in a batch": ({"inputs": [["1"], ["1", 2]]}, "inputs[1][1]"),
    "an unknown field": ({"inputs": "1", "temperature": 1}, "temperature"),
    "a string for a flag": ({"inputs": "1", "raw_scores": "yes"}, "raw_scores"),
    "another direction": ({"inputs": "1", "truncation_direction": "left"}, "truncation_direction"),
    "a share above one": ({"inputs": "1", "differ": 2}, "differ"),
    "a budget of nothing": ({"inputs": "1", "latency_budget_ms": 0}, "latency_budget_ms"),
    "a budget without a ladder": ({"inputs": "1", "latency_budget_ms": 5}, "latency_budget_ms"),
    "two ways at once": ({"inputs": "1", "exit_policy": "a", "differ": 0.1}, "exit_policy"),
}


@pytest.mark.parametrize("body, field", WRONG.values(), ids=WRONG)
def test_a_field_that_is_wrong_is_named(address, body, field):
    assert refused(address, body) == (422, field)


def test_fields_of_the_hubs_format_are_named_too(address):
    for body, field in (
        ({"inputs": "1", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"inputs": "1", "parameters": {"candidate_labels": []}}, "parameters.candidate_labels"),
        ({"inputs": [{"text": "1"}, {"txt": "2"}]}, "inputs[1]"),
        ({"inputs": [{"text": "1", "text_pair": 2}]}, "inputs[0].text_pair"),
        ({"inputs": ["1", ["2"]]}, "inputs[1]"),
    ):
        assert refused(address, body, "/") == (422, field)


def test_what_is_no_json_is_said_to_be_none(address):
    for body in ("", "x", b"\xff", '{"inputs": "\\ud800"}', '{"inputs": NaN', "[" * 1500):
        assert refused(address, body) == (400, None)


def test_too_much_is_refused_by_name(address):
    assert refused(address, {"inputs": [["1"]] * 5}) == (413, "inputs")
    assert refused(address, {"inputs": [["1"], ["1" * 60, "1" * 41]]}) == (413, "inputs[1]")
    assert refused(address, {"inputs": "1" * 2000}) == (413, None)
    chunks = (b"1" * 500 for _ in range(9))
    assert httpx.post(f"{address}/predict", content=chunks).status_code == 413


def test_unknown_places_are_answered_in_the_same_form(address):
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/predict", 405), ("POST", "/models/x", 404)):
        response = httpx.request(method, address + path, content=b'{"inputs": "1"}' if method == "POST" else None)
        assert response.status_code == status and "error" in response.json()


def test_what_may_be_asked_of_a_path_is_said_over_all_its_routes(address):
    assert httpx.options(f"{address}/models/x").headers["allow"] == "DELETE, POST, PUT"
    assert httpx.get(f"{address}/predict").headers["allow"] == "POST"


def test_one_connection_serves_many_requests(address):
    with httpx.Client() as client:
        client.post(f"{address}/predict", json={"inputs": "7"})
        (pool,) = client._transport._pool.connections
        for _ in range(5):
            assert client.post(f"{address}/predict", json={"inputs": "7"}).status_code == 200
        assert client._transport._pool.connections == [pool]


def test_null_stands_for_what_is_usual(address):
    nothing = {"raw_scores": None, "truncate": None, "truncation_direction": None, "details": None, "exit_policy": None}
    usual = httpx.post(f"{address}/predict", json={"inputs": "7"}).json()
    assert httpx.post(f"{address}/predict", json={"inputs": "7", **nothing}).json() == usual
    parameters = {"truncation": None, "top_k": None, "function_to_apply": None}
    response = httpx.post(address, json={"inputs": "7", "parameters": parameters, "options": {"use_cache": None}})
    assert response.json() == [usual]


def test_the_field_is_where_it_stands_in_the_body(address):
    wrong, long = {"criterion": "x"}, "1" * 101
    assert refused(address, {"inputs": "1", "exit_policy": wrong}) == (422, "exit_policy")
    assert refused(address, {"inputs": "1", "parameters": {"exit_policy": wrong}}, "/") == (
        422,
        "parameters.exit_policy",
    )
    assert refused(address, {"inputs": "1", "parameters": {"differ": 0.1}}, "/") == (422, "parameters.differ")
    assert refused(address, {"inputs": long}, "/") == (413, "inputs")
    assert refused(address, {"inputs": [long]}, "/") == (413, "inputs[0]")
    assert refused(address, {"inputs": long}) == (413, "inputs")


# ---- clients that take their time, or leave --------------------------------------------------------------------------


def dial(address: str, *parts: bytes) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    for part in parts:
        connection.sendall(part)
    return connection


def test_a_body_that_does_not_come_is_given_up(address):
    with dial(address, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n", b'{"inputs"') as client:
        assert b" 408 " in client.recv(1000)


def test_a_head_that_does_not_end_is_given_up(address):
    with dial(address, b"POST /predict HTTP/1.1\r\nHost:") as client:
        assert client.recv(1000) == b""
    with dial(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        assert b" 200 " in client.recv(1000)
        client.sendall(b"GET /health")
        assert client.recv(1000) == b""


def test_broken_chunks_are_refused_and_hurt_nobody(address):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with dial(address, head, b"zz\r\n{}\r\n") as client:
        answer = client.recv(1000)
        assert b" 400 " in answer and b"application/json" in answer
    assert httpx.post(f"{address}/predict", json={"inputs": "7"}).status_code == 200


def test_who_asks_for_another_protocol_is_answered_in_this_one(address):
    body = b'{"inputs": "7"}'
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (wish, len(body))
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    expected = httpx.post(f"{address}/predict", content=body).content
    for parts in ([head + body + head + body + last], [head, body, head[:90], head[90:] + body[:3], body[3:] + last]):
        with dial(address) as client:
            for part in parts:
                client.sendall(part)
                time.sleep(0.05)
            answers = b"".join(iter(lambda: client.recv(10_000), b""))
        assert answers.count(b" 200 OK") == answers.count(expected) == 2 and answers.count(b"HTTP/1.1") == 3


def test_a_body_may_come_in_many_small_chunks_but_a_head_may_not_be_endless(address):
    chunks = b"".join(b"1;%s\r\n%c\r\n" % (b"x" * 60, byte) for byte in b'{"inputs": "7"}' + b" " * 1500)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
    with dial(address, head + b"Transfer-Encoding: chunked\r\n\r\n", chunks, b"0\r\n\r\n") as client:
        assert b" 200 " in client.recv(1000)
    with dial(address, head, b"X: " + b"x" * 65_536) as client:
        assert b" 400 " in client.recv(1000)


# ---- a full queue, a deadline, the token -----------------------------------------------------------------------------


def ask(address: str, number: int, **more):
    return httpx.post(f"{address}/predict", json={"inputs": str(number)}, timeout=20, **more)


def test_a_full_queue_says_when_to_come_again_and_a_late_answer_that_it_is_late():
    first = Scripted()
    service = service_of(first, Limits(queue=2), HttpLimits(texts=2, deadline=4.0))
    with serving(service) as address, ThreadPoolExecutor(8) as pool:
        first.free.clear()
        running = pool.submit(ask, address, 10)
        wait_until(lambda: first.busy)
        waiting = [pool.submit(ask, address, number) for number in (11, 12)]
        wait_until(lambda: service.engine.waiting == 2)
        response = ask(address, 13)
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert [future.result().status_code for future in (running, *waiting)] == [504] * 3
        first.free.set()
        assert ask(address, 14).status_code == 200
    assert {row[0] for ids, _ in first.batches for row in ids}.isdisjoint({11, 12, 13})


def test_texts_that_wait_to_be_read_have_the_same_deadline_and_count_as_waiting():
    first = Scripted()
    service = service_of(first, Limits(queue=2), HttpLimits(texts=2, deadline=4.0))
    with serving(service) as address, ThreadPoolExecutor(8) as pool:
        first.readable.clear()
        waiting = [pool.submit(ask, address, f"{number} " * 1000) for number in (11, 12)]  # shorter ones do not wait
        wait_until(lambda: service.reading == 2)
        assert ask(address, 13).status_code == 429
        assert [future.result().status_code for future in waiting] == [504] * 2
        wait_until(lambda: service.reading == 1)  # which nobody waits for, but which keeps the tokenizer
        short = pool.submit(ask, address, 14)
        assert httpx.get(f"{address}/health", timeout=3).status_code == 200
        first.readable.set()
        assert short.result().status_code == 200
        wait_until(lambda: service.reading == 0)


def test_what_is_open_when_the_time_to_drain_is_over_fails_visibly_as_json():
    first = Scripted()
    with ThreadPoolExecutor(2) as pool:
        with serving(service_of(first), drain=1) as address:
            first.free.clear()
            open_request = pool.submit(ask, address, 10)
            wait_until(lambda: first.busy)
        response = open_request.result(10)
        first.free.set()
    assert response.status_code == 503 and response.json()["error_type"] == "Unhealthy"
    assert "retry-after" in response.headers


def test_more_connections_than_allowed_are_told_so():
    with serving(service_of(Scripted(), http=HttpLimits(connections=1))) as address, httpx.Client() as client:
        wait_until(lambda: client.get(f"{address}/health").status_code == 200)
        response = ask(address, 7)
        assert response.status_code == 503 and response.json()["error_type"] == "Overloaded"
        assert "retry-after" in response.headers
        assert client.post(f"{address}/predict", json={"inputs": "7"}).status_code == 200


def test_an_error_nobody_expects_is_json_without_its_words(caplog):
    service = service_of(Scripted())

    async def answers(*_):
        raise LookupError(SECRET)

    service.answers = answers
    with serving(service) as address:
        response = ask(address, 7)
    assert response.status_code == 500 and response.json()["error_type"] == "Backend"
    assert SECRET not in response.text and SECRET not in caplog.text and "LookupError" in caplog.text


def test_who_hangs_up_is_forgotten():
    first = Scripted()
    service = service_of(first)
    with serving(service) as address:
        first.free.clear()
        blocking = threading.Thread(target=ask, args=(address, 10))
        blocking.start()
        wait_until(lambda: first.busy)
        body = b'{"inputs": "77"}'
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        client = dial(address, head, body)
        wait_until(lambda: service.engine.waiting >= 1)
        client.close()
        wait_until(lambda: all(row.request.done.done() for row in service.engine.queue))
        first.free.set()
        blocking.join()
        assert ask(address, 11).status_code == 200
    assert 77 not in {row[0] for ids, _ in first.batches for row in ids}


def test_without_the_token_only_health_is_told():
    with serving(service_of(Scripted(), http=HttpLimits(token="open-sesame"))) as address:
        assert ask(address, 7, headers={"Authorization": "Bearer open-sesame"}).status_code == 200
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "open-sesame"}):
            response = ask(address, 7, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200


def test_no_word_of_a_text_is_logged(caplog):
    with caplog.at_level(logging.DEBUG), serving(service_of(Scripted())) as address:
        assert ask(address, 7).status_code == 200
        assert httpx.post(f"{address}/predict?inputs=secretive", json={"inputs": "666 secretive"}).status_code == 500
        assert httpx.post(f"{address}/predict", content=b'{"inputs": "secretive').status_code == 400
        assert httpx.post(f"{address}/predict", json={"inputs": {"secretive": 1}}).status_code == 422
    own = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert own and not any("secretive" in record.getMessage() for record in own)
