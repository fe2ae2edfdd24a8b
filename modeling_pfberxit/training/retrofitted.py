"""From a fine-tuned classifier and texts to a folder: one pass, exits that learned from it, a certificate, a card.

A run that was killed goes on where its pass was; the folder becomes a model at the very end.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.metrics import score
from ..data.texts import encode_texts, load_texts
from ..evaluation.certificates import Certificate, certify
from ..evaluation.certified_copy import move_in
from ..evaluation.certifying import keep, origin, read_as_certified
from ..evaluation.recording import Recording
from ..evaluation.used_texts import remember
from ..model.losses import problem_type_of
from .certificate_card import add_section
from .exit_states import Pass, States
from .retrofit_card import write_retrofit_card
from .retrofit_plan import Plan, check_output, check_tolerance, load, parts_of, planned
from .retrofitting import Learned, Training, head_in_words, kinds, learn


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
    check_output(output := Path(output))
    model = load(classifier, device, adapter_only=adapter_only, **({} if dtype is None else {"dtype": dtype}))
    check_tolerance(problem_type_of(model.config), tolerance)
    texts = load_texts(dataset, config, **(columns or {}), split=split)
    plan = planned(model, classifier, texts, policy, max_length, lambda rows: parts_of(rows, differ, confidence, seed))
    say(plan.in_words)
    states, run = one_pass(plan, output, say)
    say("Exits learn from the record.")
    tried, how = kinds(model.config, len(model.exit_depths)), training or Training(seed=seed)
    learned = learn(model, states, plan.parts.train, plan.parts.choose, tried, how)
    say(f"Exits: {head_in_words(model.config)}. Agreement with the classifier, layer by layer: {learned.in_words}")
    chosen_on, certified_on = plan.recording(states, plan.parts.choose), plan.recording(states, plan.parts.certify)
    made = certify(chosen_on, certified_on, differ, confidence, policy=plan.rule, tolerance=tolerance)
    found = Retrofitted(output, learned, made, scores_of(made, certified_on))
    write(found, plan)
    run.forget()
    return found


def one_pass(plan: Plan, output: Path, say: Callable[[str], None]) -> tuple[States, Pass]:
    """What exits read of all rows; how long it takes is said first."""
    tokens = encode_texts(plan.rows.select_columns(list(plan.names)), plan.names, plan.tokenizer, plan.max_length)
    run = Pass(plan.model, tokens, output / "pass")
    if before := run.done:
        say(f"Going on behind batch {before} of {len(run.batches)}, where a former run stopped.")
    say(f"One pass through {len(plan.model.depths)} layers takes about {in_words(run.seconds())}.")
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


def write(found: Retrofitted, plan: Plan) -> None:
    """The folder: model, tokenizer, certificates, card; its config last, so that half of it is no model."""
    draft, model, parts = found.folder / "draft", plan.model, plan.parts
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    plan.tokenizer.save_pretrained(draft)
    remember(draft, train=plan.numbers[parts.train])
    used = {"choose": plan.numbers[parts.choose], "certify": plan.numbers[parts.certify]}
    facts = {"max_length": plan.max_length, "columns": list(plan.names), **origin(model)}
    points = keep(draft, found.certificates, used, **facts)
    read_as_certified(draft, plan.max_length)
    write_retrofit_card(draft, found.folder.name, model, found.learned.agreement, len(parts.train))
    add_section(draft, points)
    move_in(draft, found.folder)
