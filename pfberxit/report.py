"""`pfberxit report`: overthinking, where rows exit, and drift, from a recording."""

from argparse import ArgumentParser
from pathlib import Path

HELP = "scores and confusions of classes, overthinking, who leaves where, and drift, from a recording"


def add_arguments(parser: ArgumentParser) -> None:
    """A recording, perhaps a policy and an earlier recording to compare with."""
    parser.add_argument("recording", help="of `pfberxit frontier` (.safetensors)")
    parser.add_argument("--policy", metavar="JSON", help='who leaves where: {"threshold": 0.3, "patience": 1}')
    parser.add_argument("--against", metavar="FILE", help="an earlier recording: has anything changed?")
    parser.add_argument("--output", help="a folder for pictures and a line for every row")


def run(recording: str, policy: str | None, against: str | None, output: str | None) -> None:
    """Print where predictions settle, scores of classes, and under a policy where rows exit and if that drifted."""
    from modeling_pfberxit.evaluation import recording_report as report
    from modeling_pfberxit.evaluation.abstaining import as_table, risk_coverage
    from modeling_pfberxit.evaluation.elue_report import read_policy
    from modeling_pfberxit.evaluation.exit_patterns import drift
    from modeling_pfberxit.evaluation.recording import Recording
    from modeling_pfberxit.evaluation.replay import answered
    from modeling_pfberxit.evaluation.settings import histogram
    from modeling_pfberxit.model.evidence import REGRESSION

    kept = Recording.load(recording)
    asked = None if policy is None else read_policy(policy, kept)
    before = None if against is None else report.comparable(Recording.load(against), kept, asked)
    print(f"{len(kept)} rows, {kept.layers} layers\n\n{report.settling(kept)}")
    if kept.labels is not None and kept.problem_type != REGRESSION:
        print(f"\n{report.by_class(kept, asked)}")
    groups = {} if asked is None else report.leaving(kept, asked)
    for title, depths in groups.items():
        print(f"\n{title}\n\n{histogram(depths, kept.layers)}")
    if asked is not None and asked.answer == "abstain":
        given = answered(kept.replay(asked)[0]).double().mean().item()
        print(f"\nUnsure, without an answer: {100 * (1 - given):.1f} % of the rows. What other limits do:\n")
        print(as_table(risk_coverage(kept, asked), kept.layers))
    if before is not None and asked is not None:
        print("\n" + report.drifting(drift(before, kept, asked)))
    if output:
        report.save(kept, asked, groups, Path(output))
        print(f"\nWrote {output}/rows.csv" + (f" and {len(groups)} pictures" if groups else ""))
