"""Certificates in a model card: what is promised, in plain words, with what it rests on."""

from pathlib import Path
from typing import Any

from ..evaluation.certificates import in_words
from ..evaluation.tables import table
from ..model.exit_policy import POLICY_CHECKS, ExitPolicy, describe
from ..model.identity import SECTION, TITLE
from ..model.persistence import replacing

CLOSING = (
    "A certificate speaks of texts like those it was made on, whatever the answers of full depth are worth; it says "
    "nothing of other texts, of other lengths, or of a model that was trained further."
)


def section(points: dict[str, dict[str, Any]]) -> str:
    """A card's section for the operating points that have a certificate; empty where none has."""
    certified = {name: point for name, point in points.items() if "certificate" in point}
    if not certified:
        return ""
    rows = [numbers(name, point) for name, point in certified.items()]
    titles = [
        "operating point",
        "ε",
        "confidence",
        "δ",
        "texts n",
        "counted",
        "layers saved",
        "date",
        "texts' fingerprint",
    ]
    words = [f"- `{name}`: {in_words(point)} {rule_in_words(point)}" for name, point in certified.items()]
    return "\n\n".join([TITLE, "\n".join(words), table(titles, rows), CLOSING]) + "\n"


def numbers(name: str, point: dict[str, Any]) -> list[str]:
    """A certificate's line in the table."""
    about = point["certificate"]
    shares = [f"{about['epsilon']:g}", f"{100 * about['confidence']:g} %", f"{about['delta']:.4g}"]
    counts = [f"{about['rows']}", f"{about['missed']:g}", f"{100 * point['layers_saved']:.0f} %"]
    return [f"`{name}`", *shares, *counts, about.get("date", ""), about.get("texts", "")]


def rule_in_words(point: dict[str, Any]) -> str:
    """The rule by which rows exit there, and the share of layers it saved."""
    policy = ExitPolicy(**{field: value for field, value in point.items() if field in POLICY_CHECKS})
    return f"Its rule, {describe(policy)}, saved {100 * point['layers_saved']:.0f} % of the layers of these texts."


def add_section(folder: str | Path, points: dict[str, dict[str, Any]], name: str | None = None) -> None:
    """Put the section into the card of a saved model, in place of an earlier one; without a card, begin one.

    Args:
        name: of the model; None: the folder's.
    """
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {name or path.parent.resolve().name}\n"
    rest = SECTION.sub("", text).rstrip()
    with replacing(path) as draft:
        draft.write_text(f"{rest}\n\n{section(points)}".rstrip() + "\n", encoding="utf-8")
