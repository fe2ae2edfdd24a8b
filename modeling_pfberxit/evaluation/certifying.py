"""Certificates of a saved model: texts that may be used, recorded once, in two parts; what is found stays with it.

A text counts once, and not at all if it trained the model, chose a rule, or has certified already: it was read once.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.tasks import load_task, targets
from ..data.texts import ALL, encode_texts, load_texts, read_any
from ..model.criteria import able, check_fit, check_labels, numbered
from ..model.evidence import EMITTED_BY
from ..model.exit_policy import ExitPolicy, requested_policy
from ..model.identity import arithmetic
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.persistence import replacing, update_config
from ..model.validation import label_names, refuse
from .bounds import rows_needed, share
from .certificates import Certificate, certify, names_of
from .kept_pass import recorded_in_parts
from .recording import Recording, record
from .used_texts import fingerprint, first_of_each, hashes_of, is_used, remember

CHOOSE_SHARE = 0.3  # of the texts, where a rule or its threshold is to be chosen; the others certify


@dataclass(frozen=True)
class Fresh:
    """Texts that may be used, each once.

    Args:
        rows: with the columns `names`, and `labels` where they are read.
        numbers: the texts' hashes, (N,).
        left_out: how many were not to be used, by why.
    """

    rows: Dataset
    names: tuple[str, ...]
    numbers: Tensor
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


def fresh_texts(
    folder: str | os.PathLike, dataset: str, config: str | None, split: str | None, columns: dict[str, Any],
    model: PFBerxitForSequenceClassification, labelled: bool = False, seen: Tensor | None = None,
) -> Fresh:  # fmt: skip
    """The texts of a data set that a saved model has not used.

    Args:
        columns: as `load_texts` takes them; with a `label` that is read, as `load_task` does.
        labelled: read the labels as well.
        seen: hashes of further texts to leave out, checked before.
    """
    if labelled:
        named = tuple(columns.get(name) for name in ("text", "pair", "label"))
        if split is None and len(read_any(dataset, config, named)) == 1:
            split = ALL  # or a part would be held out
        task, data = load_task(dataset, config, **columns, split=split, model=model)
        split = split or task.evaluation_split
        names, rows = task.texts, data[split]
        rows = rows.select_columns(list(names)).add_column("labels", targets(task, rows, split))
    else:
        texts = load_texts(dataset, config, **columns, split=split)
        names, rows = texts.names, texts.rows.select_columns(list(texts.names))
    numbers = hashes_of(rows, names)
    reasons = {"repeated": ~first_of_each(numbers)}
    reasons |= {f"used to {purpose}": found for purpose, found in is_used(folder, numbers).items()}
    if seen is not None:
        reasons["checked before"] = torch.isin(numbers, seen)
    free, left_out = torch.ones(len(numbers), dtype=torch.bool), {}
    for reason, found in reasons.items():
        left_out[reason] = int((free & found).sum())
        free &= ~found
    kept = free.nonzero().squeeze(1)
    return Fresh(rows.select(kept.tolist()), names, numbers[kept], {k: v for k, v in left_out.items() if v})


def recorded_texts(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, texts: Fresh, max_length: int,
    folder: str | os.PathLike | None = None,
) -> Recording:  # fmt: skip
    """One pass of the model over the texts, in their order; its parts are kept in a folder, where one is given."""
    encoded = encode_texts(texts.rows, texts.names, tokenizer, max_length)
    if "labels" in texts.rows.column_names:
        encoded = encoded.add_column("labels", texts.rows["labels"])
    return record(model, encoded) if folder is None else recorded_in_parts(model, encoded, folder)


# ---- before the pass -------------------------------------------------------------------------------------------------


def check_enough(texts: Fresh, differ: Sequence[float], confidence: float, choosing: bool) -> None:
    """Refuse fewer texts than the certificates take at least, before the model is run.

    Args:
        choosing: some of the texts choose a rule or its threshold.
    """
    delta = (1 - share("confidence", confidence)) / len(differ)
    least = rows_needed(min(share("differ", each) for each in differ), 1 - delta)
    least = math.ceil(least / (1 - CHOOSE_SHARE)) if choosing else least
    if len(texts) < least:
        without = ", ".join(f"{number} {reason}" for reason, number in texts.left_out.items())
        words = f"{len(texts)} texts" + (f" ({without} left out)" if without else "")
        refuse("dataset", words, f"at least {least} texts that the model has not used, and that is without a miss")


def check_length(points: dict[str, dict[str, Any]], differ: Sequence[float], read: int) -> None:
    """Refuse to certify at another length of texts than the certificates that stay: a saved tokenizer has one.

    Args:
        points: a model's operating points; those that are certified anew do not stay.
    """
    for name, point in points.items():
        certified = point.get("certificate", {}).get("max_length", read)
        if certified != read and name not in names_of(differ):
            refuse(
                "max_length", read, f"{certified}, as {name} was certified; another length takes a copy of the model"
            )


def policy_asked_for(asked: str | dict[str, Any] | None, model: PFBerxitForSequenceClassification) -> ExitPolicy | None:
    """The rule to be certified: an operating point by name, or the fields given alone; None: it is to be chosen.

    Raises:
        ValueError: a field, a label or a rule that does not fit the model; a rule may still be without its threshold.
    """
    if asked is None:
        return None
    rule = requested_policy(asked, model.config)  # refuses unknown names and fields
    rule = rule if isinstance(asked, str) else ExitPolicy(**asked)
    problem_type = problem_type_of(model.config)
    numbered(rule, label_names(model.config))
    emitted = [name for name in EMITTED_BY if getattr(model.config, name)]
    if rule.criterion not in (names := able(problem_type, emitted)):
        refuse("policy", rule.criterion, f"a rule that this model's exits can be judged by: {', '.join(names)}")
    check_labels(rule, problem_type)
    if rule.is_active(problem_type):
        check_fit(rule, model.exit_depths, problem_type)
    return rule


def origin(model: PFBerxitForSequenceClassification) -> dict[str, Any]:
    """What a certificate is bound to beside its texts: the weights, by their hashes, and what they compute in."""
    return {"dtype": arithmetic(model), "weights_sha256": model.config.weights_sha256}


# ---- the certificates ------------------------------------------------------------------------------------------------


def certify_texts(
    recording: Recording, numbers: Tensor, differ: Sequence[float], confidence: float, seed: int = 0, **options: Any
) -> tuple[list[Certificate], dict[str, Tensor]]:
    """Certificates from one recording, and the hashes of the texts that chose and that certified.

    Args:
        numbers: the texts' hashes, (N,).
        options: as `certify` takes them.
    """
    policy = options.get("policy")
    if policy is not None and policy.is_active(recording.problem_type):
        return certify(None, recording, differ, confidence, **options), {"certify": numbers}
    order = torch.randperm(len(recording), generator=torch.Generator().manual_seed(seed))
    chosen, others = order.split([round(CHOOSE_SHARE * len(order)), len(order) - round(CHOOSE_SHARE * len(order))])
    made = certify(recording.select(chosen), recording.select(others), differ, confidence, **options)
    return made, {"choose": numbers[chosen], "certify": numbers[others]}


def keep(
    folder: str | os.PathLike, made: Sequence[Certificate], used: dict[str, Tensor], **facts: Any
) -> dict[str, dict[str, Any]]:
    """Store certificates and the hashes of the texts they used with a saved model; what the config now says of them.

    The model's own rule becomes the certificate with the smallest epsilon that passed; full depth where none did. One
    of the same name that did not pass is taken out.

    Args:
        facts: of the texts, such as `max_length` and `columns`.
    """
    remember(folder, **used)
    facts = {"date": date.today().isoformat(), "texts": fingerprint(used["certify"]), **facts}
    points = {each.name: each.as_point(**facts) for each in made if each.passed}
    others = {name: point for name, point in stored_points(folder).items() if name not in {each.name for each in made}}
    rule = min(made, key=lambda each: (not each.passed, each.epsilon)).policy
    fields = {f"exit_{name}": value for name, value in asdict(rule).items()}
    update_config(folder, operating_points={**others, **points}, **fields)
    return points


def stored_points(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The operating points of a saved model, as its config has them."""
    return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("operating_points") or {}


def read_as_certified(folder: str | os.PathLike, max_length: int) -> None:
    """Let the saved tokenizer cut texts where they were cut to certify."""
    path = Path(folder) / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("model_max_length") != max_length:
        with replacing(path) as draft:
            text = json.dumps({**values, "model_max_length": max_length}, indent=2, ensure_ascii=False)
            draft.write_text(text + "\n", encoding="utf-8")
