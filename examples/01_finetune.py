# /// script
# dependencies = ["modeling-pfberxit[train]"]
# ///
"""1. Fine-tune adapters and exits with the stock `Trainer`.

    python examples/01_finetune.py --dataset nyu-mll/glue --config mrpc --num_train_epochs 5 --output_dir runs/mrpc
    python examples/01_finetune.py --dataset support_desk --config topics --output_dir runs/topics
    python examples/01_finetune.py --dataset reviews.csv --text review --label stars --output_dir runs/reviews
    python examples/01_finetune.py --recipe sst2 --output_dir runs/sst2

`--dataset` takes a Hub id, a folder, or one file (csv, tsv, json, jsonl, parquet), of which a fifth of the rows, drawn
with seed 0, is held out to evaluate on. Columns are named where they are not certain. `--backbone` takes any Hub
id or folder of an ALBERT, BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA or DistilBERT. All of `TrainingArguments` may
be given; their defaults here suit adapters (learning rate 1e-3). A recipe stands for arguments; those beside it win.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser, TrainingArguments, set_seed

from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.frontier import layer_scores
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.model.adapters import SUBLEARNERS
from modeling_pfberxit.training.finetuning import (
    new_model,
    new_tokenizer,
    new_trainer,
    start_at_base_rates,
    training_defaults,
)
from modeling_pfberxit.training.recipes import load_recipe


@dataclass
class Arguments:
    """What to fine-tune, on what."""

    recipe: str | None = field(default=None, metadata={"help": "a file of configuration/recipes/, without .json"})
    backbone: str = field(
        default="albert/albert-base-v2", metadata={"help": "Hub id or folder of a pretrained encoder"}
    )
    revision: str | None = field(default=None, metadata={"help": "the encoder's commit on the Hub (default: newest)"})
    dataset: str = field(default="support_desk", metadata={"help": "Hub id, folder, file, or the one in the package"})
    config: str | None = field(default=None, metadata={"help": "the data set's configuration, e.g. a GLUE task"})
    text: str | None = field(default=None, metadata={"help": "the column of texts, where it is not certain"})
    pair: str | None = field(default=None, metadata={"help": "the column of second texts"})
    label: list[str] | None = field(default=None, metadata={"help": "the column of labels, or one of 0 and 1 for each"})
    problem_type: str | None = field(default=None, metadata={"help": "where numbers may be classes or values"})
    label_form: str | None = field(default=None, metadata={"help": "where lists may be ids or 0 and 1 for each label"})
    max_length: int = field(default=128, metadata={"help": "texts are cut to this many tokens"})
    rows: int = field(default=0, metadata={"help": "training rows at most, 0: all"})
    adapter_sublearner: str = field(default="mlp", metadata={"help": "one of " + ", ".join(SUBLEARNERS)})
    adapter_dim: int = field(default=32, metadata={"help": "r, the bottleneck"})
    train_backbone: bool = field(default=False, metadata={"help": "train all weights, not only adapters and exits"})


def main() -> None:
    """Train, print the score of every exit, save."""
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(**training_defaults(), output_dir="runs/finetuned")
    if recipe := parser.parse_known_args()[0].recipe:
        parser.set_defaults(**load_recipe(recipe))
    options, arguments = parser.parse_args_into_dataclasses()

    named = {name: getattr(options, name) for name in ("text", "pair", "label", "problem_type", "label_form")}
    task, data = load_task(options.dataset, options.config, **named)
    tokenizer = new_tokenizer(options.backbone, options.revision)
    train = data["train"].shuffle(seed=arguments.seed)
    train = train.select(range(min(options.rows, len(train)) or len(train)))
    train = encode(task, train, tokenizer, options.max_length)
    evaluation = encode(task, data[task.evaluation_split], tokenizer, options.max_length)

    set_seed(arguments.seed)
    model = new_model(
        options.backbone,
        task,
        revision=options.revision,
        adapter_sublearner=options.adapter_sublearner,
        adapter_dim=options.adapter_dim,
        train_backbone=options.train_backbone,
    )
    model.print_trainable_parameters()
    start_at_base_rates(model, train["labels"])
    trainer = new_trainer(model, task, tokenizer, arguments, train, evaluation)
    trainer.train()

    scores = layer_scores(record(model, evaluation), task.metric)
    print(f"\n{task.metric} on {task.evaluation_split}, by exit layer:")
    print("  ".join(f"{depth}: {score:.3f}" for depth, score in zip(model.exit_depths, scores)))
    trainer.save_model()  # adapters, exits, the tokenizer, and the code that loads them
    print(f"Saved to {arguments.output_dir}")


if __name__ == "__main__":
    main()
