"""The whole story on one small data set: fine-tune, exit early, save, load back as remote code, classify."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed

from ..data import DIFFICULTIES
from ..data.tasks import Task, encode, load_task
from ..evaluation.recording import record
from ..evaluation.settings import Setting, as_table, earlier, histogram, measure
from ..model.criteria import CRITERIA, able
from ..model.exit_policy import describe
from ..model.systems import SYSTEMS, check_system
from ..model.validation import refuse
from ..training.finetuning import new_model, new_tokenizer, new_trainer, start_at_base_rates, training_arguments
from ..training.finished import POINTS, choose_policies, save
from ..training.model_card import usage_snippet
from ..training.strategies import train as run_strategy
from .named_encoders import named_backbone

MAX_LENGTH = 128  # tokens of a message that are read
SENTENCES = [
    "Where is my parcel? It was due on Monday.",
    "I don't want another kettle, I want the 40 euros for the first one back.",
    "The robot has been driving in circles since the last update, rather like my patience.",
]


def quickstart(
    backbone: str | None, dataset: str, config: str | None, system: str, output: str, epochs: float, held_out: int,
    seed: int, columns: dict[str, Any] | None, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Run it; `say` is called with what was measured in this run, as it is found."""
    backbone = named_backbone(backbone)
    task, data = load_task(dataset, config, **(columns or {}))
    if not 0 < held_out < len(data["train"]):
        refuse("held_out", held_out, f"at least 1 and fewer than the {len(data['train'])} training rows")
    knobs = choice_of(system, task)
    tokenizer = new_tokenizer(backbone)
    tokenizer.model_max_length = MAX_LENGTH  # saved with it: what commands on the model will read
    shuffled = data["train"].shuffle(seed=seed)
    train = encode(task, shuffled.select(range(held_out, len(shuffled))), tokenizer, MAX_LENGTH)
    chosen_on = encode(task, shuffled.select(range(held_out)), tokenizer, MAX_LENGTH)
    evaluation = encode(task, data[task.evaluation_split], tokenizer, MAX_LENGTH)

    set_seed(seed)
    model = new_model(backbone, task, **knobs)
    say(f"\n{task.name}: {len(train)} rows to train, {held_out} to choose thresholds, {len(evaluation)} to test on")
    model.print_trainable_parameters()
    arguments = training_arguments(
        os.path.join(output, "training"), model.config.train_backbone, num_train_epochs=epochs,
        per_device_train_batch_size=16, seed=seed,
    )  # fmt: skip
    start_at_base_rates(model, train["labels"])
    run_strategy(model, lambda: new_trainer(model, task, tokenizer, arguments, train))

    model.eval()
    policies = choose_policies(model, record(model, chosen_on))
    settings = measure(model, task, evaluation, policies)
    say("\n" + as_table(settings, task.metric) + "\n")
    for name, policy in policies.items():
        say(f"{name}: {describe(policy)}")
    if missing := [name for name in POINTS if name not in policies]:
        say(f"Not named, since the rule has no more settings that save layers here: {', '.join(missing)}")
    middle = settings[len(settings) // 2]
    groups = depth_groups(data[task.evaluation_split], middle, task)
    say(f"\nWhere rows left at '{middle.name}':\n{histogram(groups, middle.layers)}\n")
    notes = difficulty_note(groups) if len(groups) > 1 else ""
    say(notes)

    folder = Path(output) / f"pfberxit-{task.name}"
    training = f"{task.dataset}, {len(train)} rows, {epochs:g} epochs, seed {seed}"
    tokenizer.save_pretrained(folder)
    facts: dict[str, Any] = {"training": training, "texts": SENTENCES, "groups": groups, "notes": notes}
    save(folder, model, task, settings, record(model, evaluation), **facts)
    say(f"\nWrote {folder} ({os.path.getsize(folder / 'model.safetensors') / 1e6:.2f} MB of weights).")
    say(classify_in_a_fresh_process(folder, task, middle.name if policies else None))


def choice_of(system: str, task: Task) -> dict:
    """The system's knobs with patience 1, as six layers have little room for more; for values, a rule that judges them.

    Raises:
        ValueError: an unknown system, or one without an exit criterion.
    """
    check_system(system)
    rule = SYSTEMS[system].criterion
    if rule is None:
        refuse("system", system, "one whose rows leave by a rule; `pfberxit compare` knows all of them")
    fits = task.problem_type in CRITERIA[rule].problem_types
    return {"system": system, "exit_patience": 1, "exit_criterion": rule if fits else able(task.problem_type)[0]}


def depth_groups(rows: Dataset, setting: Setting, task: Task) -> dict[str, np.ndarray]:
    """Executed layers (N,) by difficulty, a column of the support desk; of other data all together."""
    if task.dataset != "support_desk":
        return {"all": setting.depths}
    kinds = np.asarray(rows["difficulty"])
    return {kind: setting.depths[kinds == kind] for kind in DIFFICULTIES}


def difficulty_note(groups: dict[str, np.ndarray]) -> str:
    """Whether plain rows left earlier than the others, with the interval of the difference, whatever its sign."""
    plain, other = groups["plain"], np.concatenate([groups[kind] for kind in DIFFICULTIES[1:]])
    mean, low, high = earlier(plain, other)
    verdict = (
        "earlier" if low > 0 else "later" if high < 0 else "neither earlier nor later, as far as these rows can tell"
    )
    return (
        f"Plain messages left after {plain.mean():.2f} layers, the others after {other.mean():.2f}: "
        f"a difference of {mean:+.2f} (95 % bootstrap interval {low:+.2f} to {high:+.2f}), {verdict}."
    )


def classify_in_a_fresh_process(folder: Path, task: Task, point: str | None) -> str:
    """What a fresh process prints that loads the folder with the code it carries and classifies three sentences."""
    code = usage_snippet(str(folder), SENTENCES, task.problem_type, point)
    code += "print(f\"\\n(model class from {type(model).__module__.split('.')[0]})\")\n"
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return f"Loaded back in a fresh process, with the code in the folder:\n\n{done.stdout}"
