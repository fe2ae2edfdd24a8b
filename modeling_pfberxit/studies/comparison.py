"""The comparison: every system on one backbone with one budget, trained, recorded and kept.

Systems that differ only in the exit rule share one trained model. What a model's exits said about the held-out and the
evaluation rows is kept in a safetensors file under a hash of everything that went into its training, so a comparison
that was interrupted goes on where it stopped, and new rules cost no training.
"""

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import set_seed

from ..data.tasks import Task, encode, load_task
from ..evaluation.macs import token_macs
from ..evaluation.recording import Recording, record
from ..model.configuration_pfberxit import CHECKS, PFBerxitConfig
from ..model.exit_policy import POLICY_CHECKS
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..training.finetuning import new_model, new_tokenizer, new_trainer, training_arguments
from ..training.strategies import train
from ..training.token_exits import fit_token_exits

# Every system's exits read the same thing, so that rules and training are compared and not what is read.
COMMON = {"exit_pooling": "mean", "exit_pooler": "none"}
ASIDE = {"system", "operating_points", "format_version", "adapter_only", "backbone_config", "problem_type"}
UNTRAINED = ASIDE | {f"exit_{name}" for name in POLICY_CHECKS}


@dataclass(frozen=True)
class Budget:
    """What one run may spend: `rows` of the training split (0: all) for `epochs`; `held_out` rows choose thresholds.

    Without the encoder's `dropout` a step on CPU takes six tenths of the time.
    """

    rows: int = 0
    epochs: float = 5
    held_out: int = 500
    batch_size: int = 32
    dropout: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", float(self.epochs))  # 3 and 3.0 are one budget, and one training


@dataclass(frozen=True)
class Run:
    """One training of the comparison, whatever the system."""

    dataset: str
    config: str
    seed: int
    backbone: str
    budget: Budget


def compared_config(system: str, backbone: str, **knobs: Any) -> PFBerxitConfig:
    """A system as it is compared: with the common reading, and late prompts with exits above the layer they join at."""
    config = PFBerxitConfig.for_system(system, backbone, **{**COMMON, **knobs})
    layers = config.encoder_config().num_hidden_layers
    if config.prompt_generator != "none":
        config.exit_layers = list(range(config.prompt_layer + 1, layers + 1))
        config.exit_criterion = "entropy"
    return config


def trained_as(config: PFBerxitConfig) -> dict[str, Any]:
    """What of a config shapes the training and is not the default: no exit policy, no system's name."""
    values, default = config.to_dict(), PFBerxitConfig().to_dict()
    shaping = [name for name in sorted(CHECKS) if name not in UNTRAINED and not name.startswith("base_")]
    return {name: values[name] for name in shaping if values[name] != default[name]}


def training_id(run: Run, config: PFBerxitConfig) -> str:
    """A hash of all that goes into a training."""
    asked = {**asdict(run), "backbone": Path(run.backbone).name, "dataset": Path(run.dataset).name}
    text = json.dumps({"run": asked, "config": trained_as(config)}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Trained:
    """What a trained model's exits said about the rows that thresholds are chosen on, and about those reported on."""

    chosen_on: Recording
    reported_on: Recording

    @property
    def facts(self) -> dict[str, Any]:
        """Of its making."""
        return self.reported_on.source


def trained(folder: Path, run: Run, config: PFBerxitConfig, progress: str = "") -> Trained:
    """The recordings of one training; trained now if it has not been yet."""
    place = folder / "recordings" / f"{run.config}-seed{run.seed}-{training_id(run, config)}"
    paths = place / "held_out.safetensors", place / "evaluation.safetensors"
    if not all(path.exists() for path in paths):
        print(f"{progress}training {config.system or 'a model'} on {run.config}, seed {run.seed} ...", flush=True)
        for path, recording in zip(paths, train_and_record(run, config)):
            recording.save(path)
    return Trained(*map(Recording.load, paths))


# ---- training -------------------------------------------------------------------------------------------------------


def train_and_record(run: Run, config: PFBerxitConfig) -> tuple[Recording, Recording]:
    """Train one model; what its exits say about the held-out and the evaluation rows."""
    task, splits = split_task(run)
    tokenizer = new_tokenizer(run.backbone)
    held_out, rows, evaluation = (encode(task, part, tokenizer) for part in splits)
    set_seed(run.seed)
    # The policy stays behind: nothing of it is trained, and a model without criterion runs to its last layer.
    model = new_model(run.backbone, task, **{**trained_as(config), "exit_criterion": None})
    if not run.budget.dropout:
        drop_nothing(model)
    if not torch.cuda.is_available():
        # On CPU the backward pass of the fused attention is the slowest part of a step.
        model.set_attn_implementation("eager")
    if model.token_exits is not None:
        fill_table(model, rows, tokenizer.all_special_ids, config)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        runs = train(model, lambda: trainer_of(model, task, tokenizer, run, scratch, rows))
    facts = {
        "task": task.name,
        "metric": task.metric,
        "train_rows": len(rows),
        "seconds": round(time.perf_counter() - started, 1),
        "steps": sum(each.state.global_step for each in runs),
        **token_facts(model, evaluation),
        "run": {**asdict(run), "backbone": Path(run.backbone).name, "dataset": Path(run.dataset).name},
    }
    return record(model, held_out, **facts), record(model, evaluation, **facts)


def drop_nothing(model: PFBerxitForSequenceClassification) -> None:
    """Switch the encoder's dropout off."""
    for module in model.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def split_task(run: Run) -> tuple[Task, tuple[Dataset, Dataset, Dataset]]:
    """The task with its held-out, training and evaluation rows."""
    task, data = load_task(run.dataset, run.config)
    budget, shuffled = run.budget, data["train"].shuffle(seed=run.seed)
    end = min(len(shuffled), budget.held_out + budget.rows) if budget.rows else len(shuffled)
    held_out, rows = (shuffled.select(range(*part)) for part in ((budget.held_out,), (budget.held_out, end)))
    return task, (held_out, rows, data[task.evaluation_split])


def trainer_of(model: PFBerxitForSequenceClassification, task: Task, tokenizer, run: Run, folder: str, rows: Dataset):
    """A stock `Trainer` with the budget; a stage that moves only exits has the learning rate of new parameters."""
    config = model.config
    only_exits = config.training_strategy == "two_stage" and config.training_stage == 2
    arguments = training_arguments(
        folder, train_backbone=config.train_backbone and not only_exits, num_train_epochs=run.budget.epochs,
        seed=run.seed, per_device_train_batch_size=run.budget.batch_size, disable_tqdm=True, report_to="none",
        logging_strategy="no",
    )  # fmt: skip
    return new_trainer(model, task, tokenizer, arguments, rows)


def fill_table(model: PFBerxitForSequenceClassification, rows: Dataset, special_ids: list[int], config) -> None:
    """Token depths by frequency, between the layers the config says."""
    low, high = config.token_exit_range or (1, len(model.depths))
    fit_token_exits(model, rows["input_ids"], np.asarray(rows["labels"]), special_ids, "frequency", (low, high))


@torch.no_grad()
def token_facts(model: PFBerxitForSequenceClassification, rows: Dataset) -> dict[str, float | None]:
    """The mean layer these rows' tokens leave after, and the share of multiply-adds that saves; None: all stay."""
    if model.token_exits is None:
        return {"token_layers": None, "macs_saved": None}
    encoder, depths = model.backbone.config, [model.token_exits(torch.tensor([ids]), None) for ids in rows["input_ids"]]
    cost = sum(token_macs(encoder, row).item() for row in depths)
    whole = sum(token_macs(encoder, torch.full_like(row, len(model.depths))).item() for row in depths)
    return {"token_layers": torch.cat(depths, dim=1).float().mean().item(), "macs_saved": 1 - cost / whole}
