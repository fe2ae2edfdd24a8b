"""Exits that learn from a classifier's own answers on texts without labels, from one pass; and what is saved of it."""

import csv
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st
from test_classifiers import PROBLEMS, save_classifier
from tiny import VOCABULARY, tiny_batch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.data.texts import Texts
from modeling_pfberxit.evaluation.bounds import rows_needed
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.used_texts import used
from modeling_pfberxit.model.heads import POOLINGS, mean_weights
from modeling_pfberxit.training import retrofitted, retrofitting
from modeling_pfberxit.training.exit_states import Pass, States
from modeling_pfberxit.training.retrofit_plan import labels_of, parts_of
from modeling_pfberxit.training.retrofitted import retrofit
from modeling_pfberxit.training.retrofitting import Training, kinds, learn, recorded
from pfberxit.cli import main

from_classifier = PFBerxitForSequenceClassification.from_classifier
BOTTLENECK = {"exit_pooler": "bottleneck", "exit_pooler_dim": 16, "exit_pooling": "both"}
QUICK = Training(most=1, epochs=4, batch_size=32, learning_rate=5e-3)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Exits of the command learn once, however few their texts are."""
    monkeypatch.setattr(retrofitted, "Training", partial(Training, most=1))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A tiny BERT with three labels. Not to be changed."""
    return save_classifier(tmp_path_factory.mktemp("classifiers") / "bert", **PROBLEMS["single label"])


def rows_of(count: int, seed: int = 0) -> Dataset:
    """Tokenised rows of mixed length."""
    batch = tiny_batch(count, seed=seed)
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    tokens = [ids[mask.bool()].tolist() for ids, mask in pairs]
    return Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * len(ids) for ids in tokens]})


def write_texts(path: Path, count: int, labels: bool = False, seed: int = 0) -> Path:
    """A CSV of random words, each line another."""
    generator = torch.Generator().manual_seed(seed)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "answer"] if labels else ["text"])
        for number in range(count):
            words = torch.randint(0, VOCABULARY - 5, (3 + number % 9,), generator=generator).tolist()
            row = [" ".join(f"w{word}" for word in words)]
            writer.writerow([*row, ["no", "perhaps", "yes"][number % 3]] if labels else row)
    return path


# ---- one pass --------------------------------------------------------------------------------------------------------


def test_the_record_is_what_stock_hidden_states_say(classifier, tmp_path):
    rows = rows_of(9)
    states = Pass(from_classifier(classifier), rows, tmp_path / "pass").record(progress=False)
    stock = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    for number, row in enumerate(rows):
        with torch.no_grad():
            output = stock(torch.tensor([row["input_ids"]]), output_hidden_states=True)
        hidden = torch.stack(output.hidden_states[1:-1])[:, 0]  # (5, n, d)
        expected = torch.cat([hidden[:, 0], hidden.mean(1)], dim=-1)
        torch.testing.assert_close(states.pooled[number], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states.logits[number], output.logits[0], rtol=1e-4, atol=1e-5)


KILLED = """
import os, signal, sys
import test_retrofit as test
from modeling_pfberxit.training import retrofitted, retrofitting
from modeling_pfberxit.training.exit_states import Pass
folder, classifier = sys.argv[1:]
run = Pass(test.from_classifier(classifier), test.rows_of(700), folder)
note = run.note
def note_and_die(batches):
    note(batches)
    if batches == 2:
        os.kill(os.getpid(), signal.SIGKILL)
run.note = note_and_die
run.record(progress=False)
"""


def test_a_killed_pass_goes_on_and_ends_with_the_same_bits(classifier, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), classifier]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."])}
    assert subprocess.run(command, env=environment, cwd=Path(__file__).parents[1]).returncode == -signal.SIGKILL
    rows, threads = rows_of(700), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = Pass(from_classifier(classifier), rows, tmp_path / "killed")
        assert resumed.done == 2 < len(resumed.batches)
        again = resumed.record(progress=False)
        whole = Pass(from_classifier(classifier), rows, tmp_path / "whole").record(progress=False)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again.pooled, whole.pooled) and torch.equal(again.logits, whole.logits)


def test_a_record_of_other_texts_is_not_gone_on_with(classifier, tmp_path):
    model = from_classifier(classifier)
    Pass(model, rows_of(9), tmp_path).record(progress=False)
    assert Pass(model, rows_of(9), tmp_path).done == 1
    assert Pass(model, rows_of(9, seed=1), tmp_path).done == 0


def test_a_record_the_disk_has_no_room_for_is_refused_before_the_pass(classifier, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from modeling_pfberxit.training import exit_states

    monkeypatch.setattr(exit_states.shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * 5 * 64 * 4))
    with pytest.raises(OSError, match="GB are free"):  # and 9 x 3 logits
        Pass(from_classifier(classifier), rows_of(9), tmp_path / "pass")


@pytest.mark.parametrize(("name", "knobs"), [
    ("adapter_placement", {"adapter_placement": "bypass"}), ("exit_layers", {"exit_layers": [6]}),
])  # fmt: skip
def test_exits_whose_input_would_change_are_refused_by_name(name, knobs, classifier, tmp_path):
    with pytest.raises(ValueError, match=name):
        Pass(from_classifier(classifier, **knobs), rows_of(3), tmp_path)


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS)
def test_exits_come_to_agree_and_the_model_says_what_was_recorded(problem, tmp_path):
    folder = save_classifier(tmp_path / "classifier", **PROBLEMS[problem])
    model, rows = from_classifier(folder), rows_of(300)
    before = model(**tiny_batch(4)).logits
    states = Pass(model, rows, tmp_path / "pass").record(progress=False)
    train, choose = torch.arange(240), torch.arange(240, 300)
    untrained = learn(model, states, train, choose, [BOTTLENECK], Training(most=1, epochs=1, learning_rate=1e-9))
    learned = learn(model, states, train, choose, [BOTTLENECK], QUICK)
    assert learned.mean_agreement > untrained.mean_agreement
    assert torch.equal(model(**tiny_batch(4)).logits, before)
    online = record(model, rows.select(range(20)))
    replayed = recorded(model, model.exits, states.select(torch.arange(20)))
    torch.testing.assert_close(online.evidence.logits, replayed.evidence.logits, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(**tiny_batch(4)).exit_logits, model(**tiny_batch(4)).exit_logits)


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "mpnet", "albert"])
def test_the_record_is_what_exits_read_in_encoders_of_other_shapes(family, tmp_path):
    model, rows = from_classifier(save_classifier(tmp_path / "classifier", family)), rows_of(40)
    states = Pass(model, rows, tmp_path / "pass").record(progress=False)
    online = record(model, rows).evidence.logits
    torch.testing.assert_close(online, recorded(model, model.exits, states).evidence.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_classifier_in_half_precision_learns_and_says_what_was_recorded(dtype, tmp_path):
    folder = save_classifier(tmp_path / "classifier", dtype=dtype)
    model, rows = from_classifier(folder), rows_of(80)
    states = Pass(model, rows, tmp_path / "pass").record(progress=False)
    learn(model, states, torch.arange(60), torch.arange(60, 80), [BOTTLENECK], Training(most=1, epochs=2))
    online = record(model, rows.select(range(20))).evidence.logits
    replayed = recorded(model, model.exits, states.select(torch.arange(20))).evidence.logits
    torch.testing.assert_close(online, replayed, rtol=0.05, atol=0.05)
    model.save_pretrained(tmp_path / "saved")
    assert PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved").dtype == dtype


def test_learning_is_the_same_for_the_same_seed_and_another_for_another(classifier, tmp_path):
    model = from_classifier(classifier)
    states = Pass(model, rows_of(60), tmp_path).record(progress=False)
    parts = (torch.arange(40), torch.arange(40, 60))
    weights = []
    for seed in (1, 1, 2):
        learn(model, states, *parts, [BOTTLENECK], Training(most=1, epochs=1, seed=seed))
        weights.append(model.exits.classifiers[0].weight.clone())
        torch.rand(1)  # whatever else draws in between
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_kind_of_head_is_the_one_that_agrees_best_on_other_texts(classifier, tmp_path, monkeypatch):
    model = from_classifier(classifier)
    states = Pass(model, rows_of(60), tmp_path).record(progress=False)
    agreements = iter([[0.2] * 5, [0.9] * 5, [0.5] * 5])
    monkeypatch.setattr(retrofitting, "closeness", lambda recording: next(agreements))
    tried = kinds(model.config, 6)
    learned = learn(model, states, torch.arange(40), torch.arange(40, 60), tried, Training(most=1, epochs=1))
    assert learned.kind == tried[1]
    assert {name: getattr(model.config, name) for name in tried[1]} == tried[1]


def test_few_texts_are_learned_from_for_longer_as_well_and_what_agrees_better_is_kept(
    classifier, tmp_path, monkeypatch
):
    assert [each.epochs for each in Training().tried(10_000)] == [12]
    assert [each.epochs for each in Training().tried(2_000)] == [12, 46]  # 32 steps an epoch, 1,500 in all
    assert [each.epochs for each in Training().tried(100)] == [12, 100]
    model, epochs = from_classifier(classifier), []
    states = Pass(model, rows_of(60), tmp_path).record(progress=False)
    agreements, made = iter([[0.2] * 5, [0.9] * 5]), retrofitting.trained
    monkeypatch.setattr(retrofitting, "closeness", lambda recording: next(agreements))
    monkeypatch.setattr(retrofitting, "trained", lambda *a: (epochs.append(a[-1].epochs), made(*a))[1])
    parts = torch.arange(40), torch.arange(40, 60)
    assert learn(model, states, *parts, [BOTTLENECK], Training(epochs=1, most=3)).agreement == [0.9] * 5
    assert epochs == [1, 3]


@pytest.mark.parametrize(("size", "layers"), [(384, 6), (768, 12), (768, 6)])
def test_the_exits_of_a_base_sized_encoder_stay_below_three_megabytes(size, layers, tmp_path):
    from transformers import BertConfig

    config = BertConfig(hidden_size=size, num_hidden_layers=layers, vocab_size=50, intermediate_size=64)
    knobs = {"last_exit": "classifier", "adapter_placement": "none"}
    model = PFBerxitForSequenceClassification.from_backbone(config, **knobs)
    for kind in kinds(model.config, layers):
        made = PFBerxitForSequenceClassification.from_backbone(config, **knobs, **kind)
        kept = made.exits.kept_weights().values()
        saved = sum(4 * value.numel() for name, value in made.exits.state_dict().items() if name not in kept)
        assert saved < 3_000_000


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_parts_are_random_disjoint_and_all_there_is():
    parts = parts_of(12_000, [0.01], 0.95)
    numbers = torch.cat([parts.train, parts.choose, parts.certify])
    assert torch.equal(numbers.sort().values, torch.arange(12_000))
    assert (len(parts.choose), len(parts.certify)) == (1000, 2000)
    assert not torch.equal(parts.certify, parts_of(12_000, [0.01], 0.95, seed=1).certify)


@example(0, 0.001)
@example(100, 0.01)
@given(st.integers(0, 5000), st.floats(0.0005, 0.9))
def test_the_fewest_texts_and_any_more_leave_every_part_enough(more, epsilon):
    least = rows_needed(epsilon, 0.95)
    few = parts_of(least + 150 + more, [epsilon], 0.95)
    assert min(len(few.certify) - least, len(few.choose) - 50, len(few.train) - 100) >= 0


def test_too_few_texts_are_told_how_many_it_takes():
    with pytest.raises(ValueError, match=r"448 different texts.*at least 449: 299 to certify"):
        parts_of(448, [0.01], 0.95)
    assert len(parts_of(449, [0.01], 0.95).certify) == 299  # ln 0.05 / ln 0.99 = 298.07


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_model_whose_rule_is_certified(classifier, tmp_path, capsys, monkeypatch):
    data = write_texts(tmp_path / "texts.csv", 900, labels=True)
    output = tmp_path / "faster"
    main(["retrofit", classifier, str(data), "--text", "text", "--label", "answer", "--differ", "0.2", "--max-length",
          "16", "--output", str(output)])  # fmt: skip
    said = capsys.readouterr().out
    assert "900 different texts" in said and "takes about" in said and "Score of full depth" in said
    config = json.loads((output / "config.json").read_text())
    point = config["operating_points"]["certified"]
    assert point["certificate"]["epsilon"] == 0.2 and config["exit_threshold"] == point["threshold"]
    assert {"config.json", "model.safetensors", "README.md", "used_texts.safetensors"} <= set(os.listdir(output))
    assert not {"pass", "draft"} & set(os.listdir(output))
    model = PFBerxitForSequenceClassification.from_pretrained(output).eval()
    tokenizer = AutoTokenizer.from_pretrained(output)
    others = [line["text"] for line in csv.DictReader(open(write_texts(tmp_path / "new.csv", 400, seed=5)))]
    rows = Dataset.from_dict(dict(tokenizer(others)))
    kept = record(model, rows)
    answers, layers = kept.replay(model.config.exit_policy)
    assert layers.double().mean() < 6
    assert (answers.argmax(1) != kept.evidence.logits[:, -1].argmax(1)).double().mean() < 0.3
    hashed = used(output)
    assert sum(map(len, hashed.values())) == 900
    assert "What is certified" in (output / "README.md").read_text()
    with pytest.raises(SystemExit, match="output.*without a model"):
        main(["retrofit", classifier, str(data), "--output", str(output)])


def test_where_nothing_passes_it_is_said_and_the_model_runs_to_full_depth(classifier, tmp_path, capsys):
    data, output = write_texts(tmp_path / "texts.csv", 500), tmp_path / "faster"
    rule = json.dumps({"criterion": "max_prob", "threshold": 0.0, "patience": 1})  # all leave at the first exit
    with pytest.raises(SystemExit) as exit:
        main(["retrofit", classifier, str(data), "--output", str(output), "--policy", rule])
    assert exit.value.code == 3 and "full depth" in capsys.readouterr().out
    model = PFBerxitForSequenceClassification.from_pretrained(output).eval()
    assert model(**tiny_batch(4)).exit_layer.tolist() == [6] * 4


def test_values_want_a_tolerance_before_the_pass(tmp_path):
    folder = save_classifier(tmp_path / "reranker", **PROBLEMS["a reranker"])
    with pytest.raises(ValueError, match="tolerance"):
        retrofit(folder, str(write_texts(tmp_path / "texts.csv", 500)), tmp_path / "faster")


def test_several_labels_in_one_string_are_read_as_the_classifier_has_them(tmp_path):
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    model = from_classifier(save_classifier(tmp_path / "several", problem_type="multi_label_classification", **names))
    rows = Dataset.from_dict({"text": ["w1", "w2", "w3"], "topics": ["a;b", "c", ""]})
    found = labels_of(Texts(("text",), "topics", rows, "train"), rows, model)
    assert found.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_pairs_and_repeated_texts(classifier, tmp_path):
    path = tmp_path / "pairs.csv"
    lines = list(csv.reader(open(write_texts(tmp_path / "texts.csv", 320))))[1:]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["one", "two"], *([line[0], f"w{i % 90}"] for i, line in enumerate(lines)),
                                    *[[lines[0][0], "w0"]] * 30])  # fmt: skip
    said = []
    retrofit(classifier, str(path), tmp_path / "faster", columns={"text": "one", "pair": "two"}, differ=[0.3],
             training=Training(most=1, epochs=1), say=said.append)  # fmt: skip
    assert "320 different texts" in said[0]


@pytest.mark.parametrize("name", POOLINGS)
def test_a_record_is_read_by_every_pooling_as_an_exit_reads_the_states(name):
    states, mask = torch.randn(3, 5, 4), torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] + [0] * 4])
    weights, lengths = mean_weights(mask, torch.float32), mask.sum(1)
    record = States(POOLINGS["both"].pool(states, weights)[:, None], torch.zeros(3, 2), lengths, [1, 2])
    assert torch.equal(record.read(0, name), POOLINGS[name].pool(states, weights))
