"""From a fine-tuned classifier and texts to a folder: one pass, exits that learned from it, a certificate, a card.

The texts fall into three parts, at random: exits learn from the first, the second chooses head, rule and the order of
settings, the third is read once, to certify. A text that comes twice counts once. A run that was killed goes on where
its pass was; the folder appears in one move at the end.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..data.labels import label_column
from ..data.metrics import score
from ..data.tasks import Task, read_labels, targets
from ..data.texts import Texts, encode_texts, load_texts
from ..evaluation.bounds import rows_needed, share
from ..evaluation.certificates import Certificate, certify
from ..evaluation.certifying import keep, origin, policy_asked_for, read_as_certified
from ..evaluation.recording import Recording
from ..evaluation.saved_model import asked_policy, check_device, tokens_read
from ..evaluation.used_texts import first_of_each, hashes, remember
from ..model.exits import REGRESSION
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .certificate_card import add_section
from .exit_states import Pass, States
from .retrofit_card import write_retrofit_card
from .retrofitting import Learned, Training, head_in_words, kinds, learn, recorded

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
    delta = (1 - share("confidence", confidence)) / len(differ)
    least = rows_needed(min(share("differ", each) for each in differ), 1 - delta)
    if rows < (needed := least + LEAST_TRAIN + LEAST_CHOOSE):
        why = f"{least} to certify {min(differ):g} at {confidence:g} if no answer differs"
        why += f", {LEAST_CHOOSE} to choose on, {LEAST_TRAIN} to learn from"
        refuse("dataset", f"{rows} different texts", f"at least {needed}: {why}")
    certifying = max(min(round(CERTIFY_SHARE * rows), MOST_CERTIFY), round(1.5 * least))
    certifying = min(certifying, rows - LEAST_TRAIN - LEAST_CHOOSE)
    choosing = max(min(round(CHOOSE_SHARE * rows), MOST_CHOOSE), LEAST_CHOOSE)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    certify_on, choose_on, train_on = order.split([certifying, choosing, rows - certifying - choosing])
    return Parts(train_on, choose_on, certify_on)


@dataclass(frozen=True)
class Retrofitted:
    """What a run ended with.

    Args:
        folder: where the model is.
        learned: its exits, and how often they agree with the last one.
        certificates: in the order they were asked for.
        scores: of the certifying rows by name of the setting, where there are labels.
    """

    folder: Path
    learned: Learned
    certificates: list[Certificate]
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether any certificate was given."""
        return any(each.passed for each in self.certificates)


def retrofit(
    classifier: str, dataset: str, output: str | os.PathLike, *, config: str | None = None,
    columns: dict[str, Any] | None = None, split: str | None = None, differ: Sequence[float] = (0.01,),
    confidence: float = 0.95, policy: str | None = None, tolerance: float | None = None, max_length: int | None = None,
    device: str | None = None, dtype: str | None = None, seed: int = 0, training: Training | None = None,
    adapter_only: bool = True, say: Callable[[str], None] = lambda line: None,
) -> Retrofitted:  # fmt: skip
    """Give a fine-tuned classifier exits that answer as it does, certify how often, and save it.

    Args:
        classifier: a Hub id or a folder.
        dataset, config, columns, split: as `load_texts` takes them; labels are scored, if a `label` is named.
        output: a folder without a model.
        differ, confidence: of the answers at most, each a certificate; with this confidence.
        policy: a rule as JSON, whose threshold is to be chosen; None: the rule is chosen, too.
        tolerance: how far values may lie apart and still be the same; regression must have it.
        say: called with what a person would like to read meanwhile.

    Raises:
        ValueError, OSError: before the pass: no such classifier or texts, too few of them, values out of range.
    """
    output = Path(output)
    if (output / "config.json").exists():
        refuse("output", str(output), "a folder without a model: nothing is overwritten")
    options = {} if dtype is None else {"dtype": dtype}
    place = check_device(device)
    model = PFBerxitForSequenceClassification.from_classifier(classifier, adapter_only=adapter_only, **options)
    model.to(place)
    tokenizer = AutoTokenizer.from_pretrained(
        classifier, revision=model.config.base_model_revision, padding_side="right"
    )
    check_tolerance(problem_type_of(model.config), tolerance)
    rule = policy_asked_for(asked_policy(policy), model.config)
    texts = load_texts(dataset, config, **(columns or {}), split=split)
    rows, numbers = different(texts)
    labels = labels_of(texts, rows, model)
    parts = parts_of(len(rows), differ, confidence, seed)
    read = tokens_read(model, tokenizer, max_length)
    say(f"{len(rows):,} different texts, read up to {read} tokens: {len(parts.train):,} to learn from, "
        f"{len(parts.choose):,} to choose on, {len(parts.certify):,} to certify on.")  # fmt: skip
    states, run = one_pass(model, tokenizer, rows.select_columns(list(texts.names)), texts.names, read, output, say)
    say("Exits learn from the record.")
    learned = learn(model, states, parts.train, parts.choose, kinds(model.config, len(model.exit_depths)),
                    training or Training(seed=seed))  # fmt: skip
    say(f"Exits: {head_in_words(model.config)}. They agree with the classifier, layer by layer: "
        + " ".join(f"{each:.3f}" for each in learned.agreement))  # fmt: skip
    chosen_on, certified_on = (
        recorded(model, model.exits, states.select(part), None if labels is None else labels[part])
        for part in (parts.choose, parts.certify)
    )
    made = certify(chosen_on, certified_on, differ, confidence, policy=rule, tolerance=tolerance)
    found = Retrofitted(output, learned, made, scores_of(made, certified_on))
    used = {purpose: numbers[getattr(parts, purpose)] for purpose in ("train", "choose", "certify")}
    write(found, model, tokenizer, used, {"max_length": read, "columns": list(texts.names)})
    run.forget()
    return found


def check_tolerance(problem_type: str, tolerance: float | None) -> None:
    """Refuse values without a tolerance, and a tolerance where there are no values."""
    if problem_type == REGRESSION and tolerance is None:
        refuse("tolerance", None, "given for values: how far two may lie apart and still be the same")
    if problem_type != REGRESSION and tolerance is not None:
        refuse("tolerance", tolerance, f"left out for {problem_type}: labels are equal or not")


# ---- texts -----------------------------------------------------------------------------------------------------------


def different(texts: Texts) -> tuple[Dataset, Tensor]:
    """Rows of different texts, and the texts' hashes."""
    columns = [texts.rows[name] for name in texts.names]
    numbers = hashes(columns[0] if len(columns) == 1 else zip(*columns))
    kept = first_of_each(numbers).nonzero().squeeze(1)
    return texts.rows.select(kept.tolist()), numbers[kept]


def labels_of(texts: Texts, rows: Dataset, model: PFBerxitForSequenceClassification) -> Tensor | None:
    """The labels of the rows, by the classifier's own names, where a column of them was named."""
    if texts.label is None:
        return None
    task = Task(texts.split, "", None, texts.names, label=texts.label)
    task = read_labels(task, label_column(rows, texts.label, texts.split), None, None, model)
    return torch.tensor(targets(task, rows, texts.split))


def one_pass(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, rows: Dataset, names: Sequence[str],
    read: int, output: Path, say: Callable[[str], None],
) -> tuple[States, Pass]:  # fmt: skip
    """What exits read of all rows; how long it takes is said first."""
    run = Pass(model, encode_texts(rows, names, tokenizer, read), output / "pass")
    before = run.done
    if before:
        say(f"Going on behind batch {before} of {len(run.batches)}, where a former run stopped.")
    say(f"One pass through {len(model.depths)} layers takes about {in_words(run.seconds())}.")
    return run.record(), run


def in_words(seconds: float) -> str:
    """A span of time for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ---- what is found ---------------------------------------------------------------------------------------------------

METRIC_OF = {"single_label_classification": "accuracy", "multi_label_classification": "micro_f1",
             "regression": "correlation"}  # fmt: skip


def scores_of(made: Sequence[Certificate], recording: Recording) -> dict[str, float]:
    """The score of full depth and of every certified setting on labelled rows; empty without labels."""
    if recording.labels is None:
        return {}
    metric, labels = METRIC_OF[recording.problem_type], recording.labels.numpy()
    answers = {each.name: recording.replay(each.policy)[0] for each in made if each.passed}
    answers = {"full depth": recording.evidence.logits[:, -1], **answers}
    return {name: score(metric, logits.numpy(), labels) for name, logits in answers.items()}


def write(
    found: Retrofitted, model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase,
    used: dict[str, Tensor], facts: dict[str, Any],
) -> None:  # fmt: skip
    """The folder: model, tokenizer, certificates, card; its config last, so that half of it is no model."""
    draft = found.folder / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    remember(draft, train=used["train"])
    others = {purpose: numbers for purpose, numbers in used.items() if purpose != "train"}
    points = keep(draft, found.certificates, others, **facts, **origin(model))
    read_as_certified(draft, facts["max_length"])
    write_retrofit_card(draft, found.folder.name, model, found.learned.agreement, len(used["train"]))
    add_section(draft, points)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, found.folder / path.name)
    draft.rmdir()
