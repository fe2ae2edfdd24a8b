"""Several labels in one string, "a;b" or "a|b": when that is what a column holds, and what stands between them."""

from collections.abc import Sequence
from itertools import chain

from datasets import Dataset
from transformers.utils import logging

from ..model.evidence import MULTI_LABEL
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .columns import is_text
from .labels import LISTS, VECTORS, cut

logger = logging.get_logger(__name__)

COMMA = ","  # stands in many a name: never found, but said where it looks like a separator
FOUND, NAMED = (";", "|"), (";", "|", COMMA)  # separators that may be found; those that may be named
FORMS = (LISTS, VECTORS, *NAMED)


def find_separator(
    rows: Dataset, label: str, problem_type: str | None, label_form: str | None,
    model: PFBerxitForSequenceClassification | None,
) -> str | None:  # fmt: skip
    """What stands between several labels in the strings of a column; `None`: each string is one label.

    Several labels are read where the user says so (`label_form`, a problem type) or the model has several, and where
    strings are recombined: a label occurs alone or beside different others. The last is said.

    Raises:
        ValueError: a separator that is named for a column without strings; both occur, and none is named.
    """
    if not is_text(rows.features, label):
        return refuse("label_form", label_form, f"left out: {label} holds no strings") if label_form in NAMED else None
    if label_form in NAMED:
        return label_form
    if model is not None:
        problem_type = problem_type_of(model.config) if model.config.problem_type else problem_type
    strings = [value for value in rows.unique(label) if value is not None]
    if problem_type is not None and problem_type != MULTI_LABEL or any(value.lstrip()[:1] == "[" for value in strings):
        return None
    found = [each for each in FOUND if any(each in value for value in strings)]
    if problem_type == MULTI_LABEL:
        return found[0] if len(found) == 1 else FOUND[0] if not found else refuse_both(label)
    if not any(recombined([cut(value, each) for value in strings]) for each in found):
        if recombined([cut(value, COMMA) for value in strings]):
            logger.warning(
                f"{label}: each string is one label; --label-form {COMMA} (label_form=) reads several in it."
            )
        return None
    if len(found) > 1:
        refuse_both(label)
    say = "--problem-type single_label_classification (problem_type= in Python) reads each string as one"
    logger.warning(f"{label}: read as several labels, separated by {found[0]!r}; {say}.")
    return found[0]


def refuse_both(label: str) -> str:
    """Two separators occur."""
    refuse(f"label {label}", " and ".join(FOUND), "separated by one of them: --label-form says which (label_form=)")


def recombined(lists: Sequence[Sequence[str]]) -> bool:
    """Whether the lists are of different names, none empty, of which one at least stands in two of them."""
    names = list(chain.from_iterable(lists))
    well_formed = all(names) and all(len(set(each)) == len(each) for each in lists)
    return well_formed and len(set(names)) < len(names)


def separator_for(names: Sequence[str]) -> str | None:
    """The separator that stands in none of the names, to join them with; None where they have all of them."""
    return next((each for each in NAMED if not any(each in name for name in names)), None)
