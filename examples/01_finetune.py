# /// script
# dependencies = ["modeling-pfberxit[train]"]
# ///
"""1. Fine-tune adapters and exits with the stock `Trainer`, in Python.

    python examples/01_finetune.py --dataset nyu-mll/glue --config mrpc --num_train_epochs 5 --output_dir runs/mrpc
    python examples/01_finetune.py --dataset reviews.csv --text review --label stars --output_dir runs/reviews

All of `TrainingArguments` may be given; their defaults here suit adapters (learning rate 1e-3). `pfberxit train` does
more: it keeps the best model, goes on with a run that was killed, chooses exit settings and writes a card.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser, TrainingArguments, set_seed

from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.frontier import layer_scores
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.training.finetuning import (
    new_model,
    new_tokenizer,
    new_trainer,
    start_at_base_rates,
    training_defaults,
)


@dataclass
class Arguments:
    """What to fine-tune, on what."""

    backbone: str = field(default="albert/albert-base-v2", metadata={"help": "Hub id or folder of an encoder"})
    dataset: str = field(default="support_desk", metadata={"help": "file, folder, glob, Hub id, or the package's own"})
    config: str | None = field(default=None, metadata={"help": "the data set's configuration, e.g. a GLUE task"})
    text: str | None = field(default=None, metadata={"help": "the column of texts, where it is not certain"})
    pair: str | None = field(default=None, metadata={"help": "the column of second texts"})
    label: list[str] | None = field(default=None, metadata={"help": "the column of labels, or one of 0 and 1 for each"})
    max_length: int = field(default=128, metadata={"help": "texts are cut to this many tokens"})
    rows: int = field(default=0, metadata={"help": "training rows at most, 0: all"})


def main() -> None:
    """Train, print the score of every exit, save."""
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(**training_defaults(), output_dir="runs/finetuned")
    options, arguments = parser.parse_args_into_dataclasses()

    columns = {"text": options.text, "pair": options.pair, "label": options.label}
    task, data = load_task(options.dataset, options.config, **columns)
    tokenizer = new_tokenizer(options.backbone)
    tokenizer.model_max_length = options.max_length  # saved with it: what commands on the model will read
    train = data["train"].shuffle(seed=arguments.seed)
    train = train.select(range(min(options.rows, len(train)) or len(train)))
    train = encode(task, train, tokenizer, options.max_length)
    evaluation = encode(task, data[task.evaluation_split], tokenizer, options.max_length)

    set_seed(arguments.seed)
    model = new_model(options.backbone, task)  # and any field of the config: adapter_dim=16, system="berxit" ...
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
