"""`pfberxit precision`: rows whose exit or label changes in lower precision."""

from argparse import ArgumentParser
from typing import Any

from .options import add_model_and_data

HELP = "rows whose exit or label changes in bf16, fp16 or int8"


def add_arguments(parser: ArgumentParser) -> None:
    """A saved model, its data, and the precisions to compare with fp32."""
    add_model_and_data(parser)
    parser.add_argument(
        "--precisions", nargs="+", default=["bfloat16"], help="float16 (slow on CPU), int8 (needs torchao)"
    )
    parser.add_argument("--policy", help="name of an operating point (default: the config's own)")


def run(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any],
    precisions: list[str], policy: str | None,
) -> None:  # fmt: skip
    """Record a split in every precision, and print the shares of rows that change under a policy."""
    from modeling_pfberxit.evaluation.precision import as_markdown, compare_precisions
    from modeling_pfberxit.evaluation.saved_model import model_and_rows
    from modeling_pfberxit.model.exit_policy import describe, resolve_policy
    from modeling_pfberxit.model.losses import problem_type_of
    from modeling_pfberxit.model.validation import refuse

    loaded, task, encoded = model_and_rows(model, dataset, config, split, rows, columns)
    asked = resolve_policy(policy, loaded.config, loaded.exit_depths, problem_type_of(loaded.config))
    if asked is None:
        refuse("policy", policy, "an operating point, or a config with a threshold: without one no row leaves early")
    found = compare_precisions(loaded, encoded, asked, precisions)
    print(f"{task.name}, {len(encoded)} rows, {describe(asked)}\n\n{as_markdown(found)}")
