# /// script
# dependencies = ["modeling-pfberxit[train]"]
# ///
"""2. Choose how eager to be: a sweep of the threshold tau and the patience t, then one call.

    python examples/02_infer.py runs/topics --dataset support_desk --config topics

One full-depth pass records what every exit says; all settings are then computed from it, exactly as they would run.
"""

import argparse
from dataclasses import replace

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.frontier import never, sweep
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.replay import candidate_thresholds
from modeling_pfberxit.model.criteria import CRITERIA


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
    recording = record(model, rows)

    criterion = options.criterion or ("patience" if task.problem_type == "regression" else "divergence_v1")
    print(f"| t | tau | {task.metric} | mean depth | layers saved |\n|---:|---:|---:|---:|---:|")
    (full,) = sweep(recording, [never(recording)], task.metric)
    print(f"|  | off | {full.score:.3f} | {len(model.depths)} | 0 % |")
    for patience in options.patience:
        base = ExitPolicy(criterion, options.divergence, threshold=0.0, patience=patience)
        taus = candidate_thresholds(recording.evidence, base, task.problem_type, options.steps)[1:]
        for point in sweep(recording, [replace(base, threshold=round(tau, 4)) for tau in taus], task.metric):
            cells = f"{point.policy.threshold:.4f} | {point.score:.3f} | {point.layers:.2f} | {100 * point.saved:.0f} %"
            print(f"| {patience} | {cells} |")

    text = data[task.evaluation_split][0][task.texts[0]]
    with torch.inference_mode():
        output = model(**tokenizer(text, return_tensors="pt"), exit_policy={**vars(point.policy), "patience": 1})
    print(f"\nAt tau = {point.policy.threshold} the first text left after layer {output.exit_layer.item()}.")


if __name__ == "__main__":
    main()
