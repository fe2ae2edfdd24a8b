"""One fine-tuning from a data set to a folder: parts of the data, the best model of the run, exits measured, a card.

Rows to train on, rows to choose on (the best model, thresholds) and rows to report on are disjoint. Checkpoints lie
beside the folder, and a run that was killed goes on from the last one if asked to, under the same plan.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from ..data.labels import CLASS
from ..data.source import content_hash
from ..data.splits import drawn
from ..data.tasks import Task, encode, load_task, targets
from ..data.texts import length_of
from ..evaluation.certified_copy import move_in
from ..evaluation.frontier import layer_scores
from ..evaluation.recording import Recording, record
from ..evaluation.settings import Setting, as_table, measure
from ..evaluation.tables import table
from ..evaluation.used_texts import hashes_of, remember
from ..model.backbones import longest_input
from ..model.criteria import CRITERIA, able
from ..model.evidence import MULTI_LABEL, SINGLE_LABEL
from ..model.exit_policy import ExitPolicy, configured_policy, describe
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.strategies import in_last_stage
from ..model.validation import refuse
from . import finished
from .finetuning import ALL_BUT_EXITS, mean_of_exits, new_model, new_tokenizer, new_trainer, start_at_base_rates
from .order import SameOrder
from .plan import Plan, arguments_of, check_folder, checkpoint_to_resume, facts_of, stage_folder
from .strategies import train
from .token_exits import fit_by_frequency

EXAMPLES = ["A text to classify.", "Another one, which is a little longer and may need more layers."]
MAX_LENGTH = 128  # tokens, unless a plan says otherwise
BALANCED = {SINGLE_LABEL: "class_weights", MULTI_LABEL: "pos_weight"}  # the config's field for it


@dataclass(frozen=True)
class Rows:
    """Encoded rows, no row in two parts, and the hashes of the texts that train and choose, by purpose."""

    train: Dataset
    chosen_on: Dataset
    reported_on: Dataset
    used: dict[str, Tensor]


def run_session(plan: Plan, say: Callable[[str], None], begins: Callable[[], None] = lambda: None) -> bool:
    """Train, measure and save what `plan` says; whether this process is the one that saved.

    Args:
        say: called with what a person would like to read meanwhile.
        begins: called when all is checked and nothing is trained yet.

    Raises:
        ValueError, OSError: data, options or folder that do not fit, before anything is trained.
    """
    arguments = arguments_of(plan)
    check_folder(plan)
    task, data = load_task(plan.dataset, plan.config, **plan.columns, split=plan.split)
    parts = split_rows(plan, task, data["train"], arguments.seed)
    set_seed(arguments.seed)
    model, rule = untrained(plan, task, targets(task, parts[0], "train"))
    tokenizer = new_tokenizer(plan.backbone, plan.revision)
    longest = longest_input(model.config.encoder_config())
    usual = longest if plan.max_length else min(longest, MAX_LENGTH)
    tokenizer.model_max_length = max_length = length_of(tokenizer, usual, plan.max_length)
    sources = (*parts, data[task.evaluation_split])
    trained_on, chosen_on, reported_on = (encode(task, each, tokenizer, max_length) for each in sources)
    used = {purpose: hashes_of(part, task.texts) for purpose, part in zip(("train", "choose"), parts)}
    rows = Rows(trained_on, chosen_on, reported_on, used)
    resume = checkpoint_to_resume(plan, facts_of(plan, content_hash(task, parts[0])))
    begins()
    counts = f"{len(rows.train)} rows to train, {len(rows.chosen_on)} to choose on"
    say(f"\n{task.name}: {counts}, {len(rows.reported_on)} of {task.evaluation_split} to report on")
    model.print_trainable_parameters()
    if model.token_exits is not None:
        fit_by_frequency(model, rows.train, tokenizer.all_special_ids, model.config.token_exit_range)
    start_at_base_rates(model, rows.train["labels"])
    runs = train(
        model, lambda: trainer_of(plan, model, task, tokenizer, rows), resume, ignore_keys_for_eval=ALL_BUT_EXITS
    )
    if not runs[-1].is_world_process_zero():
        return False
    model.config.exit_policy = rule
    finish(plan, model.eval(), task, tokenizer, rows, runs[-1].args, say)
    return True


# ---- before ----------------------------------------------------------------------------------------------------------


def split_rows(plan: Plan, task: Task, rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on and rows to choose on; of classes, in proportion."""
    rows = rows.shuffle(seed=seed)
    held = min(1000, max(1, len(rows) // 10)) if plan.held_out is None else plan.held_out
    if not 0 < held < len(rows):
        refuse("held_out", held, f"at least 1 and fewer than the {len(rows)} training rows")
    classes = targets(task, rows, "train") if task.form == CLASS else None
    if classes is not None and len(set(classes)) == len(rows):
        refuse(
            "dataset", f"{len(rows)} rows, each of another class", "two rows of one class at least, one to choose on"
        )
    mask = np.zeros(len(rows), dtype=bool)
    mask[drawn(len(rows), held, seed, classes)] = True
    train_rows = np.flatnonzero(~mask)[: plan.rows or None]
    return rows.select(train_rows), rows.select(np.flatnonzero(mask))


def untrained(plan: Plan, task: Task, labels: list[Any]) -> tuple[PFBerxitForSequenceClassification, ExitPolicy]:
    """A new model that runs every exit of every row, and the policy it will have once it is trained."""
    knobs = {**plan.knobs, "revision": plan.revision} if plan.revision else dict(plan.knobs)
    if plan.balanced:
        if task.problem_type not in BALANCED:
            refuse("class_weights", "balanced", f"left out for {task.problem_type}: values have no classes")
        if (given := BALANCED[task.problem_type]) in knobs:
            refuse(given, knobs[given], "left out beside --class-weights balanced, which works them out")
        knobs[given] = balanced_weights(np.asarray(labels), task.num_labels)
    model = new_model(plan.backbone, task, **knobs)
    if plan.policy:
        model.config.exit_policy = plan.policy
    rule = configured_policy(model.config)
    if rule.criterion and task.problem_type not in CRITERIA[rule.criterion].problem_types:
        if plan.policy:
            refuse("policy", plan.policy, f"a rule for {task.problem_type}: {', '.join(able(task.problem_type))}")
        model.config.exit_criterion = able(task.problem_type)[0]
        rule = configured_policy(model.config)
    model.config.exit_threshold, model.config.exit_criterion = None, None
    return model, rule


def balanced_weights(labels: np.ndarray, outputs: int) -> list[float]:
    """Rows / (classes * rows of a class), or rows without / rows with each of several labels; 1 where no row has it."""
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=outputs)
        weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.where(counts > 0, weights, 1.0).round(6).tolist()
    having = labels.sum(axis=0)
    return np.where(having > 0, (len(labels) - having) / np.maximum(having, 1), 1.0).round(6).tolist()


# ---- the run ---------------------------------------------------------------------------------------------------------


def trainer_of(
    plan: Plan, model: PFBerxitForSequenceClassification, task: Task, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> Trainer:
    """The trainer of the stage that the model's config names, which keeps the model whose exits score best."""
    moves = model.config.train_backbone and not in_last_stage(model.config)
    folder, metric = stage_folder(plan, model.config.training_stage), mean_of_exits(task.metric)
    arguments = arguments_of(plan, folder, moves, metric)
    stops = plan.early_stopping and arguments.load_best_model_at_end
    callbacks = [SameOrder(), *([EarlyStoppingCallback(plan.early_stopping)] if stops else [])]
    return new_trainer(model, task, tokenizer, arguments, rows.train, rows.chosen_on, callbacks)


# ---- after -----------------------------------------------------------------------------------------------------------


def finish(
    plan: Plan, model: PFBerxitForSequenceClassification, task: Task, tokenizer: PreTrainedTokenizerBase, rows: Rows,
    arguments: TrainingArguments, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Say what every exit scores, choose and measure settings, and put the model and its card into the folder."""
    recording = record(model, rows.reported_on)
    scores = [
        [str(depth), f"{each:.3f}"] for depth, each in zip(model.exit_depths, layer_scores(recording, task.metric))
    ]
    say("\n" + table(["exit after layer", f"{task.metric} on {task.evaluation_split}"], scores, align="r"))
    policies = {}
    if model.config.exit_criterion is not None and len(model.exit_depths) > 1:
        policies = finished.choose_policies(model, record(model, rows.chosen_on))
    settings = measure(model, task, rows.reported_on, policies)
    say("\n" + as_table(settings, task.metric) + "\n")
    for name, policy in policies.items():
        say(f"{name}: {describe(policy)}")
    save(plan, model, task, tokenizer, settings, recording, in_words(plan, task, rows, arguments), rows.used)
    size = os.path.getsize(Path(plan.output, "model.safetensors")) / 1e6
    say(f"\nWrote {plan.output} ({size:.2f} MB of weights), ready to be pushed; checkpoints are in {plan.scratch}.")


def in_words(plan: Plan, task: Task, rows: Rows, arguments: TrainingArguments) -> str:
    """Data, rows, epochs and seed, for the card."""
    name = os.path.basename(os.path.normpath(plan.dataset)) if os.path.exists(plan.dataset) else plan.dataset
    return f"{name}, {len(rows.train)} rows, at most {arguments.num_train_epochs:g} epochs, seed {arguments.seed}"


def save(
    plan: Plan, model: PFBerxitForSequenceClassification, task: Task, tokenizer: PreTrainedTokenizerBase,
    settings: list[Setting], recording: Recording, training: str, used: dict[str, Tensor],
) -> None:  # fmt: skip
    """Model, tokenizer, hashes of used texts, card and pictures in the output folder."""
    draft = plan.scratch / "finished" / Path(plan.output).resolve().name
    draft.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(draft)
    remember(draft, **used)
    groups = {"all": settings[len(settings) // 2].depths}
    finished.save(draft, model, task, settings, recording, training=training, texts=EXAMPLES, groups=groups)
    move_in(draft, Path(plan.output))
