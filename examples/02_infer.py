# /// script
# dependencies = ["modeling-pfberxit[train]"]
# ///
"""2. Choose how eager to be: a sweep of the threshold tau and the patience t, then one call.

    python examples/02_infer.py runs/topics --dataset support_desk --config topics

One full-depth pass records the evidence of every exit; every setting is then computed from it, exactly as it would run.
"""

import argparse

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.frontier import grid, sweep
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.tables import header, line
from modeling_pfberxit.model.criteria import CRITERIA, able
from modeling_pfberxit.model.exit_policy import FULL_DEPTH, describe


def main() -> None:
    """Print the sweep, then where one text exits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model")
    parser.add_argument("--dataset", default="support_desk")
    parser.add_argument("--config")
    parser.add_argument("--text", help="the column of texts, where it is not certain")
    parser.add_argument("--pair", help="the column of second texts")
    parser.add_argument("--label", nargs="+", help="the column of labels, or one of 0 and 1 for each")
    parser.add_argument("--criterion", choices=CRITERIA)
    parser.add_argument("--divergence", default="kl")
    parser.add_argument("--patience", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=6, help="thresholds tried for each patience")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, trust_remote_code=True).eval()
    columns = {"text": options.text, "pair": options.pair, "label": options.label}
    task, data = load_task(options.dataset, options.config, **columns, model=model)
    rows = encode(task, data[task.evaluation_split], tokenizer)
    recording = record(model, rows)

    criterion = options.criterion or able(task.problem_type)[0]
    base = ExitPolicy(divergence=options.divergence)
    policies = [FULL_DEPTH, *grid(recording, criterion, base, options.steps, options.patience)]
    print(header(["policy", task.metric, "mean depth", "speed-up", "layers saved"]))
    for point in sweep(recording, policies, task.metric):
        costs = [f"{point.layers:.2f}", f"{point.speed_up:.2f}", f"{100 * point.saved:.0f} %"]
        print(line([describe(point.policy), f"{point.score:.3f}", *costs]))

    first = data[task.evaluation_split][0]
    with torch.inference_mode():
        tokens = tokenizer(*(first[name] for name in task.texts), return_tensors="pt")
        output = model(**tokens, exit_policy=point.policy)
    print(f"\nBy the last of these the first text left after layer {output.exit_layer.item()}.")


if __name__ == "__main__":
    main()
