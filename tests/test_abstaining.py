"""Rows that stay unsure leave early without an answer: by hand, online as in replay and streams, in every report."""

import csv
import json

import pytest
import torch
from tiny import rows_of, tiny_batch, tiny_model
from transformers import pipeline

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.abstaining import risk_coverage
from modeling_pfberxit.evaluation.exit_patterns import correct
from modeling_pfberxit.evaluation.frontier import sweep, with_intervals
from modeling_pfberxit.evaluation.prediction import in_words
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.evaluation.replay import answered, same_answers
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from pfberxit.cli import main

SURE, UNSURE = [3.0, 0.0], [0.3, 0.0]  # largest probabilities 0.95 and 0.57
TRACES = [
    [UNSURE, UNSURE, SURE, SURE], [UNSURE, SURE, UNSURE, UNSURE], [UNSURE, UNSURE, UNSURE, UNSURE], [SURE] * 4,
    [SURE, SURE, SURE, UNSURE],
]  # fmt: skip


def traces(labels: list[int] | None = None) -> Recording:
    """Rows whose exits are sure or unsure of the first of two classes."""
    kept = torch.tensor(TRACES)
    known = None if labels is None else torch.tensor(labels)
    return Recording(Evidence(kept), torch.full((len(kept),), 5), known, [1, 2, 3, 4], SINGLE_LABEL)


POLICY = ExitPolicy("patience", patience=4, window=2, answer="abstain", unsure_below=0.6)  # no row answers early


def test_a_row_leaves_where_it_was_unsure_at_m_exits_in_a_row():
    answers, layers = traces().replay(POLICY)
    assert layers.tolist() == [2, 4, 2, 4, 4]
    assert answered(answers).tolist() == [False, False, False, True, True]  # the last: unsure once is not enough


def test_what_the_rule_lets_answer_answers_however_unsure():
    answers, layers = traces().replay(ExitPolicy("patience", patience=1, window=2, answer="abstain"))
    assert answered(answers).all() and layers.tolist() == [2] * 5


def test_no_row_leaves_as_unsure_before_the_lowest_layer():
    _, layers = traces().replay(ExitPolicy("patience", patience=4, window=2, answer="abstain", min_layer=3))
    assert layers.tolist() == [4, 4, 3, 4, 4]


CASES = [
    ("entropy", 0.3, 1), ("divergence_v1", 0.5, 1), ("divergence_v2", 0.5, 1), ("divergence_v3", 0.5, 1),
    ("max_prob", 0.8, 1), ("patience", None, 3), ("pcee", 0.4, 3), ("voting", 0.9, 2), ("dge", 0.5, 1),
    ("window", 0.2, 1), ("lte", 0.3, 1), ("distance", 0.4, 1),
]  # fmt: skip


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_online_replay_and_streams_agree(family, problem_type):
    knobs = {"use_lte": True, "use_prototypes": True, "exit_layers": [1, 2, 4, 5]}
    model = tiny_model(family, num_labels=3, problem_type=problem_type, **knobs)
    batch, unsure = tiny_batch(40), 0
    kept, rows = record(model, [dict(batch)]), [{"input_ids": ids} for ids in rows_of(batch)]
    for number, (criterion, tau, patience) in enumerate(CASES):
        ensemble = ("none", "run", "all")[number % 3]
        policy = ExitPolicy(
            criterion, threshold=tau, patience=patience, window=1 + number % 3, ensemble=ensemble, answer="abstain",
            unsure_below=0.75, min_layer=1 + number % 2,
        )  # fmt: skip
        answers, depths = kept.replay(policy)
        online, stream = model(**batch, exit_policy=policy), model.predict(rows, policy, 7, progress=False)
        assert torch.equal(online.exit_layer, depths) and torch.equal(stream.exit_layer, depths), criterion
        torch.testing.assert_close(online.logits, answers, atol=2e-5, rtol=1e-4, equal_nan=True)
        torch.testing.assert_close(stream.logits, answers, atol=2e-5, rtol=1e-4, equal_nan=True)
        unsure += (~answered(answers)).sum()
    assert 20 < unsure < 20 * len(CASES) * 1.9


def test_no_answer_is_neither_right_nor_full_depths():
    kept = traces([0] * 5)
    answers, _ = kept.replay(POLICY)
    given = answered(answers)
    assert torch.equal(same_answers(answers, kept.evidence.logits[:, -1], SINGLE_LABEL, 0.0), given)
    assert torch.equal(correct(kept, logits=answers[:, None])[:, 0], given)


def test_a_point_has_the_score_of_those_that_answered_and_the_share_of_the_others():
    kept = traces([1, 1, 1, 0, 1]).select(torch.arange(5).repeat(20))
    (point,) = with_intervals(sweep(kept, [POLICY], "accuracy"), kept, "accuracy", resamples=20)
    assert point.score == 0.5 and point.unsure == pytest.approx(0.6)
    assert 0 <= point.low <= point.high <= 1


def test_the_curve_stands_beside_that_of_the_largest_probability():
    kept = traces([1, 0, 1, 0, 0])
    curve = risk_coverage(kept, POLICY, levels=[0.0, 0.2])  # no row is below a guess; 0.2 of the way up is 0.6
    assert [(each.coverage, each.risk) for each in curve] == [(1.0, 0.4), (0.4, 0.0)]
    assert curve[1].risk_by_probability == 0.5  # of the first row, surest and wrong, and the fourth
    assert curve[1].unsure_anyway == pytest.approx(2 / 3) and curve[1].layers == 3.2 and curve[1].layers_answering == 4


def test_the_report_says_how_many_are_unsure_and_what_other_limits_do(tmp_path, capsys):
    traces([1, 0, 1, 0, 0]).save(tmp_path / "kept.safetensors")
    policy = {"criterion": "patience", "patience": 4, "window": 2, "answer": "abstain"}
    main(["report", str(tmp_path / "kept.safetensors"), "--policy", json.dumps(policy)])
    said = capsys.readouterr().out
    assert "Unsure, without an answer: 60.0 % of the rows" in said and "wrong by largest probability" in said


def test_in_words_an_unsure_row_has_a_layer_and_no_label():
    model = tiny_model("bert", num_labels=3)
    policy = ExitPolicy("entropy", threshold=1e-6, window=1, answer="abstain", unsure_below=1.0)
    output = model(**tiny_batch(5), exit_policy=policy)
    assert in_words(model, output.logits, output.exit_layer.tolist()) == [("", None, 1)] * 5


@pytest.mark.parametrize(
    ("fields", "problem_type", "message"),
    [
        ({"criterion": "patience", "threshold": 0.1}, REGRESSION, "exit_answer='abstain': must be label for values"),
        ({"criterion": "appointed", "appointed_layer": 3}, SINGLE_LABEL, "with appointed where all rows answer"),
        ({"window": 9}, SINGLE_LABEL, "exit_window=9: must be at most the number of exits, 6"),
        ({"answer": "maybe"}, SINGLE_LABEL, "answer='maybe': must be one of label, abstain"),
        ({"unsure_below": 1.5}, SINGLE_LABEL, "unsure_below=1.5: must be a finite number between 0"),
    ],
)
def test_what_cannot_be_kept_to_is_refused(fields, problem_type, message):
    model = tiny_model("bert", num_labels=3, problem_type=problem_type)
    with pytest.raises(ValueError, match=message):
        model(**tiny_batch(3), exit_policy={"criterion": "entropy", "threshold": 0.5, "answer": "abstain", **fields})


OFF = {"criterion": "entropy", "threshold": None, "answer": "abstain"}


@pytest.mark.parametrize(
    "asked", [OFF, {**OFF, "criterion": None}, ExitPolicy(**OFF), ExitPolicy(None, answer="abstain")]
)
def test_abstaining_is_refused_where_early_exit_is_off(asked):
    with pytest.raises(
        ValueError, match="exit_answer='abstain': must be label without a criterion, or without the thr"
    ):
        tiny_model("bert", num_labels=3)(**tiny_batch(3), exit_policy=asked)


def test_a_config_that_abstains_needs_its_threshold_and_runs_full_depth_when_told_to():
    model = tiny_model("bert", num_labels=3, exit_criterion="entropy", exit_answer="abstain")
    batch = tiny_batch(3)
    with pytest.raises(ValueError, match="exit_answer='abstain'"):
        model(**batch)
    with pytest.raises(ValueError, match="exit_answer='abstain'"):
        model.predict([{"input_ids": ids} for ids in rows_of(batch)], progress=False)
    assert model(**batch, exit_policy={"criterion": None}).exit_layer.tolist() == [6] * 3
    assert model(**batch, exit_policy=ExitPolicy(None)).exit_layer.tolist() == [6] * 3
    model.config.exit_criterion = None  # as while a model is trained
    assert model(**batch).exit_layer.tolist() == [6] * 3


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_the_loss_is_that_of_the_rows_with_an_answer(problem_type):
    model, batch = tiny_model("bert", num_labels=3, problem_type=problem_type), tiny_batch(24)
    labels = torch.arange(24) % 3
    labels = torch.eye(3)[labels] if problem_type == MULTI_LABEL else labels
    stock = torch.nn.BCEWithLogitsLoss() if problem_type == MULTI_LABEL else torch.nn.CrossEntropyLoss()
    policy = {"criterion": "entropy", "threshold": 0.8, "answer": "abstain", "unsure_below": 0.7, "window": 1}
    output = model(**batch, labels=labels, exit_policy=policy)
    kept = answered(output.logits)
    assert 0 < kept.sum() < 24
    torch.testing.assert_close(output.loss, stock(output.logits[kept], labels[kept]))
    model.exit_loss = lambda logits, labels: 2 * stock(logits, labels)
    torch.testing.assert_close(model(**batch, labels=labels, exit_policy=policy).loss, 2 * output.loss)
    nobody = {**policy, "threshold": 1e-9, "unsure_below": 1.0}
    assert model(**batch, labels=labels, exit_policy=nobody).loss == 0


def test_files_and_pipelines_leave_the_label_empty(local_backbone, tmp_path, capsys):
    from transformers import AutoTokenizer

    from modeling_pfberxit import PFBerxitForSequenceClassification

    policy = {"criterion": "entropy", "threshold": 1e-6, "window": 2, "answer": "abstain", "unsure_below": 1.0}
    model = PFBerxitForSequenceClassification.from_backbone(local_backbone, exit_policy=policy)
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(local_backbone)
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.csv").write_text("text\nw1 w2\nw3 w4\n")
    main(["predict", str(tmp_path / "model"), str(tmp_path / "texts.csv"), "--output", str(tmp_path / "answers.csv")])
    with open(tmp_path / "answers.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["score"], row["exit_layer"]) for row in rows] == [("", "", "2")] * 2
    assert "2 rows left as unsure" in capsys.readouterr().out
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)
    assert pipe("w1 w2", exit_policy=policy) == [{"label": "", "score": None, "exit_layer": 2}]
