"""A saved model and a split of a data set, encoded with the model's own labels; commands begin with these."""

import json
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..data.tasks import Task, encode, load_task
from ..data.texts import ALL, length_of
from ..model.backbones import longest_input
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.sources import read_config
from ..model.validation import refuse, whole
from .recording import Recording, record


def load_model(
    name: str, device: str | None = None, dtype: str | None = None, backbone: PreTrainedModel | None = None
) -> tuple[PFBerxitForSequenceClassification, PreTrainedTokenizerBase]:
    """A saved model in evaluation mode and its tokenizer.

    Args:
        device: for `torch.device`; default: a GPU where there is one.
        dtype: of the weights; default: as they were saved.
        backbone: another model's, which it is to stand on instead of one of its own.

    Raises:
        ValueError, OSError: it is another kind of model; a device that is not there.
    """
    kind = read_config("model", name).get("model_type")
    if kind != PFBerxitConfig.model_type:
        refuse("model", name, f"a PF-BERxiT model; this is a plain {kind}, which `pfberxit retrofit` makes one of")
    place = check_device(device)
    options: dict[str, Any] = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    options |= {} if backbone is None else {"backbone": backbone}
    model = PFBerxitForSequenceClassification.from_pretrained(name, **options)
    return model.to(place).eval(), load_tokenizer(name)


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with a model; it pads on the right, whatever side it was saved with.

    Raises:
        OSError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, padding_side="right")
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"model={name!r}: its tokenizer could not be loaded ({reason}). "
            f"tokenizer.save_pretrained({name!r}) puts one beside the model."
        ) from error


def check_device(name: str | None) -> torch.device:
    """A device that is there, by its name; the usual one where none is given."""
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name or usual)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        refuse("device", name, f"one that this machine has, such as {usual} ({str(error).splitlines()[0]})")
    return device if device.type != "meta" else refuse("device", name, f"one that computes, such as {usual}")


def tokens_read(model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    """How many tokens of a text the model reads: as asked for, or as its tokenizer was saved."""
    return length_of(tokenizer, longest_input(model.config.encoder_config()), asked)


def asked_policy(text: str | None) -> str | dict[str, Any] | None:
    """What `--policy` asks for, as a call's `exit_policy`: a name, or the fields in a JSON object."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        refuse("policy", text, f"the name of an operating point or a JSON object ({error})")


def model_and_rows(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any] | None = None
) -> tuple[PFBerxitForSequenceClassification, Task, Dataset]:
    """A saved model, the task with the model's own labels, and a split of its data (or `all` of them), encoded.

    Args:
        columns: the data set's columns that are named, as `load_task` takes them.
    """
    loaded = PFBerxitForSequenceClassification.from_pretrained(model).eval()
    every = split if split == ALL else None  # any other is looked for when a part has been held out
    task, data = load_task(dataset, config, **(columns or {}), split=every, model=loaded)
    split = split or task.evaluation_split
    if split not in data:
        refuse("split", split, f"one of {', '.join(data)}, or all")
    part = data[split] if not whole(0)("rows", rows) else data[split].select(range(min(rows, len(data[split]))))
    tokenizer = load_tokenizer(model)
    return loaded, task, encode(task, part, tokenizer, tokens_read(loaded, tokenizer, None))


def recorded(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any] | None = None
) -> tuple[PFBerxitForSequenceClassification, Task, Recording]:
    """A saved model, the task, and a recording of the model on a split of its data."""
    loaded, task, encoded = model_and_rows(model, dataset, config, split, rows, columns)
    split = split or task.evaluation_split
    source = {"dataset": task.dataset, "config": task.config, "split": split, "metric": task.metric}
    return loaded, task, record(loaded, encoded, **source)
