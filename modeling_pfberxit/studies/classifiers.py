"""Classifiers as one has them: stock `transformers` models, fine-tuned in full, kept to be retrofitted.

A folder is named by the hash of what it is made of (`trainings`) and appears in one move; a training that was killed
goes on behind its last checkpoint. For want of a classifier, `python -m modeling_pfberxit.studies.classifiers FOLDER`
makes one of the package's support desk, on 200 of its messages, with the texts of the others beside it.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from ..data.encoders import packaged_backbone
from ..data.source import Source
from ..data.tasks import encode
from ..evaluation.onnx_stock import INT8, onnx_runtime
from ..evaluation.recording import padded_batches
from ..model.validation import refuse
from ..training.finetuning import new_tokenizer, training_arguments
from .runs import Budget, Run, drop_nothing, further_rows, split_rows
from .trainings import content_of, name_of


def classifier_of(folder: Path, run: Run, say: Callable[[str], None]) -> Path:
    """The folder of the run's classifier, all of whose weights were trained; made where it is not there yet."""
    place = folder / "classifiers" / name_of(content_of(run, run.backbone, trained="all weights of the stock model"))
    if not (place / "config.json").exists():
        say(f"fine-tuning {run.facts()['run']['backbone']} on {run.source.task.name}, seed {run.seed} ...")
        fine_tune(run, place)
    return place


def fine_tune(run: Run, place: Path) -> None:
    """Train a stock classifier on the run's rows and write it, with its tokenizer, to `place`."""
    task, tokenizer, scratch = run.source.task, new_tokenizer(run.backbone), place.with_suffix(".training")
    rows = encode(task, split_rows(run)[1], tokenizer, run.budget.max_length)
    set_seed(run.seed)
    model = new_classifier(run)
    arguments = training_arguments(
        str(scratch), train_backbone=True, num_train_epochs=run.budget.epochs, seed=run.seed,
        per_device_train_batch_size=run.budget.batch_size, disable_tqdm=True, report_to="none", logging_strategy="no",
        save_total_limit=1, save_strategy="epoch",
    )  # fmt: skip
    scratch.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), rows)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(scratch)))
    tokenizer.model_max_length = run.budget.max_length  # what commands on the classifier will read
    model.save_pretrained(scratch / "done")
    tokenizer.save_pretrained(scratch / "done")
    os.replace(scratch / "done", place)
    shutil.rmtree(scratch)


def new_classifier(run: Run) -> PreTrainedModel:
    """The stock model for the run's task, its head untrained."""
    task = run.source.task
    model = AutoModelForSequenceClassification.from_pretrained(
        run.backbone, num_labels=task.num_labels, problem_type=task.problem_type,
        id2label=dict(enumerate(task.labels)), label2id={name: number for number, name in enumerate(task.labels)},
    )  # fmt: skip
    if not run.budget.dropout:
        drop_nothing(model.base_model)
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")  # the backward pass of the fused attention is slower on CPU
    return model


def int8_logits(classifier: Path, rows: Dataset, batch_size: int = 32) -> Tensor:
    """What a classifier answers in ONNX Runtime with 8-bit products, (N, C), in the rows' order.

    Activations are quantised by the range of their batch, so the batch is part of the answer.
    """
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    order = torch.from_numpy(np.argsort(-lengths, kind="stable"))
    names = [name for name in rows.column_names if name != "labels"]
    answers = onnx_runtime(model, names)
    if not answers:
        refuse("onnxruntime", "not installed", "there: pip install 'modeling-pfberxit[onnx]'")
    batches = padded_batches(rows.select_columns(names), order, batch_size, model.config.pad_token_id or 0)
    return torch.cat([answers[INT8](batch) for batch in batches])[order.argsort()]


def support_desk(place: Path) -> None:
    """A classifier of the support desk's messages and, in `texts.csv` beside it, all that it was not trained on."""
    budget = Budget(rows=200, epochs=15, held_out=1, batch_size=16)
    run = Run(Source.read("support_desk", "intent"), packaged_backbone(), 0, budget)
    fine_tune(run, place)
    held_out, _, evaluation = split_rows(run)
    others = concatenate_datasets([held_out, further_rows(run, 1000), evaluation])
    others.select_columns(["text"]).to_csv(place / "texts.csv")


if __name__ == "__main__":
    support_desk(Path(sys.argv[1]))
