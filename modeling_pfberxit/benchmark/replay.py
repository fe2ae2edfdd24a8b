"""How long a sweep takes: many settings of every criterion, replayed on a recording of random logits."""

import time
from collections.abc import Callable
from itertools import cycle, islice

import torch

from ..evaluation.frontier import grid, judging
from ..evaluation.recording import Recording
from ..evaluation.tables import header, line
from ..model.evidence import SINGLE_LABEL, Evidence


def benchmark_replay(rows: int, exits: int, say: Callable[[str], None], settings: int = 10_000) -> dict[str, float]:
    """Seconds for so many settings of each criterion that reads logits alone; `say` is called with each line."""
    torch.manual_seed(0)
    lengths, depths = torch.full((rows,), 32), list(range(1, exits + 1))
    recording, seconds = Recording(Evidence(torch.randn(rows, exits, 2)), lengths, None, depths, SINGLE_LABEL), {}
    say(f"{settings:,} settings over {rows:,} rows x {exits} exits, {torch.get_num_threads()} threads\n")
    say(header(["criterion", "seconds", "ms per setting"]))
    for name in judging(recording):
        policies = list(islice(cycle(grid(recording, name, steps=settings // 3 + 1)), settings))
        started = time.perf_counter()
        for policy in policies:
            recording.replay(policy)
        seconds[name] = time.perf_counter() - started
        say(line([name, f"{seconds[name]:.1f}", f"{1000 * seconds[name] / settings:.2f}"]))
    return seconds
