"""Texts on which a file is held against its model, or its threshold certified: those the model has not used."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.texts import encode_texts
from ..evaluation.certifying import fresh_texts
from ..evaluation.used_texts import remember
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .evidence import in_two
from .verification import Row


class Given(NamedTuple):
    """Tokens of texts, and the texts' hashes, (N,)."""

    rows: list[Row]
    numbers: Tensor


def read_texts(
    folder: str, model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, max_length: int,
    dataset: str, config: str | None, split: str | None, columns: dict[str, Any],
) -> Given:  # fmt: skip
    """The texts of a data set, each once, without those that a saved model has used."""
    texts = fresh_texts(folder, dataset, config, split, columns, model)
    encoded = encode_texts(texts.rows, texts.names, tokenizer, max_length)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded.column_names]
    return Given([{name: torch.tensor(row[name]) for name in names} for row in encoded], texts.numbers)


def remember_texts(folder: str, given: Given) -> None:
    """Note with a saved model that texts chose and certified a setting; of one on the Hub nothing is noted."""
    if os.path.isdir(folder):
        choose, certify = in_two(len(given.rows))
        remember(folder, choose=given.numbers[choose], certify=given.numbers[certify])
