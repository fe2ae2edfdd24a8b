"""Streams: more rows than fit a batch, each through as many layers as it needs, in batches that stay full.

Rows are read and checked window by window and sorted by length. After every layer the remaining rows are queued for the
next one, and rows of different batches run together as soon as they fill a batch. Where depths share a layer (ALBERT),
rows of different depths share a queue as well, and new rows fill the places of those that exited. What a step does with
a batch is not decided here but in `loop`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import logging

from .backbones import check_ids, longest_input, table_sizes
from .exit_policy import ExitPolicy
from .rows import CallRecord, Rows
from .validation import refuse, whole

WINDOW = 64  # batches that are sorted by length together


class RowError(ValueError):
    """A row, by its number from 0, that cannot be read.

    It has the answers (row, C) and executed layers (row,) of all rows before it, on the CPU; None: nothing was run.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row
        self.logits: Tensor | None = None
        self.exit_layer: Tensor | None = None


def read_rows(rows: Iterable[Mapping[str, Any]], backbone: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The tokens of every row; raises a `RowError` at the first that the encoder cannot read."""
    longest, sizes = longest_input(backbone.config), table_sizes(backbone)
    for number, row in enumerate(rows):
        try:
            tokens = as_row(f"rows[{number}]", row)
            check_row(f"rows[{number}]", tokens, longest, sizes)
        except ValueError as error:
            raise RowError(number, str(error)) from None
        yield tokens


def as_row(name: str, row: Mapping[str, Any]) -> dict[str, Tensor]:
    """A row's `input_ids` and, where it has them, `token_type_ids`, (n,) each, without the padding it came with."""
    if not isinstance(row, Mapping) or row.get("input_ids") is None:
        refuse(name, sorted(row) if isinstance(row, Mapping) else type(row).__name__, "a row with input_ids")
    if row.get("position_ids") is not None:
        refuse(
            f"{name}.position_ids", "...", "left out: tokens are numbered by their places; model(**batch) takes others"
        )
    parts = ("input_ids", "token_type_ids", "attention_mask")
    tokens = {part: vector(f"{name}.{part}", row[part]) for part in parts if row.get(part) is not None}
    for part, values in tokens.items():
        if len(values) != len(tokens["input_ids"]):
            refuse(f"{name}.{part}", f"{len(values)} values", f"one for each of {len(tokens['input_ids'])} input_ids")
    mask = tokens.pop("attention_mask", None)
    if mask is not None and not bool(mask.all()):
        kept = unmasked(f"{name}.attention_mask", mask)
        tokens = {part: values[kept] for part, values in tokens.items()}
    return tokens


def check_row(name: str, tokens: dict[str, Tensor], longest: float, sizes: dict[str, int]) -> None:
    """Refuse a row that is empty or longer than the encoder takes, and ids that it has no embedding for."""
    if not 1 <= (length := len(tokens["input_ids"])) <= longest:
        refuse(f"{name}.input_ids", f"{length} tokens", f"1 to {longest} tokens: truncate, truncation=True")
    for part, ids in tokens.items():
        if ids.is_floating_point():
            refuse(f"{name}.{part}", str(ids.dtype), "whole numbers")
        if part in sizes:
            check_ids(f"{name}.{part}", ids, sizes[part])


def vector(name: str, values: Any) -> Tensor:
    """One value for each token, (n,), on the CPU; whole numbers of any size as int64."""
    try:
        numbers = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        refuse(name, type(values).__name__, "a list of numbers")
    if numbers.dim() != 1:
        refuse(name, f"values of shape {tuple(numbers.shape)}", "a list of numbers: a row, not a batch")
    return numbers if numbers.is_floating_point() else numbers.long()


def unmasked(name: str, mask: Tensor) -> slice:
    """The places of the tokens in a mask (n,) whose tokens are one unbroken stretch."""
    places = mask.nonzero().squeeze(1).tolist()
    if not places or places[-1] - places[0] >= len(places):
        refuse(name, mask.tolist(), "1 for a token at least, and 0 for none in between")
    return slice(places[0], places[-1] + 1)


def pad_rows(
    rows: Sequence[dict[str, Tensor]], pad: int, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Rows of `as_row` as one batch, padded on the right: ids, mask and, if any has them, types of tokens, (B, n)."""
    ids = [row["input_ids"] for row in rows]
    columns = {"input_ids": ids, "attention_mask": [torch.ones_like(each) for each in ids]}
    if any("token_type_ids" in row for row in rows):
        columns["token_type_ids"] = [row.get("token_type_ids", torch.zeros_like(row["input_ids"])) for row in rows]
    fill = {"input_ids": pad}
    return {
        name: pad_sequence(values, batch_first=True, padding_value=fill.get(name, 0)).to(device)
        for name, values in columns.items()
    }


def sorted_batches(
    rows: Iterator[dict[str, Tensor]], size: int, room: Callable[[int], int]
) -> Iterator[tuple[list[dict[str, Tensor]], Tensor]]:
    """Batches of rows and their numbers: `size` rows at most, and at most `room(length of the longest)`.

    Sorted within a window from long to short and, since neighbours share batches, back again in the next. A row that
    cannot be read ends the batches: those before it come first, then its `RowError`.
    """
    start, downwards, error = 0, True, None
    while error is None:
        window, error = read_window(rows, size * WINDOW)
        if not window:
            break
        lengths = torch.tensor([len(row["input_ids"]) for row in window])
        order = lengths.argsort(descending=downwards, stable=True).tolist()
        while order:
            ahead = order[:size]
            fit = min(len(ahead), room(int(lengths[ahead].max())))
            numbers, order = order[:fit], order[fit:]
            yield [window[i] for i in numbers], torch.tensor(numbers) + start
        start, downwards = start + len(window), not downwards
    if error is not None:
        raise error


def read_window(rows: Iterator[dict[str, Tensor]], most: int) -> tuple[list[dict[str, Tensor]], RowError | None]:
    """The next rows, `most` at most, and the error of the one behind them if that is why they are fewer."""
    window: list[dict[str, Tensor]] = []
    try:
        for row in islice(rows, most):
            window.append(row)
    except RowError as error:
        return window, error
    return window, None


# ---- queues ----------------------------------------------------------------------------------------------------------


class Stream:
    """The remaining rows, each in the queue of its next layer."""

    def __init__(self, model: PreTrainedModel, policy: ExitPolicy, problem_type: str, size: int) -> None:
        self.model, self.size, self.record = model, size, CallRecord()
        self.loop = model.new_loop(model, self.record, policy, None, problem_type)
        self.queues: dict[Any, list[Rows]] = defaultdict(list)
        self.numbers = count()  # keys of the queues of batches that no other rows may join

    @torch.inference_mode()
    def admit(self, rows: list[dict[str, Tensor]], index: Tensor) -> None:
        """Queue new rows in front of the first layer."""
        padded = pad_rows(rows, self.model.config.pad_token_id or 0, self.model.device)
        batch, _ = self.model.embedded(**padded)
        batch.index = index.to(self.model.device)
        batch.state = self.loop.new_state(batch)
        self.enqueue(batch)

    def finish(self) -> tuple[Tensor, Tensor] | None:
        """Empty all queues: logits (N, C) and executed layers (N,) on the CPU; None without any row."""
        self.drain(last=True)
        if not self.record.answers:
            return None
        logits, layers = self.record.collect()
        return logits.cpu(), layers.cpu()

    def enqueue(self, rows: Rows) -> None:
        """Put rows in the queue of their next layer; depths that shared the last layer need not share the next."""
        if rows.token_depths is not None:  # their positions are sorted row by row, so no other batch can join
            self.queues[next(self.numbers)].append(rows)
            return
        key = self.queue_of(rows.depth)
        same = sum(size for depth, size in rows.groups if self.queue_of(depth) == key)
        if same < len(rows):
            rows, others = rows.split(same)
            self.enqueue(others)
        self.queues[key].append(rows)

    def queue_of(self, depth: int) -> tuple[int, int]:
        """The queue of rows that have passed `depth` layers; one for all depths that share the next layer."""
        side = 0
        if self.model.prompts is not None:  # before prompts join, about to, or after
            joins = self.model.config.prompt_layer
            side = (depth > joins) - (depth < joins)
        # A hook on a depth, or on the layer that depths share, is called with the rows of one depth at a time.
        return depth if self.loop.hooked else id(self.loop.layers[depth]), side

    @torch.inference_mode()
    def drain(self, last: bool = False) -> None:
        """Run layers while a queue fills a batch, the deepest first; with `last`, all queues, the shallowest first."""
        while ready := [key for key, queue in self.queues.items() if queue and (last or self.fills(queue))]:
            deepest = {key: max(rows.depth for rows in self.queues[key]) for key in ready}
            key = (min if last else max)(ready, key=lambda key: deepest[key])
            if (rows := self.loop.step(Rows.cat(self.take(key)))) is not None:
                self.enqueue(rows)

    def fills(self, queue: list[Rows]) -> bool:
        """Whether the rows of a queue are worth running a layer for; always, if no further rows can join them."""
        if queue[0].token_depths is not None:
            return True
        rows, longest = sum(map(len, queue)), max(each.hidden_states.shape[1] for each in queue)
        return rows >= self.room(queue) or self.loop.execution.feeds(rows * longest, self.model.device.type)

    def room(self, queue: list[Rows]) -> int:
        """The most rows of a queue that run together."""
        longest = max(each.hidden_states.shape[1] for each in queue)
        return min(self.size, self.loop.execution.room(longest, self.model.device.type))

    def take(self, key: Any) -> list[Rows]:
        """Take about a batch out of a queue, the deepest rows first."""
        queue = sorted(self.queues.pop(key), key=lambda rows: -rows.depth)
        room = self.room(queue)
        taken = [queue.pop(0)]
        while queue and sum(map(len, taken)) + len(queue[0]) <= room:
            taken.append(queue.pop(0))
        missing = room - sum(map(len, taken))
        if queue and missing > 0 and not self.fills(taken):
            first, queue[0] = queue[0].split(missing)
            taken.append(first)
        if queue:
            self.queues[key] = queue
        return taken


def predict(
    model: PreTrainedModel, rows: Iterable[Mapping[str, Any]], policy: ExitPolicy, problem_type: str,
    batch_size: int = 32, progress: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The answers (N, C) and executed layers (N,) of rows, in their order, on the CPU; `model.predict` explains it all.

    Raises:
        RowError: a row cannot be read.
        ValueError: the model is in training mode, there is no row.
    """
    size = whole(1)("batch_size", batch_size)
    if model.training:
        refuse("model.training", True, "False: call model.eval() before predict")
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
        for _ in read_rows(rows, model.backbone):
            pass
    stream = Stream(model, policy, problem_type, size)
    total = len(rows) if isinstance(rows, Sized) else None
    with logging.tqdm(total=total, desc="Predicting", unit="rows", disable=not progress, leave=False) as bar:
        room = partial(model.execution.room, device=model.device.type)
        try:
            for batch, index in sorted_batches(read_rows(rows, model.backbone), size, room):
                stream.admit(batch, index)
                stream.drain()
                bar.update(len(batch))
        except RowError as error:
            error.logits, error.exit_layer = stream.finish() or (None, None)
            raise
        return stream.finish() or refuse("rows", "[]", "at least one row")
