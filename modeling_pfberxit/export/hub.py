"""A folder as the Hub has it: `onnx/model.onnx` of tokens alone, `onnx/model_adjustable.onnx` beside it, a card.

`transformers.js` takes the first by its name. It knows a model by the `model_type` of the folder's config.json, and
ours is none of its own: a folder of ONNX files alone gets a config of the encoder's type, one that holds a checkpoint
keeps its own, and `config` is then given with the call, as its card says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.texts import NO_LIMIT, length_of
from ..model.backbones import longest_input
from ..model.exit_policy import describe
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.persistence import replacing
from ..model.validation import label_names, refuse
from .beside import TOKENIZER, check_beside, write_beside
from .exportable import check_tokenizer
from .files import Exported, check_promise, eight_bits, exported, form_of
from .int8 import in_words, promise_in_words
from .made import Form, Promise, Small
from .storage import write
from .verification import Row

FOLDER, BUILT_IN, ADJUSTABLE = "onnx", "model.onnx", "model_adjustable.onnx"
# The encoders that `transformers.js` has a sequence classifier of; any of them is run alike.
KNOWN = ("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "eurobert", "modernbert", "mpnet",
         "roberta", "xlm-roberta")  # fmt: skip
TITLE = "## In ONNX"
CARD = """\
`onnx/model.onnx` exits by itself, by {rule}; it takes tokens alone. `onnx/model_adjustable.onnx` takes `tau` and
`patience` of every row as well. Both give `logits` and `exit_layer`.

```python
from classifier import Classifier  # onnx/classifier.py, on numpy, onnxruntime and tokenizers

Classifier("onnx/model_adjustable.onnx")("a text", exit_policy={{}})  # label, score and exit_layer
```

```js
import {{ pipeline }} from "@huggingface/transformers";

const classify = await pipeline("text-classification", "{name}", {options});
await classify("a text");
```
"""


def export_hub(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, folder: str | Path,
    policy: Any = None, max_length: int | None = None, int8: bool = False, runner: Path | None = None,
    rows: Sequence[Row] = (), promise: Promise | None = None,
) -> Exported:  # fmt: skip
    """Write the files of a Hub repository into a folder, which may hold the model's checkpoint; as `export_file`."""
    folder = Path(folder)
    check_promise(promise, int8, rows)
    paths = [folder / FOLDER / name for name in (BUILT_IN, ADJUSTABLE)]
    check_config(folder / "config.json", model)
    check_tokenizer(tokenizer)
    longest = longest_input(model.config.encoder_config())
    length = length_of(tokenizer, longest, max_length)
    check_length(folder / "tokenizer_config.json", tokenizer, longest, length)
    check_beside(folder / BUILT_IN, tokenizer, None)
    check_beside(paths[0], None, runner)
    forms = [form_of(model, tokenizer, policy, max_length, rows, built_in=True)]
    forms.append(Form(forms[0].segments, forms[0].policy, forms[0].facts, rows))
    built_in, adjustable = (form.made(str(path)) for form, path in zip(forms, paths))
    small = forms[0].in_8_bits(built_in, str(paths[0]), promise) if int8 else None
    write_beside(paths[0], None, runner)
    write(built_in.proto, paths[0])
    write(adjustable.proto, paths[1])
    if small is not None:
        write(small.proto, eight_bits(paths[0]))
    around(folder, model, tokenizer, forms[0], small)
    return exported(paths[0], forms[0], built_in.compared.and_then(adjustable.compared), small)


def around(
    folder: Path, model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, form: Form,
    small: Small | None,
) -> None:  # fmt: skip
    """Tokenizer, config and card, where they are not there yet; of a card that is, the section."""
    if not (folder / TOKENIZER).exists():
        tokenizer.save_pretrained(folder)
        set_length(folder / "tokenizer_config.json", form.facts["max_length"])
    config = folder / "config.json"
    own = config_for_javascript(model)
    if not config.exists():
        write_json(config, own)
    options = options_of(json.loads(config.read_text(encoding="utf-8")), own)
    text = CARD.format(rule=describe(form.policy), name=folder.resolve().name, options=json.dumps(options))
    if small is not None:
        name = f"{FOLDER}/{eight_bits(Path(BUILT_IN)).name}"
        text += f"\n`{name}`: {in_words(small.measured)} {promise_in_words(small.certificate)}"
    put_section(folder, TITLE, text.rstrip() + "\n")


def options_of(there: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What a call of `pipeline` in JavaScript needs: float32 by name, since its own default asks for other files.

    Args:
        there: the folder's config; own: one that `transformers.js` knows.
    """
    needed = {name: own[name] for name in ("model_type", "id2label", "problem_type")}
    return {"dtype": "fp32"} | ({} if there.get("model_type") in KNOWN else {"config": needed})


def check_length(path: Path, tokenizer: PreTrainedTokenizerBase, longest: float, length: int) -> None:
    """Refuse a folder whose tokenizer cuts texts to another length than the file."""
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8")).get("model_max_length", tokenizer.model_max_length)
        if int(min(longest, there, NO_LIMIT)) != length:
            refuse("max_length", length, f"{there}, as the tokenizer in {path.parent} was saved, or another folder")


def check_config(path: Path, model: PFBerxitForSequenceClassification) -> None:
    """Refuse a folder whose config is neither this checkpoint's nor what would be written."""
    if not path.exists():
        return
    there, own = json.loads(path.read_text(encoding="utf-8")), json.loads(as_json(config_for_javascript(model)))
    same = there.get("weights_sha256") == model.config.weights_sha256
    if there != own and not (there.get("model_type") == model.config.model_type and same):
        refuse("hub", str(path.parent), f"another folder: {path} is another model's")


def config_for_javascript(model: PFBerxitForSequenceClassification) -> dict[str, Any]:
    """The encoder's config with the labels, of a type that `transformers.js` has a classifier of."""
    config, encoder = model.config, model.config.encoder_config()
    kind = encoder.model_type if encoder.model_type in KNOWN else "bert"
    kept = {name: value for name, value in encoder.to_dict().items() if name not in ("auto_map", "architectures")}
    labels = {str(number): name for number, name in enumerate(label_names(config))}
    return {**kept, "model_type": kind, "id2label": labels, "label2id": {name: int(n) for n, name in labels.items()},
            "problem_type": problem_type_of(config)}  # fmt: skip


def set_length(path: Path, length: int) -> None:
    """Let the saved tokenizer cut texts where the file expects it."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "model_max_length": length})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON file, in one move."""
    with replacing(path) as draft:
        draft.write_text(as_json(values), encoding="utf-8")


def as_json(values: dict[str, Any]) -> str:
    """With indents, and a line's end."""
    return json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"


def put_section(folder: Path, title: str, text: str) -> None:
    """Put a section under a title ("## ...") at the end of a folder's card, in place of the one there."""
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8") if path.exists() else f"# {folder.resolve().name}\n"
    former = re.compile(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    with replacing(path) as draft:
        draft.write_text(f"{former.sub('', card).rstrip()}\n\n{title}\n\n{text}", encoding="utf-8")
