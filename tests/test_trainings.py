"""One cache of trainings: what goes into one is its name, where that lies and what it is called is not."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tiny import save_backbone
from transformers import BertTokenizer

from modeling_pfberxit.data.source import Source
from modeling_pfberxit.evaluation import recording
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import SINGLE_LABEL, Evidence
from modeling_pfberxit.studies.compare import compare
from modeling_pfberxit.studies.compared import compared_config
from modeling_pfberxit.studies.runs import Budget, Run, split_rows
from modeling_pfberxit.studies.trainings import MADE_OF, cached, entry, key_of, trained

BUDGET = Budget(rows=16, epochs=1, held_out=20, batch_size=8)
LABELS = [i % 2 for i in range(40)]


def save_data(folder, labels=LABELS, text="sentence", evaluation=LABELS, names=("bad", "good")) -> str:
    """A data set in a folder: two splits with a column of texts and one of labels."""
    features = Features({text: Value("string"), "label": ClassLabel(names=list(names))})
    folder.mkdir(parents=True)
    for split, values in (("train", labels), ("validation", evaluation)):
        rows = {text: [f"w{i % 9} w{i % 7}" for i in range(len(values))], "label": values}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return save_backbone(tmp_path_factory.mktemp("first") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return save_data(tmp_path_factory.mktemp("first") / "data")


def key(data: str, encoder: str, seed: int = 1, budget: Budget = BUDGET, system: str = "pf-berxit", **knobs) -> dict:
    return key_of(Run(Source.read(data), encoder, seed, budget), compared_config(system, encoder, **knobs))


def test_encoders_under_folders_of_one_name_are_two(data, encoder, tmp_path):
    deeper = save_backbone(tmp_path / "deeper" / "model", num_hidden_layers=3)
    other = save_backbone(tmp_path / "other" / "model", seed=1)
    assert len({json.dumps(key(data, each)["encoder"]) for each in (encoder, deeper, other)}) == 3
    assert key(data, deeper)["config"]["backbone_config"]["num_hidden_layers"] == 3


def test_one_encoder_and_data_set_at_two_places_are_one_training(data, encoder, tmp_path, monkeypatch):
    moved = str(shutil.copytree(encoder, tmp_path / "renamed"))
    data_too = save_data(tmp_path / "of-another-name", text="question")
    assert key(data, encoder) == key(data_too, moved)
    first = trained(tmp_path, Run(Source.read(data), encoder, 1, BUDGET), compared_config("pf-berxit", encoder), print)
    monkeypatch.setattr("modeling_pfberxit.studies.trainings.train_and_record", lambda *_: pytest.fail("trained again"))
    again = trained(tmp_path, Run(Source.read(data_too), moved, 1, BUDGET), compared_config("pf-berxit", moved), print)
    assert torch.equal(first.reported_on.evidence.logits, again.reported_on.evidence.logits)
    assert [each.facts["run"]["dataset"] for each in (first, again)] == ["data", "of-another-name"]
    assert [each.facts["run"]["backbone"] for each in (first, again)] == ["model", "renamed"]


def test_weights_that_change_where_they_lie_are_noticed(data, encoder, tmp_path):
    place = shutil.copytree(encoder, tmp_path / "model")
    before = key(data, str(place))
    shutil.copy(f"{save_backbone(tmp_path / 'other', seed=1)}/model.safetensors", place)
    assert key(data, str(place))["encoder"] != before["encoder"]


def test_another_tokenizer_or_another_architecture_is_another_training(data, encoder, tmp_path):
    words, shape = (shutil.copytree(encoder, tmp_path / name) for name in ("words", "shape"))
    others = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"x{i}" for i in range(60))]
    (tmp_path / "vocab.txt").write_text("\n".join(others))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(words)
    config = json.loads((shape / "config.json").read_text()) | {"hidden_dropout_prob": 0.3}
    (shape / "config.json").write_text(json.dumps(config))
    first = key(data, encoder)
    assert key(data, str(words))["encoder"]["tokenizer"] != first["encoder"]["tokenizer"]
    assert key(data, str(shape))["config"] != first["config"]


@pytest.mark.parametrize(
    "change",
    [{"labels": [1 - LABELS[0], *LABELS[1:]]}, {"evaluation": [1 - LABELS[0], *LABELS[1:]]},
     {"labels": LABELS[:-1]}, {"names": ("good", "bad")}],
    ids=["a label of training", "a label of evaluation", "a row less", "labels mean the reverse"],
)  # fmt: skip
def test_a_data_set_that_changed_is_another_one(data, encoder, tmp_path, change):
    assert key(save_data(tmp_path / "data", **change), encoder) != key(data, encoder)


def test_what_shapes_a_training_is_in_its_key(data, encoder):
    first = key(data, encoder)
    changes = [
        {"seed": 2}, {"budget": replace(BUDGET, rows=15)}, {"budget": replace(BUDGET, epochs=2)},
        {"budget": replace(BUDGET, held_out=19)}, {"budget": replace(BUDGET, batch_size=4)},
        {"budget": replace(BUDGET, dropout=False)}, {"adapter_dim": 8}, {"exit_dropout": 0.2},
        {"label_smoothing": 0.1}, {"exit_layers": [2, 6]}, {"use_lte": True}, {"pad_token_id": 1},
    ]  # fmt: skip
    keys = [first, *(key(data, encoder, **change) for change in changes)]
    assert len({json.dumps(each) for each in keys}) == len(keys)
    assert key(data, encoder, budget=replace(BUDGET, epochs=1.0)) == first


def test_the_policy_and_the_name_of_a_system_are_not_in_the_key(data, encoder):
    assert key(data, encoder, exit_threshold=0.3, exit_criterion="entropy", exit_patience=1) == key(data, encoder)
    assert key(data, encoder, system="pabee") == key(data, encoder, system="branchynet")


def test_rows_to_choose_on_to_train_on_and_to_report_on_are_disjoint(data, encoder):
    source = Source.read("support_desk", "intent")
    held_out, rows, evaluation = split_rows(Run(source, encoder, 1, BUDGET))
    texts = [set(part["text"]) for part in (held_out, rows, evaluation)]
    assert [len(part) for part in (held_out, rows)] == [20, 16] and len(evaluation) == len(source.data["test"])
    assert not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
    everything = split_rows(Run(source, encoder, 1, replace(BUDGET, rows=0)))[1]
    assert len(everything) == len(source.data["train"]) - 20


# ---- entries --------------------------------------------------------------------------------------------------------


def said(value: float) -> tuple[Recording, Recording]:
    logits, lengths = torch.full((2, 3, 2), value), torch.ones(2, dtype=torch.long)
    one = Recording(Evidence(logits), lengths, torch.tensor([0, 1]), [1, 2, 3], SINGLE_LABEL)
    return one, one


def test_an_entry_says_in_clear_what_it_was_made_of(tmp_path):
    made_of = {"format": 1, "seed": 3, "config": {"adapter_dim": 8}}
    kept = cached(tmp_path, made_of, lambda: said(0.5))
    assert kept.chosen_on.evidence.logits.unique().tolist() == [0.5]
    (place,) = (tmp_path / "recordings").iterdir()
    assert json.loads((place / MADE_OF).read_text()) == made_of
    again = cached(tmp_path, made_of, lambda: pytest.fail("trained again"))
    assert torch.equal(again.reported_on.evidence.logits, kept.reported_on.evidence.logits)


def test_an_entry_of_another_format_stays_beside_the_new_one(tmp_path):
    cached(tmp_path, {"format": 0, "seed": 3}, lambda: said(0.1))
    old = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cached(tmp_path, {"format": 1, "seed": 3}, lambda: said(0.9)).chosen_on.evidence.logits.max() == 0.9
    assert all(path.read_bytes() == content for path, content in old.items())


@pytest.mark.parametrize("content", ['{"seed": 4}', "half"], ids=["of another seed", "truncated"])
def test_an_entry_that_was_made_of_something_else_is_refused_and_left_alone(tmp_path, content):
    cached(tmp_path, {"seed": 3}, lambda: said(0.5))
    path = entry(tmp_path, {"seed": 3}) / MADE_OF
    path.write_text(content)
    with pytest.raises(OSError, match="recordings.*(another seed|cannot be read).*move the folder away"):
        cached(tmp_path, {"seed": 3}, lambda: pytest.fail("trained"))
    assert path.read_text() == content


def test_where_another_process_was_quicker_its_entry_stays(tmp_path):
    def late() -> tuple[Recording, Recording]:
        cached(tmp_path, {"seed": 3}, lambda: said(0.1))
        return said(0.9)

    assert cached(tmp_path, {"seed": 3}, late).chosen_on.evidence.logits.unique().item() == pytest.approx(0.1)
    assert len(list((tmp_path / "recordings").iterdir())) == 1


def test_an_interrupted_training_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, {"seed": 3}, lambda: said(0.5))
    monkeypatch.undo()
    assert not [path for path in (tmp_path / "recordings").rglob("*") if path.is_file()]
    assert len(cached(tmp_path, {"seed": 3}, lambda: said(0.5)).chosen_on) == 2


def test_results_of_another_encoder_or_budget_stand_in_a_table_of_their_own(data, encoder, tmp_path):
    other = save_backbone(tmp_path / "other" / "model", seed=1)
    for backbone, budget in ((encoder, BUDGET), (other, BUDGET), (encoder, replace(BUDGET, rows=8))):
        compare(["pf-berxit"], [(data, None)], backbone, [1], budget, [0.5], str(tmp_path), None, print)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert len(kept) == 3 and len({each["run"]["encoder"] for each in kept}) == 2
    assert (tmp_path / "table.md").read_text().count("| pf-berxit |") == 3
