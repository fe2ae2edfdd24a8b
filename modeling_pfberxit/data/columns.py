"""Which columns are the text, the second text and the label: named by the user, or certain; never guessed by type."""

import re
from collections.abc import Iterable, Sequence

from datasets import Dataset, Features

from ..model.validation import refuse

# Names that are certain. Where two of them fit one data set, the columns must be named by the user.
WELL_KNOWN: tuple[tuple[str, ...], ...] = (
    ("text",), ("sentence",), ("text", "text_pair"), ("text1", "text2"), ("text_a", "text_b"),
    ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("question", "sentence"),
    ("question", "passage"), ("query", "passage"),
)  # fmt: skip
LABELS = ("label", "labels")
STRINGS = ("string", "large_string")
SENTENCE = re.compile(r"\S\s+\S|[.!?]$")  # what the first text of a file without a header looks like
# The part of a message that says how to name the columns.
HOW_LABEL = "the label's column named: --label NAME (label= in Python), one for each label where there are several"
HOW_TEXT = "named: --text NAME, for pairs also --pair NAME (text= and pair= in Python)"


def choose_label(features: Features, label: str | Sequence[str] | None) -> str | tuple[str, ...]:
    """The label's column, or several of 0 and 1: those named, or the only one that is certain.

    Args:
        label: a column, a list of them, or several in one string with commas.

    Raises:
        ValueError: a column that is not there, or none is certain; the message lists the columns.
    """
    if label is None:
        found = [name for name in LABELS if name in features]
        if len(found) != 1:
            refuse("dataset", list(features), f"one with a single column `label` or `labels`, or {HOW_LABEL}")
        return found[0]
    return named_label(features, label)


def named_label(features: Features, label: str | Sequence[str]) -> str | tuple[str, ...]:
    """The label's column, or several, as the user named them.

    Raises:
        ValueError: a column that is not there or is named twice.
    """
    names = [label] if isinstance(label, str) else list(label)
    names = [part.strip() for name in names for part in ([name] if name in features else name.split(","))]
    if not names or len(set(names)) < len(names):
        refuse("label", label, f"columns, each named once, of {', '.join(features)}")
    for name in names:
        check_column("label", name, features)
    return names[0] if len(names) == 1 else tuple(names)


def choose_texts(
    features: Features, text: str | None, pair: str | None, label: str | tuple[str, ...] | None
) -> tuple[str, ...]:
    """One column of text, or two for pairs: those named, or those that are certain.

    Certain is an entry of `WELL_KNOWN` if no other fits, and the only column beside the label's if it holds strings.
    Without a label, a column of such a name is none of the texts.

    Raises:
        ValueError: a column that is not there or holds no strings, or none is certain; the message lists the columns.
    """
    labels = (label,) if isinstance(label, str) else label or ()
    if text is None and pair is not None:
        refuse("pair", pair, "given together with text")
    if text is not None:
        return check_texts(tuple(name for name in (text, pair) if name is not None), features, labels)
    others = [name for name in features if name not in (labels or LABELS)]
    fitting = [names for names in WELL_KNOWN if set(names) <= set(others)]
    fitting = [names for names in fitting if not any(set(names) < set(wider) for wider in fitting)]
    if len(fitting) == 1 or len(others) == 1:
        return check_texts(fitting[0] if fitting else (others[0],), features, labels)
    refuse("dataset", list(features), f"one whose text is certain by its name (text, sentence, …), or {HOW_TEXT}")


def check_header(names: Sequence[str], named: Iterable[str]) -> None:
    """Refuse a table's only column that nobody has named, if it is no column's name: a text, or several names.

    Args:
        names: the first line of a file.
        named: columns that the user has named.
    """
    if len(names) != 1 or names[0] in named:
        return
    if any(separator in names[0] for separator in ";\t"):
        refuse("dataset", names, f"a table with commas between cells (.tsv: tabs), or its one column is {HOW_TEXT}")
    if SENTENCE.search(names[0]):
        first = "a first line that names the columns (.txt: a text on every line)"
        refuse("dataset", names, f"a table with {first}, or its one column is {HOW_TEXT}")


def check_texts(names: tuple[str, ...], features: Features, labels: Iterable[str]) -> tuple[str, ...]:
    """The named columns of text, if they are there, hold strings, and none is the label or named twice."""
    for field, name in zip(("text", "pair"), names):
        check_column(field, name, features)
        if not is_text(features, name):
            refuse(field, name, f"a column of strings; this one holds {features[name]}")
        if name in labels or names.count(name) > 1:
            refuse(field, name, "a column of its own, neither the label's nor the other text's")
    return names


def check_column(field: str, name: str, features: Features) -> None:
    """Refuse a column that the data set does not have."""
    if not isinstance(name, str) or name not in features:
        refuse(field, name, f"one of the columns {', '.join(features)}")


def check_split(data: Dataset, texts: tuple[str, ...], label: str | tuple[str, ...], split: str) -> None:
    """Refuse a split without one of the columns or without rows, and a row without one of its texts."""
    labels = (label,) if isinstance(label, str) else label
    missing = [name for name in (*texts, *labels) if name not in data.features]
    if missing or not len(data):
        what = f"with {', '.join(missing)}" if missing else "over at least one row"
        refuse(f"columns of {split}", data.column_names, what)
    check_texts(texts, data.features, labels)
    for name in texts:
        for row, value in enumerate(data[name]):
            if value is None or not value.strip():
                refuse(f"{name}[{row}]", value, f"a text of at least a word (row {row} of {split}, counted from 0)")


def is_text(features: Features, name: str) -> bool:
    """Whether a column holds strings."""
    return getattr(features[name], "dtype", None) in STRINGS
