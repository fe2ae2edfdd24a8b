"""How long a sweep takes: many settings of every criterion, replayed on a recording of random logits."""

import time
from dataclasses import replace

import torch

from ..evaluation.replay import candidate_thresholds, replay_many
from ..model.criteria import CRITERIA
from ..model.evidence import SINGLE_LABEL, Evidence
from ..model.exit_policy import ExitPolicy


def benchmark_replay(rows: int = 10_000, exits: int = 12, settings: int = 10_000) -> dict[str, float]:
    """Seconds for so many settings of each criterion that judges logits alone, printed as they are measured."""
    torch.manual_seed(0)
    evidence, depths, seconds = Evidence(torch.randn(rows, exits, 2)), list(range(1, exits + 1)), {}
    print(f"{settings:,} settings over {rows:,} rows x {exits} exits, {torch.get_num_threads()} threads\n")
    print("| criterion | seconds | ms per setting |\n|---|---:|---:|")
    for name, rule in CRITERIA.items():
        if rule.needs_evidence:
            continue
        base = ExitPolicy(name, threshold=0.0, patience=1, window=3, appointed_layer=1)
        taus = candidate_thresholds(evidence, base, SINGLE_LABEL, steps=settings // 3 + 1)
        policies = [
            replace(
                base, threshold=taus[number % len(taus)], patience=1 + number % 3, appointed_layer=1 + number % exits
            )
            for number in range(settings)
        ]
        started = time.perf_counter()
        for _ in replay_many(evidence, policies, depths, SINGLE_LABEL):
            pass
        seconds[name] = time.perf_counter() - started
        print(f"| {name} | {seconds[name]:.1f} | {1000 * seconds[name] / settings:.2f} |", flush=True)
    return seconds
