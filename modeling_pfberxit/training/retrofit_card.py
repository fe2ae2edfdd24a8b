"""The card of a retrofitted classifier: what it was made of, how often its exits agree, and a snippet."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.tables import table
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .model_card import base_of, display_name, usage_snippet
from .retrofitting import head_in_words

TEXT = """\
# {name}

`{base}` with an exit after every layer below its own head: rows leave as soon as their answer is certain. At full depth
the answers are the classifier's own; nothing in it was changed. Its exits learned from its answers to {rows:,} texts
without labels ({head}).

## Agreement with the classifier

On texts that exits did not learn from, were every row to leave there:

{agreement}

## Use

```python
{snippet}
```
"""


def write_retrofit_card(
    folder: Path, name: str, model: PFBerxitForSequenceClassification, agreement: Sequence[float], rows: int
) -> None:
    """Write `README.md` into the folder of a model.

    Args:
        agreement: of every exit below the last with the last, in [0, 1].
        rows: texts that exits learned from.
    """
    config = model.config
    base = display_name(base_of(config))
    depths = [[str(depth), f"{each:.3f}"] for depth, each in zip(model.exit_depths, agreement)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=base,
        base_model_relation="adapter" if config.adapter_only else "finetune",
        tags=["pf-berxit", "early-exit", "text-classification"],
    )
    snippet = usage_snippet(name, ["..."], problem_type_of(config), None).rstrip()
    text = TEXT.format(
        name=name, base=base, rows=rows, head=head_in_words(config), snippet=snippet,
        agreement=table(["layer", "agreement"], depths, align="rr"),
    )  # fmt: skip
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
