"""How many replicas a deployment of Ray Serve should have, by how long the oldest row of their queues has waited.

A config file names it `policy_function: modeling_pfberxit.serving.cluster.queue_age:QueueAge`. Ray copies this file's
code into its controller, which may lack the package: it imports the standard library alone.
"""

from __future__ import annotations

import math
from typing import Any

OLDEST_WAIT, BUSY = "oldest_wait", "busy"  # what a replica records: seconds, and the share of the time it computes


class QueueAge:
    """More replicas while rows wait longer than they should, fewer while fewer could carry the load.

    Bounds, delays and factors of the deployment's `autoscaling_config` apply to what it says.

    Args:
        target: seconds; above it, there should be more replicas by as much as the wait is too long, at most twice.
        busy: the share of the time that a replica should compute; fewer replicas only if they stay below it.
    """

    def __init__(self, target: float = 0.05, busy: float = 0.6) -> None:
        if not (target > 0 and 0 < busy <= 1):
            raise ValueError(f"target={target!r}, busy={busy!r}: must be seconds above 0 and a share above 0 up to 1.")
        self.target, self.busy = target, busy

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """The number of replicas that there should be, of an `AutoscalingContext` of Ray Serve."""
        found = context.aggregated_metrics or {}
        waits, shares = found.get(OLDEST_WAIT, {}).values(), found.get(BUSY, {}).values()
        return self.wanted(context.current_num_replicas, max(waits, default=0.0), sum(shares)), {}

    def wanted(self, replicas: int, oldest_wait: float, busy: float) -> int:
        """The same, from the longest wait of any replica and the sum of their shares.

        Example:
            target=0.05, busy=0.6: of 4 replicas, with a wait of 0.07 s 6; with 0.01 s and shares of 0.2 each 2.
        """
        if oldest_wait > self.target:
            return math.ceil(replicas * min(2.0, oldest_wait / self.target))
        return min(replicas, max(1, math.ceil(busy / self.busy)))
