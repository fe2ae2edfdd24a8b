"""What a retrofit knows before it runs anything: the classifier, different texts in three parts, and what is asked.

Exits learn from the first part, the second chooses head, rule and the order of settings, the third is read once, to
certify. A text that comes twice counts once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.labels import label_column
from ..data.separators import find_separator
from ..data.tasks import Task, read_labels, targets
from ..data.texts import Texts
from ..evaluation.bounds import rows_needed, share
from ..evaluation.certifying import policy_asked_for
from ..evaluation.recording import Recording
from ..evaluation.saved_model import asked_policy, check_device, load_tokenizer, tokens_read
from ..evaluation.used_texts import first_of_each, hashes_of
from ..model.evidence import REGRESSION
from ..model.exit_policy import ExitPolicy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .exit_states import States
from .retrofitting import recorded

CERTIFY_SHARE, CHOOSE_SHARE = 0.2, 0.1  # of the texts; the others teach
MOST_CERTIFY, MOST_CHOOSE = 2000, 1000
LEAST_TRAIN, LEAST_CHOOSE = 100, 50


@dataclass(frozen=True)
class Parts:
    """The numbers of the rows exits learn from, of those that choose, and of those that certify."""

    train: Tensor
    choose: Tensor
    certify: Tensor


def parts_of(rows: int, differ: Sequence[float], confidence: float, seed: int = 0) -> Parts:
    """Three disjoint parts of the rows, drawn at random.

    Raises:
        ValueError: too few rows for the certificates that are asked for; the message has how many it takes.
    """
    if not differ or len(set(differ)) < len(differ):
        refuse("differ", list(differ), "one rate or several, none twice")
    delta = (1 - share("confidence", confidence)) / len(differ)
    least = rows_needed(min(share("differ", each) for each in differ), 1 - delta)
    if rows < (needed := least + LEAST_TRAIN + LEAST_CHOOSE):
        why = f"{least} to certify {min(differ):g} at {confidence:g} if no answer differs"
        why += f", {LEAST_CHOOSE} to choose on, {LEAST_TRAIN} to learn from"
        refuse("dataset", f"{rows} different texts", f"at least {needed}: {why}")
    choosing = max(min(round(CHOOSE_SHARE * rows), MOST_CHOOSE), LEAST_CHOOSE)
    choosing = min(choosing, rows - least - LEAST_TRAIN)
    certifying = max(min(round(CERTIFY_SHARE * rows), MOST_CERTIFY), round(1.5 * least))
    certifying = max(min(certifying, rows - LEAST_TRAIN - choosing), least)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    certify_on, choose_on, train_on = order.split([certifying, choosing, rows - certifying - choosing])
    return Parts(train_on, choose_on, certify_on)


@dataclass(frozen=True)
class Plan:
    """All that is known before the pass, checked.

    Args:
        model, tokenizer: the classifier with untrained exits, and what makes its tokens.
        rows: of different texts, with all columns of the data; the texts are in `names`.
        numbers, labels: of the rows, their hashes (N,) and, where a column was named, labels (N,) or (N, C).
        max_length: tokens of a text that are read.
        rule: whose threshold is to be chosen; None: the rule is chosen, too.
    """

    model: PFBerxitForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    names: tuple[str, ...]
    numbers: Tensor
    labels: Tensor | None
    parts: Parts
    max_length: int
    rule: ExitPolicy | None

    @property
    def in_words(self) -> str:
        """The texts, for a person."""
        sizes = (len(part) for part in (self.parts.train, self.parts.choose, self.parts.certify))
        what = "{:,} to learn from, {:,} to choose on, {:,} to certify on".format(*sizes)
        return f"{len(self.rows):,} different texts, read up to {self.max_length} tokens: {what}."

    def recording(self, states: States, part: Tensor) -> Recording:
        """What the model's exits answer on a part of the rows."""
        return recorded(
            self.model, self.model.exits, states.select(part), None if self.labels is None else self.labels[part]
        )


# ---- before the pass -------------------------------------------------------------------------------------------------


def check_output(output: Path) -> None:
    """Refuse to write over a model."""
    if (output / "config.json").exists():
        refuse("output", str(output), "a folder without a model: nothing is overwritten")


def load(classifier: str, device: str | None, **options: Any) -> PFBerxitForSequenceClassification:
    """The classifier with untrained exits, where it is to run."""
    place = check_device(device)
    return PFBerxitForSequenceClassification.from_classifier(classifier, **options).to(place)


def planned(
    model: PFBerxitForSequenceClassification, classifier: str, texts: Texts, policy: str | None,
    max_length: int | None, divide: Callable[[int], Parts],
) -> Plan:  # fmt: skip
    """All that can be said before the model is run."""
    tokenizer = load_tokenizer(classifier, model.config.base_model_revision)
    rule, (rows, numbers) = policy_asked_for(asked_policy(policy), model), different(texts)
    parts, read = divide(len(rows)), tokens_read(model, tokenizer, max_length)
    labels = labels_of(texts, rows, model)
    return Plan(model, tokenizer, rows, texts.names, numbers, labels, parts, read, rule)


def check_tolerance(problem_type: str, tolerance: float | None) -> None:
    """Refuse values without a tolerance, and a tolerance where there are no values."""
    if problem_type == REGRESSION and tolerance is None:
        refuse("tolerance", None, "given for values: how far two may lie apart and still be the same")
    if problem_type != REGRESSION and tolerance is not None:
        refuse("tolerance", tolerance, f"left out for {problem_type}: labels are equal or not")


# ---- texts -----------------------------------------------------------------------------------------------------------


def different(texts: Texts) -> tuple[Dataset, Tensor]:
    """Rows of different texts, and the texts' hashes."""
    numbers = hashes_of(texts.rows, texts.names)
    kept = first_of_each(numbers).nonzero().squeeze(1)
    return texts.rows.select(kept.tolist()), numbers[kept]


def labels_of(texts: Texts, rows: Dataset, model: PFBerxitForSequenceClassification) -> Tensor | None:
    """The labels of the rows, by the classifier's own names, where a column of them was named."""
    if texts.label is None:
        return None
    name, separator = texts.label, None
    if isinstance(name, str):
        separator = find_separator(rows, name, None, None, model)
    task = Task(texts.split, "", None, texts.names, label=name, separator=separator)
    task = read_labels(task, label_column(rows, name, texts.split, separator), None, None, model)
    return torch.tensor(targets(task, rows, texts.split))
