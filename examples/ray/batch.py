"""Answers for Parquet files on a Ray cluster; the same command goes on with what a killed one has written.

python examples/ray/batch.py FOLDER-OF-A-MODEL 'texts/*.parquet' answers --text message --workers 8
"""

import argparse

import ray

from modeling_pfberxit.serving.ray import predict_parquet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="a folder that every node has, or a Hub id")
parser.add_argument("dataset", help="a file, a folder or a glob of Parquet files that every node sees")
parser.add_argument("output", help="a folder that is not there yet")
parser.add_argument("--text", help="the column of the text, where it is not certain by its name")
parser.add_argument("--policy", help="an operating point's name (default: the model's own rule)")
parser.add_argument("--workers", type=int, default=2, help="processes, each with a model and a core")
parser.add_argument("--address", help="of a cluster (default: $RAY_ADDRESS, or one of this machine alone)")
arguments = parser.parse_args()

ray.init(address=arguments.address, log_to_driver=False)
totals = predict_parquet(
    arguments.model,
    arguments.dataset,
    arguments.output,
    text=arguments.text,
    policy=arguments.policy,
    workers=arguments.workers,
)
mean = totals.layers / max(totals.rows - totals.empty, 1)
print(f"{arguments.output}: {totals.before + totals.rows:,} rows, {totals.rows:,} of them now,")
print(f"{totals.rows_a_second:,.0f} a second; {mean:.2f} layers on average.")
