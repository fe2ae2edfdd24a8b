"""`pfberxit train`: a classifier with exits from labelled texts, in a folder that is ready to be pushed."""

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from .options import add_columns, add_execution, add_policy, add_source, add_split

HELP = "fine-tune a classifier with exits on labelled texts, choose settings, write a folder ready to be pushed"
TAKES_OTHERS = True  # options that are none of these are fields of TrainingArguments, each with one value
USUAL = {"backbone": "albert/albert-base-v2", "max_length": None, "rows": 0}


def add_arguments(parser: ArgumentParser) -> None:
    """Data, an encoder, a system or recipe, and what is kept; TrainingArguments under their own names."""
    parser.epilog = (
        "All fields of TrainingArguments may be given under their own names, such as --num_train_epochs 3, --seed 1 or "
        "--resume_from_checkpoint true, which goes on with a run that was killed."
    )
    add_source(parser)
    add_columns(parser)
    add_split(parser, "to report on (default: validation, dev or test; without one, a fifth of the rows is held out)")
    parser.add_argument("--backbone", help="Hub id or folder of an encoder, or minilm (default: albert/albert-base-v2)")
    parser.add_argument("--revision", help="the encoder's commit on the Hub (default: newest)")
    parser.add_argument("--system", help="a published system (default: pf-berxit); an unknown name lists them")
    parser.add_argument(
        "--recipe", help="sst2, mrpc, stsb, sst2-wide, stsb-wide, topics: values for what is not given here"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", dest="knobs", help="config fields to set")
    parser.add_argument("--rows", type=int, help="training rows at most (default: all)")
    parser.add_argument("--held-out", type=int, help="of them, to choose on (default: a tenth, 1,000 at most)")
    parser.add_argument("--class-weights", choices=["balanced"], help="weigh rare labels more, in every exit's loss")
    parser.add_argument(
        "--early-stopping", type=int, default=3, metavar="N",
        help="end after N evaluations without a better mean score of the exits; the best model is kept (0: never end)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FOLDER", help="for the model; checkpoints go beside it")
    parser.add_argument("--push", nargs="?", const="", metavar="REPO", help="to the Hub (default: the folder's name)")
    add_policy(parser, "fields of the exit policy in JSON, instead of the system's")
    add_execution(parser)


def run(output: str, push: str | None, others: Sequence[str] = (), **options: Any) -> None:
    """Train, print the scores of all exits and the settings that were chosen, save, perhaps push."""
    from modeling_pfberxit.training.session import run_session

    plan, repos = plan_of(output, others, **options), list[str]()

    def create() -> None:
        """The repository, which is refused before hours of training rather than after them."""
        if push is not None:
            from huggingface_hub import create_repo

            repos.append(create_repo(push or plan.name, exist_ok=True).repo_id)

    if run_session(plan, print, create) and repos:
        from huggingface_hub import upload_folder

        print(f"Pushed to {upload_folder(repo_id=repos[0], folder_path=output).repo_url}")


def plan_of(
    output: str, others: Sequence[str], dataset: str, config: str | None, columns: dict[str, Any], split: str | None,
    recipe: str | None, system: str | None, knobs: list[str], class_weights: str | None, held_out: int | None,
    early_stopping: int, policy: str | None, device: str | None, dtype: str | None, **given: Any,
) -> Any:  # fmt: skip
    """What the options ask for, over the recipe's values, over the usual ones; everything is checked here."""
    from modeling_pfberxit.evaluation.saved_model import asked_policy
    from modeling_pfberxit.model.systems import check_system
    from modeling_pfberxit.model.validation import refuse, whole
    from modeling_pfberxit.studies.named_encoders import named_backbone
    from modeling_pfberxit.training.fields import training_fields
    from modeling_pfberxit.training.plan import Plan, execution_fields
    from modeling_pfberxit.training.recipes import load_recipe, sorted_out

    values, fixed, fields = sorted_out(load_recipe(recipe) if recipe else {})
    values = {**USUAL, **values, **{name: value for name, value in given.items() if value is not None}}
    if config is None and values.get("dataset") == dataset:
        config = values.get("config")
    if system is not None:
        check_system(system)
        fixed["system"] = system
    rule = asked_policy(policy)
    if isinstance(rule, str):
        refuse("policy", rule, "a JSON object of its fields; a new model has no operating points")
    asked = training_fields(others, own_options())
    if dtype is not None and (twice := [f"--{name}" for name in ("bf16", "fp16") if name in asked]):
        refuse("dtype", dtype, f"left out beside {' and '.join(twice)}")
    return Plan(
        dataset, output, named_backbone(values["backbone"]), config, columns, split, values.get("revision"),
        {**fixed, **knobs_of(knobs)}, rule or {}, values["max_length"], whole(0)("rows", values["rows"]),
        held_out, class_weights == "balanced", whole(0)("early_stopping", early_stopping),
        {**fields, **execution_fields(device, dtype), **asked},
    )  # fmt: skip


def knobs_of(words: Sequence[str]) -> dict[str, Any]:
    """`adapter_dim=16` -> {"adapter_dim": 16}: values as JSON where they are, else as strings."""
    import json

    from modeling_pfberxit.model.validation import refuse

    found: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            refuse("set", word, "NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def own_options() -> list[str]:
    """The options of this command."""
    parser = ArgumentParser()
    add_arguments(parser)
    return list(parser._option_string_actions)
