"""From a saved model and texts like those it will be asked: what a simulation needs to know of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from datasets import Dataset

from ..data.texts import encode_texts
from ..evaluation.certifying import origin
from ..evaluation.recording import record
from ..evaluation.saved_model import load_model, tokens_read
from ..model.backbones import longest_input
from ..model.evidence import SINGLE_LABEL
from ..model.exit_policy import FULL_DEPTH, requested_policy
from ..model.validation import refuse
from ..serving.batching import Limits
from ..serving.calls import Point, Tokens
from ..serving.ladder import FULL_RUNG, Ladder, ladder_of
from ..serving.models import of_length
from ..serving.predictors import TorchPredictor
from .batch_times import BatchTimes, Timed, fitted
from .simulator import Texts, texts_of

BATCHES, LENGTHS = (1, 4, 8, 16), (16, 32, 64, 128)  # that are timed, where a batch has room for them


@dataclass(frozen=True)
class Forecast:
    """A model's ladder, what its rungs do with some texts, and the label that full depth gives each.

    Args:
        answers: None for several labels and values, where a label does not say whether answers differ.
    """

    ladder: Ladder
    texts: Texts
    answers: list[str] | None

    def single_labels(self) -> list[str]:
        """The labels that a server's answers are compared with; raises a ValueError where there are none."""
        return self.answers or refuse("model", "several labels or values", "one of single labels beside a real server")


class KnownModel:
    """A saved model on the CPU, loaded once to be recorded and timed.

    Args:
        max_length: tokens of a text that are read; None: as its tokenizer was saved.
    """

    def __init__(self, name: str, max_length: int | None = None) -> None:
        self.model, self.tokenizer = load_model(name, "cpu")
        self.read = tokens_read(self.model, self.tokenizer, max_length)
        facts = {**origin(self.model), "max_length": self.read}
        self.ladder = ladder_of(self.model.config.operating_points, facts)

    def forecast(self, rows: Dataset, names: Sequence[str]) -> Forecast:
        """Run texts, in the columns `names`, to full depth once."""
        config = self.model.config
        recording = record(self.model, encode_texts(rows, tuple(names), self.tokenizer, self.read))
        policies = {rung.name: requested_policy(rung.name, config) for rung in self.ladder if rung is not FULL_RUNG}
        tolerance = max(rung.tolerance for rung in self.ladder)
        texts = texts_of(recording, {FULL_RUNG.name: FULL_DEPTH, **policies}, tolerance)
        best = recording.evidence.logits[:, -1].argmax(-1).tolist()
        single, labels = recording.problem_type == SINGLE_LABEL, recording.names
        return Forecast(self.ladder, texts, [labels[number] for number in best] if single else None)

    def times(self, texts: Sequence[str | tuple[str, str]], repeats: int = 5) -> BatchTimes:
        """What batches of some texts take on one core, run as the server runs them under each of its rungs.

        Times are CPU time, medians of `repeats`; texts are cut or stretched, so that all lengths are seen.
        """
        predictor = TorchPredictor(self.model, self.tokenizer, self.read)
        rows, _ = predictor.read(list(texts[: BATCHES[-1]]))
        cases = [
            ([of_length(row, length) for row in (rows * size)[:size]], predictor.point(rung.name))
            for length in LENGTHS if length <= self.longest
            for size in BATCHES if size * length <= Limits().tokens
            for rung in self.ladder
        ]  # fmt: skip
        runs = [[timed(predictor, *case) for case in cases] for _ in range(1 + repeats)][1:]  # the first warms up
        return fitted([each[0]._replace(seconds=median(run.seconds for run in each)) for each in zip(*runs)])

    @property
    def longest(self) -> int:
        """The most tokens that the encoder reads."""
        return int(min(longest_input(self.model.config.encoder_config()), LENGTHS[-1]))


def timed(predictor: TorchPredictor, rows: Sequence[Tokens], point: Point) -> Timed:
    """Run a batch once."""
    began = time.process_time()
    found = predictor.run(rows, [point] * len(rows))
    lengths = np.array([len(row["input_ids"]) for row in rows])
    return Timed(lengths, np.array(found.exit_layer), time.process_time() - began)


def asked_of(rows: Dataset, names: Sequence[str]) -> list[str | tuple[str, str]]:
    """Texts or pairs as requests send them."""
    columns = [rows[name] for name in names]
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns))
