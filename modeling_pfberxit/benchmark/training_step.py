"""What a training step costs beside full fine-tuning of the same encoder: time, and memory by its purpose."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from ..evaluation.tables import table
from ..evaluation.timing import interleaved, kept_for_backward, median_ratio
from .baselines import stock_and_ours

MEGABYTE = 1e6


@dataclass(frozen=True)
class TrainingLine:
    """One way to train; memory in megabytes."""

    name: str
    milliseconds: float
    ratio: float  # of its step's time to that of full fine-tuning, pair by pair
    kept: float  # by the forward pass for its backward pass, weights apart
    states: float  # gradients and the two moments of Adam


def benchmark_training(
    preset: str, repeats: int, sublearner: str, device: str, say: Callable[[str], None], layers: int | None = None,
    batch: int = 32, length: int = 64,
) -> list[TrainingLine]:  # fmt: skip
    """Time steps with AdamW on random tokens, in turn, and say the table. Stock ALBERT has no checkpointing."""
    knobs = {"adapter_sublearner": sublearner, "num_labels": 2}
    stock, ours = stock_and_ours(preset, device, torch.float32, layers, **knobs)
    _, trained = stock_and_ours(preset, device, torch.float32, layers, train_backbone=True, **knobs)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, stock.config.vocab_size, (batch, length), generator=generator).to(device)
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    ours_again = "frozen encoder, adapters, exits"
    ways = [("full fine-tuning", stock, False), ("all weights, adapters, exits", trained, False),
            (ours_again, ours, False), (f"{ours_again}, checkpointing", ours, True)]  # fmt: skip
    calls, sizes = [], []
    for _, model, checkpointing in ways:
        calls.append(step_of(model.train(), rows, checkpointing))
        switch(model, checkpointing)
        kept = kept_for_backward(partial(loss_of, model, rows), model)
        moved = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        sizes.append((kept / MEGABYTE, 3 * moved / MEGABYTE))
    times = interleaved(calls, repeats, warmups=1)
    found = [
        TrainingLine(name, 1000 * median(own), median_ratio(own, times[0]), *size)
        for (name, *_), own, size in zip(ways, times, sizes, strict=True)
    ]
    say(as_markdown(found, f"{preset}, {sublearner} adapters, batch {batch} x {length} tokens"))
    return found


def step_of(model: nn.Module, rows: dict[str, Tensor], checkpointing: bool) -> Callable[[], None]:
    """A function that takes one training step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        """Take it; `interleaved` runs its calls in inference mode, which has to be left for that."""
        switch(model, checkpointing)
        with torch.inference_mode(False), torch.enable_grad():
            loss_of(model, rows).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def switch(model: nn.Module, checkpointing: bool) -> None:
    """Activation checkpointing on, or off where it can be on at all."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # older `transformers`
    if checkpointing:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    elif model.supports_gradient_checkpointing:
        getattr(model, f"{name}_checkpointing_disable")()


def loss_of(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """The loss of these rows, a scalar."""
    return model(**rows).loss


def as_markdown(lines: list[TrainingLine], title: str) -> str:
    """One row per way to train."""
    titles = ["", "step (ms)", "over full fine-tuning", "kept for backward (MB)", "gradients and Adam (MB)"]
    rows = (
        [each.name, f"{each.milliseconds:.0f}", f"{each.ratio:.2f}", f"{each.kept:.0f}", f"{each.states:.0f}"]
        for each in lines
    )
    return f"{title}\n\n{table(titles, rows)}"
