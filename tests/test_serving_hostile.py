"""A server under those who wish it ill, under signals, and against its own OpenAPI document; minutes long."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from hostile import attack  # noqa: E402
from scripted import wait_until  # noqa: E402
from served import free_port, healthy, saved  # noqa: E402

pytestmark = pytest.mark.slow
ASKED = {"inputs": [["w1 w2"], ["w3 w4 w5"], ["w6"]], "details": True}
REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", 10_000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("served") / "model")


def command(folder: str, port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "pfberxit", "serve", folder, "--port", str(port), "--threads", "1", *options]


@pytest.fixture
def started(folder):
    """A server in a process of its own: process, address, what it has printed."""
    processes = []

    def start(*options: str):
        port = free_port()
        log = Path(folder).with_name(f"log-{port}")
        with open(log, "w", encoding="utf-8") as file:
            processes.append(subprocess.Popen(command(folder, port, *options), stdout=file, stderr=file))
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: healthy(address), 300)
        return processes[-1], address, log

    yield start
    for process in processes:
        process.kill()


def memory_of(process: subprocess.Popen) -> float:
    """Megabytes in use."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_no_wrong_answer_no_leak_and_no_500_whatever_is_sent(started):
    process, address, log = started("--upload", "2")
    before = attack(address, REQUESTS // 5, seed=1)
    settled = memory_of(process)
    found = before + attack(address, REQUESTS - REQUESTS // 5, seed=2)
    assert sum(found.values()) == REQUESTS and not any(status >= 500 for _, status in found)
    assert {name for name, _ in found} >= {"good", "deep", "wrong_types", "broken_chunks", "slow"}
    assert memory_of(process) < 1.05 * settled + 5, (settled, memory_of(process))
    printed = log.read_text()
    assert "Traceback" not in printed and "ERROR" not in printed and "w1" not in printed


class Clients:
    """Clients that ask without end; what they were answered, by status, 0 where the connection failed."""

    def __init__(self, address: str, number: int = 8) -> None:
        self.address, self.found, self.wrong, self.stopped = address, Counter(), [], False
        self.expected = httpx.post(f"{address}/predict", json=ASKED, timeout=30).json()
        self.threads = [threading.Thread(target=self.ask) for _ in range(number)]
        for thread in self.threads:
            thread.start()

    def ask(self) -> None:
        with httpx.Client(timeout=20) as client:
            while not self.stopped:
                try:
                    response = client.post(f"{self.address}/predict", json=ASKED)
                except httpx.TransportError:
                    self.found[0] += 1
                    time.sleep(0.05)
                    continue
                self.found[response.status_code] += 1
                if response.status_code == 200 and not same(response.json(), self.expected):
                    self.wrong.append(response.json())

    def stop(self) -> None:
        self.stopped = True
        for thread in self.threads:
            thread.join()


def same(found: list, expected: list) -> bool:
    """The same labels, layers and, to rounding, scores."""
    pairs = [pair for rows in zip(found, expected) for pair in zip(*rows)]
    return len(found) == len(expected) and all(
        one["label"] == other["label"] and one["exit_layer"] == other["exit_layer"]
        and abs(one["score"] - other["score"]) < 1e-5 for one, other in pairs
    )  # fmt: skip


def test_sigterm_under_load_drains_within_its_limit_and_answers_what_was_taken(started):
    process, address, log = started("--drain", "10")
    clients = Clients(address)
    wait_until(lambda: clients.found[200] > 50, 60)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=15)
    took = time.monotonic() - began
    clients.stop()
    assert took < 12 and not clients.wrong
    assert set(clients.found) <= {0, 200, 503} and clients.found[0] > 0
    assert "Traceback" not in log.read_text()


def test_killed_under_a_supervisor_it_comes_back_and_open_requests_fail_visibly(folder, tmp_path):
    port, pids = free_port(), tmp_path / "pids"
    loop = 'while :; do "$@" & echo $! >> "$PIDS"; wait $!; done'
    environment = {**os.environ, "PIDS": str(pids)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = ["bash", "-c", loop, "bash", *command(folder, port)]
    supervisor = subprocess.Popen(run, env=environment, start_new_session=True, **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: healthy(address), 300)
        clients = Clients(address)
        wait_until(lambda: clients.found[200] > 50, 60)
        os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)
        wait_until(lambda: clients.found[0] > 0, 60)
        answered = clients.found[200]
        wait_until(lambda: clients.found[200] > answered + 50, 180)
        clients.stop()
        assert not clients.wrong and set(clients.found) == {0, 200}
        assert len(pids.read_text().split()) == 2
    finally:
        os.killpg(supervisor.pid, signal.SIGKILL)


def test_schemathesis_finds_nothing_against_the_openapi_document(started):
    pytest.importorskip("schemathesis")
    _, address, _ = started()
    settings = str(Path(__file__).with_name("schemathesis.toml"))
    run = [sys.executable, "-m", "schemathesis.cli", "--config-file", settings, "run", f"{address}/openapi.json"]
    done = subprocess.run([*run, "--max-examples", "20", "--seed", "1"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-4000:]
