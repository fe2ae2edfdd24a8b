# /// script
# dependencies = ["modeling-pfberxit[train]"]
# ///
"""2. Choose how eager to be: a sweep of the threshold tau and the patience t, then one call.

    python examples/02_infer.py runs/topics --dataset support_desk --config topics

One full-depth pass records what every exit says; all settings are then computed from it, exactly as they would run.
"""

import argparse

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.criteria import CRITERIA
from modeling_pfberxit.evaluation.replay import candidate_thresholds, record, replay, with_threshold
from modeling_pfberxit.training.metrics import score
from modeling_pfberxit.training.tasks import encode, load_task


def main() -> None:
    """Print the sweep, then where single texts leave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model")
    parser.add_argument("--dataset", default="support_desk")
    parser.add_argument("--config")
    parser.add_argument("--criterion", choices=[name for name in CRITERIA if name != "appointed"])
    parser.add_argument("--divergence", default="kl")
    parser.add_argument("--patience", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=6, help="thresholds tried for each patience")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, trust_remote_code=True).eval()
    task, data = load_task(options.dataset, options.config)
    rows = encode(task, data[task.evaluation_split], tokenizer)
    loader = DataLoader(rows, batch_size=64, collate_fn=DataCollatorWithPadding(tokenizer))
    evidence, labels = record(model, loader)

    criterion = options.criterion or ("patience" if task.problem_type == "regression" else "divergence_v1")
    print(f"| t | tau | {task.metric} | mean depth | layers saved |\n|---:|---:|---:|---:|---:|")
    full = score(task.metric, evidence.logits[:, -1].numpy(), labels.numpy())
    print(f"|  | off | {full:.3f} | {len(model.depths)} | 0 % |")
    for patience in options.patience:
        base = ExitPolicy(criterion, options.divergence, threshold=0.0, patience=patience)
        for tau in candidate_thresholds(evidence, base, task.problem_type, options.steps)[1:]:
            policy = with_threshold(base, round(tau, 4))
            answers, layers = replay(evidence, policy, model.exit_depths, task.problem_type)
            value, depth = score(task.metric, answers.numpy(), labels.numpy()), layers.float().mean().item()
            saved = 100 * (1 - depth / len(model.depths))
            print(f"| {patience} | {policy.threshold:.4f} | {value:.3f} | {depth:.2f} | {saved:.0f} % |")

    text = data[task.evaluation_split][0][task.texts[0]]
    with torch.inference_mode():
        output = model(**tokenizer(text, return_tensors="pt"), exit_policy={**vars(policy), "patience": 1})
    print(f"\nAt tau = {policy.threshold} the first text left after layer {output.exit_layer.item()}.")


if __name__ == "__main__":
    main()
