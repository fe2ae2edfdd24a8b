"""Fine-tuning: the stock `Trainer`, with arguments that suit adapters and exits."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..data.metrics import score
from ..data.tasks import Task
from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification, PFBerxitOutput
from .strategies import StrategyCallback, set_loss_weight_rate

# 0.6 M fresh parameters want larger steps than a pretrained encoder: the paper's grid (1e-5 to 5e-5) barely moves them.
ADAPTER_LEARNING_RATE = 1e-3
BACKBONE_LEARNING_RATE = 5e-5
# Parts of the model's output, so that `exit_logits` (N, exits, C) is what an evaluation in the course of a run sees.
ALL_BUT_EXITS = [field.name for field in fields(PFBerxitOutput) if field.name not in ("loss", "exit_logits")]


def mean_of_exits(metric: str) -> str:
    """The name of a metric's mean over all exits."""
    return f"mean_{metric}"


def new_model(backbone: str, task: Task, **knobs: Any) -> PFBerxitForSequenceClassification:
    """An untrained model for a task: labels, their names and the problem type come from it."""
    return PFBerxitForSequenceClassification.from_backbone(
        backbone,
        id2label=dict(enumerate(task.labels)),
        label2id={name: number for number, name in enumerate(task.labels)},
        problem_type=task.problem_type,
        **knobs,
    )


def new_tokenizer(backbone: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer, padding on the right."""
    return AutoTokenizer.from_pretrained(backbone, revision=revision, padding_side="right")


def training_defaults(train_backbone: bool = False) -> dict[str, Any]:
    """Values for `TrainingArguments` that suit adapters, or an encoder that is trained itself."""
    on_gpu = torch.cuda.is_available()
    return {
        "learning_rate": BACKBONE_LEARNING_RATE if train_backbone else ADAPTER_LEARNING_RATE,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 128,
        "num_train_epochs": 3,
        "warmup_steps": 0.06,  # below 1: a fraction of the run
        "weight_decay": 0.01,
        "train_sampling_strategy": "group_by_length",
        "bf16": torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported(),
        "use_cpu": not on_gpu,
        "save_strategy": "no",
        "logging_steps": 50,
    }


def training_arguments(output_dir: str, train_backbone: bool = False, **changes: Any) -> TrainingArguments:
    """`training_defaults` as `TrainingArguments`; any of them, and any other, may be changed."""
    return TrainingArguments(output_dir=output_dir, **{**training_defaults(train_backbone), **changes})


def new_trainer(
    model: PFBerxitForSequenceClassification,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    train: Dataset | None = None,
    evaluation: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """A stock `Trainer` that pads to the longest row of a batch, follows the strategy and reports the task's metric.

    Where it is trained with `ignore_keys_for_eval=ALL_BUT_EXITS`, it reports the mean over all exits as well.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        """The task's metric of the last exit, and its mean over all exits where these are given."""
        logits, labels = np.asarray(prediction.predictions), prediction.label_ids
        if logits.ndim < 3:
            return {task.metric: score(task.metric, logits, labels)}
        scores = [score(task.metric, each, labels) for each in logits.swapaxes(0, 1)]
        return {task.metric: scores[-1], mean_of_exits(task.metric): float(np.mean(scores))}

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[StrategyCallback(), *callbacks],
    )
    set_loss_weight_rate(trainer)
    return trainer


@torch.no_grad()
def start_at_base_rates(model: PFBerxitForSequenceClassification, labels: Sequence[Any]) -> None:
    """Set the biases of new exits to the mean of the labels, (N,) or (N, C), where that is far from 0.

    Regression starts at the mean value, each of several labels at the log-odds of its share of the rows; classes are
    left as they are. From far off, the first steps push the states of all rows the same way, and adapters may never
    recover; rare labels take long to be learned. Exits whose biases are not 0 have learned and are left alone.
    """
    problem_type, values = problem_type_of(model.config), np.asarray(labels, dtype=float)
    if problem_type not in (REGRESSION, MULTI_LABEL):
        return
    start = values.mean(axis=0)
    if problem_type == MULTI_LABEL:
        share = (values.sum(axis=0) + 0.5) / (len(values) + 1)
        start = np.log(share / (1 - share))
    for classifier in model.exits.classifiers:
        if not classifier.bias.any():
            classifier.bias.copy_(torch.tensor(start))
