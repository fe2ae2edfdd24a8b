"""`pfberxit elue`: scores by hand from files, what is left out, and the lengths and layers of every row."""

import csv
from pathlib import Path

import pytest
import torch

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.elue import elue_score, improves
from modeling_pfberxit.evaluation.frontier import frontier, grid, sweep
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import SINGLE_LABEL, Evidence
from pfberxit.cli import main

STATIC = [("appointed", 2, 0.5), ("appointed", 4, 0.7), ("appointed", 6, 0.8)]


def write(path: Path, points: list[tuple], cost: str = "layers") -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("criterion", cost, "score"), *points])
    return str(path)


def lines(printed: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in printed.splitlines() if row[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.fixture
def recording(tmp_path) -> str:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (90,), generator=generator)
    logits = torch.randn(90, 6, 3, generator=generator) + torch.nn.functional.one_hot(labels, 3)[:, None]
    lengths = torch.randint(4, 30, (90,), generator=generator)
    kept = Recording(Evidence(logits), lengths, labels, [1, 2, 3, 4, 5, 6], SINGLE_LABEL, {"metric": "accuracy"})
    kept.save(tmp_path / "recording.safetensors")
    return str(tmp_path / "recording.safetensors")


def test_scores_against_static_truncations_by_hand(tmp_path, capsys):
    # the line is 0.6 at 3 and 0.75 at 5: gaps +0.05 and -0.03; 7 layers lie outside
    points = [("entropy", 3, 0.65), ("entropy", 5, 0.72), ("entropy", 7, 0.9), ("voting", 2, 0.55), ("lte", 1, 0.4)]
    path = write(tmp_path / "points.csv", STATIC + points)
    main(["elue", path])
    printed = capsys.readouterr().out
    assert lines(printed) == {
        "entropy": ["+0.0100", "2", "1", "no"],
        "voting": ["+0.0500", "1", "0", "yes"],
        "lte": ["–", "0", "1", "no"],
    }
    assert "covers 2 to 6 layers. Left out: entropy at 7, lte at 1." in printed


def test_another_file_and_another_cost_can_be_the_reference(tmp_path, capsys):
    points = write(tmp_path / "points.csv", [("entropy", 0.3, 0.8), ("appointed", 0.5, 0.7)], cost="macs")
    write(tmp_path / "reference.csv", [("", 0.2, 0.6), ("", 0.4, 0.8)], cost="macs")
    main(["elue", points, "--reference", str(tmp_path / "reference.csv"), "--cost", "macs"])
    assert lines(capsys.readouterr().out) == {
        "entropy": ["+0.1000", "1", "0", "yes"],
        "appointed": ["–", "0", "1", "no"],
    }


def test_a_recording_is_scored_against_its_own_exits(recording, capsys):
    main(["elue", recording])
    found, kept = lines(capsys.readouterr().out), Recording.load(recording)
    logits, labels = kept.evidence.logits, kept.labels
    static = [(n + 1, (logits[:, n].argmax(-1) == labels).double().mean().item()) for n in range(6)]
    best = [(each.layers, each.score) for each in frontier(sweep(kept, grid(kept, "entropy"), "accuracy"))]
    assert found["entropy"][0] == f"{elue_score(best, static).score:+.4f}" and "appointed" not in found


def test_the_dynamic_flops_file_has_every_row_in_order(recording, tmp_path, capsys):
    out = tmp_path / "flops.tsv"
    main(["elue", recording, "--dynamic-flops", str(out), "--policy", '{"criterion": "entropy", "threshold": 0.9}'])
    kept = Recording.load(recording)
    _, layers = kept.replay(ExitPolicy("entropy", threshold=0.9))
    written = [tuple(map(int, row.split("\t"))) for row in out.read_text().splitlines()]
    assert written == list(zip(kept.lengths.tolist(), layers.tolist())) and len(set(layers.tolist())) > 2


def test_a_set_improves_on_another_if_it_is_better_somewhere_and_worse_nowhere():
    reference = [(2, 0.5), (4, 0.7)]
    assert improves([(2, 0.6)], reference) and improves([(1, 0.5), (4, 0.7)], reference)
    assert not improves(reference, reference) and not improves([(1, 0.4)], reference), "neither better nor worse"
    assert not improves([(2, 0.6), (4, 0.65)], reference), "worse in one place"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{csv}", "--cost", "ms"], "cost='ms': must be a column of .*criterion, layers, score"),
        (["{csv}", "--reference", "{csv}"], "reference=.*: must be a file with the points of one method"),
        (["{csv}", "--dynamic-flops", "x"], "dynamic_flops='x': must be asked of a recording"),
        (["{plain}"], "static=.*: must be a file with lines of the criterion appointed"),
        (["{recording}", "--cost", "macs"], "cost='macs': must be layers for a recording"),
        (["{recording}", "--dynamic-flops", "x"], "policy=None: must be a JSON object with fields of criterion"),
        (["{recording}", "--dynamic-flops", "x", "--policy", '{{"tau": 1}}'], "policy=.*: must be a JSON object"),
        (["{recording}", "--dynamic-flops", "x", "--policy", "{{}}"], "policy=.*: must be one under which rows leave"),
        (["{nothing}"], "No such file"),
    ],
)
def test_what_cannot_be_scored_ends_in_one_line(arguments, message, recording, tmp_path):
    places = {
        "csv": write(tmp_path / "points.csv", [*STATIC, ("entropy", 3, 0.6)]),
        "plain": write(tmp_path / "plain.csv", [("entropy", 3, 0.6)]),
        "recording": recording,
        "nothing": str(tmp_path / "nothing.csv"),
    }
    with pytest.raises(SystemExit, match=message):
        main(["elue", *(each.format(**places) for each in arguments)])
    assert not Path("x").exists()
