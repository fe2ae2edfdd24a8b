"""Encoded rows as `predict` reads them: checked one by one, without padding, in batches of about one length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .backbones import check_ids, longest_input, table_sizes
from .validation import refuse

WINDOW = 64  # batches that are sorted by length together


class RowError(ValueError):
    """A row that cannot be read.

    Args:
        row: its number, from 0.
        message: what is wrong with it.

    Attributes:
        logits, exit_layer: the answers (row, C) and (row,) of all rows before it, on the CPU; None: nothing was run.
    """

    def __init__(self, row: int, message: str):
        super().__init__(message)
        self.row = row
        self.logits: Tensor | None = None
        self.exit_layer: Tensor | None = None


def read_rows(rows: Iterable[Mapping[str, Any]], backbone: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The tokens of every row, until one of them is nothing the encoder can read: then a `RowError`."""
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


def check_row(name: str, tokens: dict[str, Tensor], longest: int, sizes: dict[str, int]) -> None:
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
    """Where the mask's (n,) one stretch of tokens stands."""
    places = mask.nonzero().squeeze(1).tolist()
    if not places or places[-1] - places[0] >= len(places):
        refuse(name, mask.tolist(), "1 for a token at least, and 0 for none in between")
    return slice(places[0], places[-1] + 1)


def sorted_batches(
    rows: Iterator[dict[str, Tensor]], size: int, room: Callable[[int], int]
) -> Iterator[tuple[list[dict[str, Tensor]], Tensor]]:
    """Rows and their numbers, `size` at most and no more than there is `room` for at the length of the longest.

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
    """The next rows, so many at most, and what is wrong with the one behind them if that is why they are fewer."""
    window: list[dict[str, Tensor]] = []
    try:
        for row in islice(rows, most):
            window.append(row)
    except RowError as error:
        return window, error
    return window, None
