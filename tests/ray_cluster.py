"""A Ray cluster of this process, small and silent, and its workers as processes of the system."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5"}
STORE = 200 << 20  # bytes of the object store


@contextmanager
def cluster(cores: int = 2) -> Iterator[None]:
    """Ray with so many cores, and nothing left of it behind the block."""
    import ray

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    start(cores)
    try:
        yield
    finally:
        started = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
        ray.shutdown()
        for process in psutil.wait_procs(started, timeout=10)[1]:
            process.kill()


def start(cores: int, tries: int = 3) -> None:
    """Start Ray, again where a busy machine's helpers were later than the 15 s that Ray waits for them."""
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init(
                "local", num_cpus=cores, object_store_memory=STORE, include_dashboard=False, log_to_driver=False
            )  # "local": never somebody else's cluster
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise


def workers(title: str) -> list[psutil.Process]:
    """The processes below this one whose title, which Ray gives them, has a word."""
    return [each for each in psutil.Process().children(recursive=True) if title in title_of(each)]


def title_of(process: psutil.Process) -> str:
    """What a process is called; of one that has ended nothing."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


@contextmanager
def killing(title: str, when: Callable[[], bool]) -> Iterator[list[int]]:
    """While the block runs, kill one worker as soon as something is so; the list gets its number."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not killed:
            if when() and (found := workers(title)):
                os.kill(found[0].pid, signal.SIGKILL)
                killed.append(found[0].pid)
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
