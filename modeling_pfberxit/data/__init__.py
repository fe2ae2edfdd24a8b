"""The data set that comes with the package: 804 messages to a company's support desk, written for this project."""

import json
from pathlib import Path

INTENTS = ("refund", "delivery", "cancellation", "malfunction", "account", "question")
TOPICS = ("price", "payment", "shipping", "hardware", "app", "subscription", "privacy", "staff")
DIFFICULTIES = ("plain", "contrast", "indirect")
SUPPORT_DESK = Path(__file__).with_name("support_desk.jsonl")


def read_support_desk(split: str | None = None) -> list[dict]:
    """The rows of one split (`train`, `test`) or of both: text, intent, topics, urgency in [0, 1], difficulty."""
    rows = [json.loads(line) for line in SUPPORT_DESK.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if split in (None, row["split"])]
