"""The data set that comes with the package: 804 messages to a company's support desk, written for this project."""

import csv
from pathlib import Path

INTENTS = ("refund", "delivery", "cancellation", "malfunction", "account", "question")
TOPICS = ("price", "payment", "shipping", "hardware", "app", "subscription", "privacy", "staff")
DIFFICULTIES = ("plain", "contrast", "indirect")
SUPPORT_DESK = Path(__file__).with_name("support_desk.csv")


def read_support_desk(split: str | None = None) -> list[dict]:
    """The rows of one split (`train`, `test`) or of both: text, intent, topics, urgency in [0, 1], difficulty."""
    with open(SUPPORT_DESK, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if split in (None, row["split"])]
    return [{**row, "topics": row["topics"].split(";"), "urgency": float(row["urgency"])} for row in rows]
