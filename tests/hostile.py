"""Requests that wish a server ill, one after the other or from many threads, and what each may be answered.

Usage: python tests/hostile.py http://127.0.0.1:8080 [requests] [seed]
"""

import json
import random
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

REFUSED = {400, 404, 405, 408, 413, 415, 422, 429, 431}
TEXT = "w1 w2 w3"
NONE = 0  # the connection was closed without an answer


def request(body: bytes, path: str = "/predict", method: str = "POST", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def any_value(drawn: random.Random, depth: int = 0):
    """Any JSON, strange strings and numbers among it."""
    strange = ["", "\0", "\ud800", "a" * 5000, "\u202e", "{{7*7}}", "\n\r\n", "💥" * 50, "𝕳", "../../etc/passwd"]
    plain = [None, True, -1, 0.5, 10**400, -(10**18), 1e308, *strange]
    if depth > 3 or drawn.random() < 0.5:
        return drawn.choice(plain)
    if drawn.random() < 0.5:
        return [any_value(drawn, depth + 1) for _ in range(drawn.randrange(5))]
    return {str(any_value(drawn, 9)): any_value(drawn, depth + 1) for _ in range(drawn.randrange(4))}


def wrong_types(drawn: random.Random) -> tuple[bytes, set[int]]:
    names = ("inputs", "raw_scores", "truncate", "exit_policy", "latency_budget_ms", "differ", "details", "parameters")
    body = {name: any_value(drawn) for name in drawn.sample(names, drawn.randint(1, 4))}
    if drawn.random() < 0.3:
        body["inputs"] = TEXT
    return request(json.dumps(body).encode(), drawn.choice(("/predict", "/"))), {200} | REFUSED


def ten_megabytes(drawn: random.Random) -> tuple[bytes, set[int]]:
    return request(b'{"inputs": "' + b"w1 " * 3_400_000 + b'"}'), {413, NONE}


def deep(drawn: random.Random) -> tuple[bytes, set[int]]:
    mark = drawn.choice((b"[", b'{"inputs":'))
    return request(b'{"inputs": ' + mark * drawn.choice((200, 100_000))), {400, 422}


def nul_and_surrogates(drawn: random.Random) -> tuple[bytes, set[int]]:
    text = drawn.choice(
        (b"\\u0000", b"\\ud800", b"\\udfff\\ud800", b"\x00", b"\xff\xfe", b"w1\\u0000w2", b"\xed\xa0\x80")
    )
    return request(b'{"inputs": "' + text + b'"}'), {200, 400, 422}


def broken_chunks(drawn: random.Random) -> tuple[bytes, set[int]]:
    chunk = drawn.choice(
        (b"zz\r\n{}\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"-1\r\n\r\n", b"fffffffffffffffff\r\n{", b"3\r\n{}")
    )
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head + chunk, {400, 408, 422, NONE}


def no_http(drawn: random.Random) -> tuple[bytes, set[int]]:
    lines = (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /predict HTTP/9.9\r\n\r\n", b"\0" * 100, b"A" * 70_000)
    return drawn.choice(lines) + b"\r\n\r\n", {400, 408, NONE}


def many_headers(drawn: random.Random) -> tuple[bytes, set[int]]:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", {400, 408, 422, 431, NONE}


def lies_about_length(drawn: random.Random) -> tuple[bytes, set[int]]:
    body = json.dumps({"inputs": TEXT}).encode()
    return request(body, length=drawn.choice((3, 10**12, len(body) - 1))), {400, 413, NONE}


def elsewhere(drawn: random.Random) -> tuple[bytes, set[int]]:
    path = drawn.choice(
        ("/%00", "/predict/../info", "/models/%2e%2e", "/models/" + "a" * 3000, "//", "/predict?inputs=x")
    )
    return request(b'{"inputs": 1}', path, drawn.choice(("POST", "PUT", "DELETE", "PATCH", "BREW"))), REFUSED


KINDS = (wrong_types, deep, nul_and_surrogates, broken_chunks, no_http, lies_about_length, elsewhere, many_headers)


def send(address: str, data: bytes, hurry: bool = False) -> tuple[int, bytes]:
    """The status of an answer, and its body. In a hurry the connection is dropped before it comes."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        try:
            connection.sendall(data)
            if hurry:
                return NONE, b""
            answer = b""
            while part := connection.recv(65536):
                answer += part
        except (ConnectionError, TimeoutError):
            return NONE, b""
    return (int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else NONE), answer.partition(b"\r\n\r\n")[2]


def slow(address: str) -> None:
    """A client that sends a byte at a time, and leaves in the middle."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, suppress(ConnectionError):
        for byte in request(b'{"inputs": "w1"}')[:40]:
            connection.sendall(bytes([byte]))
            time.sleep(0.002)


def same(found: tuple[int, bytes], expected: tuple[int, bytes]) -> bool:
    """Whether two answers are alike: status, labels and, to the rounding of other batches, scores."""
    if found[0] != expected[0] or found[0] != 200:
        return found == expected
    pairs = list(zip(json.loads(found[1]), json.loads(expected[1]), strict=True))
    return all(one["label"] == other["label"] and abs(one["score"] - other["score"]) < 1e-5 for one, other in pairs)


def attack(address: str, requests: int, seed: int = 0, workers: int = 32) -> Counter:
    """Send so many requests, good ones among them; the statuses by kind. Raises where one is answered wrongly."""
    good = request(json.dumps({"inputs": TEXT}).encode())
    expected = send(address, good)
    assert expected[0] == 200, expected

    def one(number: int) -> tuple[str, int]:
        drawn = random.Random(f"{seed}/{number}")
        if number % 10 == 0:
            found = send(address, good)
            assert same(found, expected), (number, found, expected)
            return "good", found[0]
        if number % 500 == 1:
            kind = ten_megabytes
        elif number % 100 == 2:
            slow(address)
            return "slow", NONE
        else:
            kind = drawn.choice(KINDS)
        data, allowed = kind(drawn)
        hurry = drawn.random() < 0.1
        status, body = send(address, data, hurry)
        assert hurry or status in allowed | {408}, (number, kind.__name__, status, body[:300])
        return kind.__name__, status

    with ThreadPoolExecutor(workers) as pool:
        return Counter(pool.map(one, range(requests)))


if __name__ == "__main__":
    for (name, answered), times in sorted(attack(sys.argv[1], *map(int, sys.argv[2:])).items()):
        sys.stdout.write(f"{name:20} {answered or 'none':>4} {times:6,}\n")
