"""`pfberxit elue`: how far points lie above a reference."""

from argparse import ArgumentParser

HELP = "the ELUE score of points against static truncations, or other points"


def add_arguments(parser: ArgumentParser) -> None:
    """A file of points, and the reference they are compared with."""
    parser.add_argument("points", help="a CSV of `frontier` or `reproduce frontiers`, or a recording (.safetensors)")
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--reference", metavar="FILE", help="whose points, all of them, are the reference")
    against.add_argument("--static", metavar="FILE", help="whose exits are the reference (default: those in points)")
    parser.add_argument("--cost", default="layers", help="a column of the CSV: layers, macs, milliseconds")
    parser.add_argument("--metric", help="of a recording that names none")
    parser.add_argument("--dynamic-flops", metavar="FILE", help="write lengths and layers of a recording's rows to it")
    parser.add_argument("--policy", metavar="JSON", help='for that: {"criterion": "entropy", "threshold": 0.3}')


def run(
    points: str, reference: str | None, static: str | None, cost: str, metric: str | None, policy: str | None,
    dynamic_flops: str | None,
) -> None:  # fmt: skip
    """Print the points' scores and those outside the reference; write the file for ELUE's server, if named."""
    from modeling_pfberxit.evaluation.elue_report import scores, write_dynamic_flops
    from modeling_pfberxit.model.validation import refuse

    if policy is not None and not dynamic_flops:
        refuse("policy", policy, "given together with --dynamic-flops, which is what reads it")
    if dynamic_flops:
        write_dynamic_flops(points, policy, dynamic_flops)
        print(f"Wrote {dynamic_flops}\n")
    print(scores(points, reference, static, cost, metric))
