"""The whole card, against the text it should have: nothing in it may vanish or appear unnoticed."""

import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.data.tasks import load_task
from modeling_pfberxit.evaluation.frontier import Point
from modeling_pfberxit.evaluation.settings import Setting
from modeling_pfberxit.training.finetuning import new_model
from modeling_pfberxit.training.model_card import write_card

POLICY = ExitPolicy(threshold=0.25, patience=1)
SETTINGS = [
    Setting("full depth", ExitPolicy(None), 0.8, np.full(4, 6), 6, {1: 2.5, 32: 0.75}),
    Setting("fast", POLICY, 0.75, np.array([2, 2, 4, 6]), 6, {1: 1.5, 32: 0.5}),
]
FRONTIER = {
    "divergence_v1": [
        Point(POLICY, score=0.75, layers=3.5, saved=2.5 / 6, macs=0.6, low=0.7, high=0.8),
        Point(POLICY, score=0.8, layers=6.0, saved=0.0, macs=1.0, low=0.72, high=0.85),
    ]
}
CARD = Path(__file__).with_name("expected_card.txt").read_text(encoding="utf-8")
FOLDER_NOTE = """
The encoder is named by a folder of the machine this was made on. Elsewhere, say where it is:
`from_pretrained(repo, trust_remote_code=True, base_model_name_or_path=...)`; its weights are checked by their hash.
"""
BETWEEN = {
    "plot": ("![Where the rows", "A note."),
    "frontier": ("## What other thresholds reach", "## Use"),
}


def render(folder: Path, backbone: str, config: str = "intent", knobs: dict | None = None, **changes) -> str:
    """The card of an untrained model whose numbers are given."""
    task, _ = load_task("support_desk", config)
    model = new_model(backbone, task, system="pf-berxit", adapter_dim=8, adapter_num_heads=2, **(knobs or {}))
    model.config.operating_points = {"fast": {"threshold": 0.25, "patience": 1}}
    facts = {
        "training": "40 made-up rows, 1 epoch, seed 0", "evaluation": "4 made-up rows", "notes": "A note.",
        "texts": ["one text", "it's another"], "plot": "exit_depths.png", "frontier": FRONTIER, **changes,
    }  # fmt: skip
    (folder / "tiny-intent").mkdir()
    write_card(folder / "tiny-intent", model, task, SETTINGS, **facts)
    return (folder / "tiny-intent" / "README.md").read_text(encoding="utf-8")


def check(card: str, expected: str) -> None:
    """Line by line, so that a failure shows where; how many lines lie empty at the end does not matter."""
    for found, line in zip(card.rstrip().splitlines(), lines := expected.rstrip().splitlines()):
        assert re.fullmatch(re.escape(line).replace("<hardware>", ".+"), found)
    assert len(card.rstrip().splitlines()) == len(lines)


def test_the_card_says_all_it_should_word_for_word(hub_backbone, tmp_path):
    check(render(tmp_path, hub_backbone), CARD)


def test_an_encoder_in_a_folder_is_said_to_be_one(local_backbone, tmp_path):
    check(render(tmp_path, local_backbone), CARD.replace("acme/tiny-bert", Path(local_backbone).name) + FOLDER_NOTE)


@pytest.mark.parametrize("part", BETWEEN)
def test_what_was_not_measured_is_left_out_and_nothing_else(part, hub_backbone, tmp_path):
    start, end = (CARD.index(words) for words in BETWEEN[part])
    found = render(tmp_path, hub_backbone, **{part: None})
    assert found.split() == re.sub("<hardware>", hardware_of(found), CARD[:start] + CARD[end:]).split()


def hardware_of(card: str) -> str:
    """What the card says it was measured on."""
    return re.search(r"4 made-up rows; (.+)", card).group(1)


def test_a_trained_encoder_makes_a_finetuned_model_not_an_adapter(hub_backbone, tmp_path):
    card = render(tmp_path, hub_backbone, knobs={"train_backbone": True})
    assert "base_model_relation: finetune" in card and "base_model_relation: adapter" not in card
    assert "an encoder of their own (acme/tiny-bert, trained)." in card and "frozen encoder" not in card


@pytest.mark.parametrize(("config", "kind"), [("topics", "multi label"), ("urgency", "regression")])
def test_every_kind_of_problem_has_its_metric_in_the_index_and_its_answer_in_the_snippet(
    config, kind, hub_backbone, tmp_path
):
    card = render(tmp_path, hub_backbone, config)
    loaded = ModelCard(card)
    assert [result.metric_value for result in loaded.data.eval_results] == [0.8, 0.75]
    assert {result.metric_type for result in loaded.data.eval_results} == set(loaded.data.metrics)
    assert kind in card and loaded.data.base_model == "acme/tiny-bert"
    compile(card.split("```python\n")[1].split("```")[0], "snippet", "exec")
