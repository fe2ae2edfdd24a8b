"""`pfberxit report` and `pfberxit suitability`: what they print is what the functions behind them find."""

import csv
from dataclasses import replace

import pytest
import torch
from tiny import save_backbone

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import REGRESSION, SINGLE_LABEL, Evidence
from pfberxit.cli import main

POLICY = '{"threshold": 0.5, "patience": 1}'


def saved(path, labels: list[int] | None, answers: list[list[int]], sure: float = 3.0) -> str:
    """A recording in which each exit answers as given, one list of labels per row."""
    table = torch.nn.functional.one_hot(torch.tensor(answers), 2).float() * sure
    known = None if labels is None else torch.tensor(labels)
    lengths = torch.arange(3, 3 + len(answers))
    Recording(Evidence(table), lengths, known, [2, 4, 6], SINGLE_LABEL, {"metric": "accuracy"}).save(path)
    return str(path)


# Row 0 is right throughout, 1 only at the start, 2 only at the end, 3 nowhere.
ANSWERS, LABELS = [[1, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]], [1, 1, 1, 1]


def test_where_answers_settle_by_hand(tmp_path, capsys):
    main(["report", saved(tmp_path / "a.safetensors", LABELS, ANSWERS)])
    printed = capsys.readouterr().out
    assert "| settled for good (%) | 50.0 | 25.0 | 25.0 |" in printed
    assert "| first right (%) | 50.0 | 0.0 | 25.0 |" in printed
    assert "Layers run after the answer had settled: 2.50 on average." in printed  # 4, 2, 0, 4
    assert (
        "Right at the end and before: 25.0 %. Right before, wrong at the end: 25.0 %. Right nowhere: 25.0 %" in printed
    )


def test_without_labels_it_tells_what_can_be_told(tmp_path, capsys):
    main(["report", saved(tmp_path / "a.safetensors", None, ANSWERS), "--policy", POLICY])
    printed = capsys.readouterr().out
    assert "settled" in printed and "By length" in printed
    assert "right" not in printed and "By label" not in printed


def test_classes_are_called_by_their_names(tmp_path, capsys):
    path = saved(tmp_path / "a.safetensors", [0, 1, 1, 1], ANSWERS)
    main(["report", path, "--policy", POLICY])
    assert "label 1 (3 rows" in capsys.readouterr().out
    replace(Recording.load(path), label_names=["refund", "delivery"]).save(path)
    main(["report", path, "--policy", POLICY])
    printed = capsys.readouterr().out
    assert "refund (1 rows" in printed and "delivery (3 rows" in printed and "label 1" not in printed


def test_every_row_has_its_line_and_every_grouping_its_picture(tmp_path, capsys):
    path = saved(tmp_path / "a.safetensors", LABELS, ANSWERS)
    main(["report", path, "--policy", POLICY, "--output", str(tmp_path / "out")])
    rows = list(csv.DictReader(open(tmp_path / "out" / "rows.csv")))
    _, layers = Recording.load(path).replay(ExitPolicy(threshold=0.5, patience=1))
    assert [int(row["layers"]) for row in rows] == layers.tolist()
    assert [int(row["first_right"]) for row in rows] == [2, 2, 6, 0]
    assert [int(row["settled"]) for row in rows] == [2, 4, 6, 2]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "rows.csv", "exits-by-length.png", "exits-by-label.png"
    }  # fmt: skip


def test_a_changed_stream_is_noticed_and_an_equal_one_is_not(tmp_path, capsys):
    agree, waver = [[1, 1, 1]] * 100, [[1, 0, 1]] * 100
    before, after = (saved(tmp_path / f"{name}.safetensors", None, rows) for name, rows in (("a", agree), ("b", waver)))
    main(["report", after, "--policy", POLICY, "--against", before])
    assert "The exits have drifted" in capsys.readouterr().out
    main(["report", before, "--policy", POLICY, "--against", before])
    assert "No drift is shown: p = 1" in capsys.readouterr().out


def test_what_cannot_be_compared_ends_in_one_line(tmp_path):
    path = saved(tmp_path / "a.safetensors", LABELS, ANSWERS)
    values = Recording(Evidence(torch.randn(4, 3, 1)), torch.arange(3, 7), None, [2, 4, 6], REGRESSION, {})
    values.save(tmp_path / "values.safetensors")
    with pytest.raises(SystemExit, match="policy=None: must be given with against"):
        main(["report", path, "--against", path])
    with pytest.raises(SystemExit, match="against=.*regression.*must be a recording with the exits and answers"):
        main(["report", path, "--policy", POLICY, "--against", str(tmp_path / "values.safetensors")])
    with pytest.raises(SystemExit, match="nowhere.safetensors"):
        main(["report", str(tmp_path / "nowhere.safetensors")])


def test_suitability_needs_no_labels_and_no_training(tmp_path, capsys):
    main(["suitability", save_backbone(tmp_path / "encoder"), "--config", "intent", "--rows", "60"])
    bars = [line for line in capsys.readouterr().out.splitlines() if line.startswith("layer")]
    shares = [float(line.split()[-1]) for line in bars]
    assert len(shares) == 6 and all(0 <= share <= 1 for share in shares) and shares[-1] == max(shares)
