# /// script
# dependencies = ["modeling-pfberxit[train]", "peft"]
# ///
"""7. LoRA in the encoder, beside adapters and exits: nearer to full fine-tuning, and still a small checkpoint.

    python examples/07_lora.py --dataset nyu-mll/glue --config mrpc --max_length 64 --output_dir runs/mrpc

All of `TrainingArguments` may be given. What PEFT saves refers to the encoder and does not carry it; `loaded` puts both
together again, and merged they are a model like any other.
"""

from dataclasses import dataclass, field

from peft import PeftModel
from transformers import HfArgumentParser, TrainingArguments, set_seed

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.frontier import layer_scores
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.studies.beside import with_peft
from modeling_pfberxit.training.finetuning import (
    new_model,
    new_tokenizer,
    new_trainer,
    start_at_base_rates,
    training_defaults,
)


@dataclass
class Arguments:
    """What to fine-tune, on what, and how much of it learns."""

    backbone: str = field(default="albert/albert-base-v2", metadata={"help": "Hub id or folder of an encoder"})
    dataset: str = field(default="support_desk", metadata={"help": "file, folder, glob, Hub id, or the package's own"})
    config: str | None = field(default=None, metadata={"help": "the data set's configuration, e.g. a GLUE task"})
    max_length: int = field(default=128, metadata={"help": "texts are cut to this many tokens"})
    adapter_dim: int = field(default=32, metadata={"help": "bottleneck of the adapters"})
    adapter_placement: str = field(default="ffn", metadata={"help": "ffn, attention or both"})


def loaded(folder: str) -> PFBerxitForSequenceClassification:
    """What `main` saved, merged into its encoder."""
    model = PFBerxitForSequenceClassification.from_backbone(PFBerxitConfig.from_pretrained(folder))
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def main() -> None:
    """Train, save, load what was saved, print the score of its exits."""
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(**training_defaults(), output_dir="runs/lora")
    options, arguments = parser.parse_args_into_dataclasses()

    task, data = load_task(options.dataset, options.config)
    tokenizer = new_tokenizer(options.backbone)
    train, evaluation = (
        encode(task, data[split], tokenizer, options.max_length) for split in ("train", task.evaluation_split)
    )

    set_seed(arguments.seed)
    placed = {"adapter_dim": options.adapter_dim, "adapter_placement": options.adapter_placement}
    model = new_model(options.backbone, task, **placed)
    start_at_base_rates(model, train["labels"])
    model = with_peft(model, "lora")  # of rank 8, in every linear layer of the encoder
    model.print_trainable_parameters()
    trainer = new_trainer(model, task, tokenizer, arguments, train, evaluation)
    trainer.train()
    trainer.save_model()
    model.get_base_model().config.save_pretrained(arguments.output_dir)

    scores = layer_scores(record(loaded(arguments.output_dir), evaluation), task.metric)
    print(f"\n{task.metric} on {task.evaluation_split}, by exit layer: {', '.join(f'{score:.3f}' for score in scores)}")


if __name__ == "__main__":
    main()
