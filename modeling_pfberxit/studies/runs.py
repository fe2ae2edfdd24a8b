"""One run: a training on one task with one budget and seed, and the recordings of its exits on rows it has not seen."""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Trainer, set_seed

from ..data.source import Source
from ..data.tasks import encode
from ..evaluation.macs import token_macs
from ..evaluation.recording import Recording, record
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import SINGLE_LABEL
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.strategies import in_last_stage
from ..model.validation import refuse
from ..training.finetuning import new_model, new_tokenizer, new_trainer, start_at_base_rates, training_arguments
from ..training.model_card import display_name
from ..training.strategies import train
from ..training.token_exits import fit_by_frequency
from .beside import with_peft
from .teacher import TEACHER, taught

# Fields of a budget that came later, and what had been before.
TRAINED_AS_USUAL: dict[str, Any] = {"learning_rate": None, "depth_rate": 1.0, "beside": None}
AS_EVER = {"max_length": 128, "teacher": 0.0, **TRAINED_AS_USUAL}


@dataclass(frozen=True)
class Budget:
    """What one run may cost."""

    rows: int = 0  # of the training split; 0: all
    epochs: float = 5
    held_out: int = 500  # further rows of the training split, to choose thresholds on
    batch_size: int = 32
    max_length: int = 128  # tokens a row is cut to
    dropout: bool = True  # in the encoder; without it a step on CPU takes six tenths of the time
    learning_rate: float | None = None  # None: the usual one of adapters, or of all weights
    depth_rate: float = 1.0  # what the rate of a layer is, times that of the layer above
    beside: str | None = None  # what PEFT trains in the encoder, an entry of `BESIDE`
    teacher: float = 0.0  # share of the labels that a model has said all of whose weights learned the same rows

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", float(self.epochs))  # 3 and 3.0 are one budget, and one training

    def stated(self) -> dict[str, Any]:
        """Its fields, by which trainings are known, without what is as it was before there was a field for it."""
        return {name: value for name, value in asdict(self).items() if (name, value) not in AS_EVER.items()}


@dataclass(frozen=True)
class Run:
    """One training, whatever the system."""

    source: Source
    backbone: str  # Hub id or folder of an encoder
    seed: int
    budget: Budget

    def facts(self) -> dict[str, Any]:
        """What results keep of it; of folders the last name alone."""
        run = {
            "dataset": Path(self.source.dataset).name,
            "config": self.source.config,
            "seed": self.seed,
            "backbone": display_name(self.backbone),
            "budget": self.budget.stated(),
        }
        return {"task": self.source.task.name, "metric": self.source.task.metric, "run": run}


# ---- training -------------------------------------------------------------------------------------------------------


def train_and_record(run: Run, config: PFBerxitConfig) -> tuple[Recording, Recording]:
    """Train one model, and record its exits on the held-out and on the evaluation rows."""
    tokenizer = new_tokenizer(run.backbone, config.base_model_revision)
    encoded = (encode(run.source.task, part, tokenizer, run.budget.max_length) for part in split_rows(run))
    held_out, rows, evaluation = encoded
    started = time.perf_counter()
    if run.budget.teacher:
        alone = replace(run, budget=replace(run.budget, teacher=0.0, **TRAINED_AS_USUAL))
        teacher, _ = fitted(alone, PFBerxitConfig.from_backbone(config, **TEACHER), tokenizer, rows)
        rows = taught(rows, teacher, run.budget.teacher)
    model, runs = fitted(run, config, tokenizer, rows)
    facts = {
        **run.facts(),
        "train_rows": len(rows),
        "seconds": round(time.perf_counter() - started, 1),
        "steps": sum(each.state.global_step for each in runs),
        **token_facts(model, evaluation),
    }
    return record(model, held_out, **facts), record(model, evaluation, **facts)


def fitted(
    run: Run, config: PFBerxitConfig, tokenizer: PreTrainedTokenizerBase, rows: Dataset
) -> tuple[PFBerxitForSequenceClassification, list[Trainer]]:
    """A trained model, and the trainers after their runs."""
    set_seed(run.seed)
    # On CPU the backward pass of the fused attention is the slowest part of a step.
    attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
    # Without the policy: nothing of it is trained, and a model without criterion runs to its last layer.
    model = new_model(config, run.source.task, system=None, exit_criterion=None, exit_threshold=None, **attention)
    if not run.budget.dropout:
        drop_nothing(model.backbone)
    if model.token_exits is not None:
        fit_by_frequency(model, rows, tokenizer.all_special_ids, config.token_exit_range)
    if run.source.task.problem_type == SINGLE_LABEL and isinstance(rows[0]["labels"], list):
        model.exit_loss = cross_entropy  # takes probabilities of classes as labels
    whole = with_peft(model, run.budget.beside) if run.budget.beside else model
    with tempfile.TemporaryDirectory() as scratch:
        runs = train(model, lambda: trainer_of(whole, run, tokenizer, scratch, rows))
    return whole.merge_and_unload() if run.budget.beside else model, runs


def drop_nothing(encoder: nn.Module) -> None:
    """Switch an encoder's dropout off."""
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def further_rows(run: Run, most: int) -> Dataset:
    """Rows of the training split that `split_rows` leaves, so many at most."""
    data, budget = run.source.data["train"].shuffle(seed=run.seed), run.budget
    start = budget.held_out + budget.rows
    if not budget.rows or start >= len(data):
        refuse("rows", budget.rows, f"fewer than the {len(data) - budget.held_out} there are: the others are texts")
    return data.select(range(start, min(len(data), start + most)))


def split_rows(run: Run) -> tuple[Dataset, Dataset, Dataset]:
    """The rows to choose thresholds on, to train on and to report on."""
    data, budget = run.source.data, run.budget
    if not 0 < budget.held_out < len(data["train"]):
        refuse("held_out", budget.held_out, f"at least 1 and fewer than the {len(data['train'])} training rows")
    shuffled = data["train"].shuffle(seed=run.seed)
    end = min(len(shuffled), budget.held_out + budget.rows) if budget.rows else len(shuffled)
    held_out, rows = (shuffled.select(range(*part)) for part in ((budget.held_out,), (budget.held_out, end)))
    return held_out, rows, data[run.source.task.evaluation_split]


def trainer_of(
    model: PFBerxitForSequenceClassification, run: Run, tokenizer: PreTrainedTokenizerBase, folder: str, rows: Dataset
) -> Trainer:
    """A stock `Trainer` with the budget; a stage that trains only exits has the learning rate of new parameters."""
    config, budget = model.config, run.budget
    everything = config.train_backbone and not in_last_stage(config)
    arguments = training_arguments(
        folder, train_backbone=everything, num_train_epochs=budget.epochs, seed=run.seed,
        per_device_train_batch_size=budget.batch_size, disable_tqdm=True, report_to="none", logging_strategy="no",
        **{"learning_rate": budget.learning_rate} if budget.learning_rate and not in_last_stage(config) else {},
    )  # fmt: skip
    start_at_base_rates(model, rows["labels"])
    trainer = new_trainer(model, run.source.task, tokenizer, arguments, rows)
    if budget.depth_rate != 1.0:
        slow_down(trainer, budget.depth_rate)
    return trainer


def slow_down(trainer: Trainer, depth_rate: float) -> None:
    """Give the adapters of every layer the learning rate of the layer above, times `depth_rate`."""
    depths = trainer.model.depths
    rates = {
        parameter: depth_rate ** (len(depths) - 1 - number)
        for number, depth in enumerate(depths)
        for parameter in depth.parameters()
    }
    optimizer = trainer.create_optimizer()
    for group in list(optimizer.param_groups):
        moved = [each for each in group["params"] if each in rates]
        group["params"] = [each for each in group["params"] if each not in rates]
        for each in moved:
            slower = {"lr": group["lr"] * rates[each], "weight_decay": group["weight_decay"]}
            optimizer.add_param_group({"params": [each], **slower})


@torch.no_grad()
def token_facts(model: PFBerxitForSequenceClassification, rows: Dataset) -> dict[str, float | None]:
    """The mean layer these rows' tokens exit after, and the share of multiply-adds that saves; None: no token exits."""
    if model.token_exits is None:
        return {"token_layers": None, "macs_saved": None}
    encoder, depths = model.backbone.config, [model.token_exits(torch.tensor([ids]), None) for ids in rows["input_ids"]]
    cost = sum(token_macs(encoder, row).item() for row in depths)
    whole = sum(token_macs(encoder, torch.full_like(row, len(model.depths))).item() for row in depths)
    return {"token_layers": torch.cat(depths, dim=1).float().mean().item(), "macs_saved": 1 - cost / whole}
