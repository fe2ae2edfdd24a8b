"""Wall-clock time, measured so that it can be compared: medians of interleaved repeats within one run."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch


def synchronize() -> None:
    """Wait for the GPU, where there is one: its kernels run asynchronously, so a clock would stop too early."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], timer: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes, by a clock that may count this process's own time alone (`time.process_time`)."""
    synchronize()
    start = timer()
    call()
    synchronize()
    return timer() - start


@torch.inference_mode()
def interleaved(
    calls: Sequence[Callable[[], object]], repeats: int = 9, warmups: int = 2,
    timer: Callable[[], float] = time.perf_counter, settled: bool = False,
) -> list[list[float]]:  # fmt: skip
    """Seconds of every call, `repeats` times in turn (a b c a b c ...), so that all of them see the same machine.

    Args:
        settled: each call is made once untimed right before it is timed (a a b b c c ...), so that what it reads is
            where it is for one who makes no other calls, in the processor's caches.

    Returns:
        One list per call, repeats in order: ratios are to be taken pair by pair.
    """
    for _ in range(warmups):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for number, call in enumerate(calls):
            if settled:
                call()
            times[number].append(seconds(call, timer))
    return times


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the pairwise ratios of two interleaved series."""
    return median(a / b for a, b in zip(over, under, strict=True))


def kept_for_backward(forward: Callable[[], object], model: torch.nn.Module) -> int:
    """Bytes a forward pass keeps for its backward pass, each tensor once, the model's own weights apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        """Note the storage once, unless it is a weight's."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())
