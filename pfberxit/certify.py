"""`pfberxit certify`: how often answers may differ from full depth's, with a confidence, stored with the model."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import NONE_PASSED, add_execution, add_model, add_policy, add_promise, add_texts

HELP = "certify how often answers differ from full depth's, and store the settings with the model"
BROKEN = 4  # exit code
Asked = tuple[Path, str, str | None, str | None, dict[str, Any], Any]  # folder, data and its columns, loaded model


def add_arguments(parser: ArgumentParser) -> None:
    """A saved model, texts it has not used, and what is to be promised of it."""
    add_model(parser, "folder of a fine-tuned model, in which certificates are stored, or with --output a Hub id")
    add_texts(parser)
    add_promise(parser)
    parser.add_argument(
        "--per-label", nargs="*", metavar="LABEL",
        help="the texts of every label must pass on their own as well; or those of these labels alone",
    )  # fmt: skip
    parser.add_argument(
        "--claim", help="what is counted: differ, flips (of several labels' decisions), or with --label newly_wrong, "
        "accuracy_drop (default: differ)",
    )  # fmt: skip
    add_policy(parser, "a rule, as JSON, whose threshold is to be chosen, or a whole setting (default: all rules)")
    add_execution(parser)
    parser.add_argument("--seed", type=int, help="of the split into texts to choose on and to certify on")
    parser.add_argument("--output", metavar="FOLDER", help="store certificates in a copy of the model, made there")
    parser.add_argument("--check", action="store_true", help="look for evidence against certificates on new texts")
    parser.add_argument("--state", metavar="FILE", help="with --check: evidence so far, read and written")
    parser.set_defaults(differ=None)  # to tell that it was given


def run(
    model: str, dataset: str, config: str | None, columns: dict[str, Any], split: str | None, confidence: float,
    policy: str | None, max_length: int | None, device: str | None, dtype: str | None, output: str | None, check: bool,
    state: str | None, **promised: Any,
) -> None:  # fmt: skip
    """Record the texts once, certify on those that chose nothing, and store what passed; or check what is stored."""
    from modeling_pfberxit.evaluation.certified_copy import check_place, local_folder
    from modeling_pfberxit.evaluation.saved_model import load_model, tokens_read
    from modeling_pfberxit.model.validation import refuse

    check_place(model, output, check)
    if state is not None and not check:
        refuse("state", state, "given together with --check")
    given = {name: value for name, value in promised.items() if value is not None}
    if check and given:
        refuse(*next(iter(given.items())), "left out with --check: a certificate says what it is about")
    loaded, tokenizer = load_model(model, device, dtype)
    asked = (local_folder(model), dataset, config, split, columns, loaded)
    read = tokens_read(loaded, tokenizer, max_length)
    if check:
        look(asked, tokenizer, read, policy, confidence, state)
    else:
        promise(asked, tokenizer, read, policy, confidence, output, **given)


def promise(
    asked: Asked, tokenizer: Any, read: int, policy: str | None, confidence: float, output: str | None,
    differ: Sequence[float] = (0.01,), claim: str = "differ", per_label: list[str] | None = None, seed: int = 0,
    tolerance: float | None = None,
) -> None:  # fmt: skip
    """Certify and store; print what is promised. Ends with an exit code of its own where no setting passes."""
    from modeling_pfberxit.evaluation import certified_copy, certifying, kept_pass
    from modeling_pfberxit.evaluation.claims import claim_for, needs_labels
    from modeling_pfberxit.evaluation.saved_model import asked_policy
    from modeling_pfberxit.evaluation.used_texts import knows_training
    from modeling_pfberxit.model.losses import problem_type_of
    from modeling_pfberxit.model.validation import label_names
    from modeling_pfberxit.training.certificate_card import add_section

    folder, *_, loaded = asked
    labels: Any = per_label is not None and (per_label or True)
    claim_for(claim, problem_type_of(loaded.config), tolerance, labels, label_names(loaded.config))
    certifying.check_length(loaded.config.operating_points, differ, read)
    rule = certifying.policy_asked_for(asked_policy(policy), loaded)
    texts = certifying.fresh_texts(*asked, labelled=needs_labels(claim))
    choosing = rule is None or not rule.is_active(problem_type_of(loaded.config))
    certifying.check_enough(texts, differ, confidence, choosing)
    say(texts, read)
    if not knows_training(folder):
        print(f"{folder} does not say which texts trained it; none of these may be among them.", flush=True)
    parts, place = Path(output or folder) / certified_copy.PASS, output or folder
    kept = certifying.recorded_texts(loaded, tokenizer, texts, read, parts)
    options = {"tolerance": tolerance, "claim": claim, "per_label": labels}
    made, numbers = certifying.certify_texts(kept, texts.numbers, differ, confidence, seed, policy=rule, **options)
    facts = {"max_length": read, "columns": list(texts.names), **certifying.origin(loaded)}
    with certified_copy.stored_in(folder, output) as draft:
        points = certifying.keep(draft, made, numbers, **facts)
        certifying.read_as_certified(draft, read)
        add_section(draft, certifying.stored_points(draft), Path(place).resolve().name)
    kept_pass.forget(parts)
    for each in made:
        print(f"\n{each.name}: {each.in_words()}")
        if each.passed:
            print(f"Saves {100 * each.saved:.0f} % of the layers: exit_policy={each.name!r}")
    if not points:
        print(f"\n{place} now runs to full depth.")
        raise SystemExit(NONE_PASSED)
    print(f"\nStored in {place}/config.json; the first of them is the model's own rule from now on.")


def look(asked: Asked, tokenizer: Any, read: int, policy: str | None, confidence: float, state: str | None) -> None:
    """Hold certificates against new texts, keep the evidence, print it. Ends with an exit code of its own if broken."""
    from modeling_pfberxit.evaluation import certifying, checking
    from modeling_pfberxit.evaluation.claims import needs_labels

    folder, *_, loaded = asked
    points = checking.certified_points(loaded.config.operating_points, policy)
    kept = checking.State.load(state, loaded.config.weights_sha256)
    labelled = any(needs_labels(point["certificate"]["claim"]) for point in points.values())
    texts = certifying.fresh_texts(*asked, labelled=labelled, seen=kept.seen)
    facts = {"max_length": read, "columns": list(texts.names), **certifying.origin(loaded)}
    checking.check_alike(points, facts)
    say(texts, read)
    if len(texts):
        checking.look(kept, certifying.recorded_texts(loaded, tokenizer, texts, read), texts.numbers, points)
    if state is not None:
        kept.save(state)
    broken = checking.verdicts(kept, list(points), confidence)
    for name, each in kept.certificates.items():
        if name in broken:
            words = "broken" if broken[name] else "no evidence against it"
            print(f"\n{name}: {words} ({each.in_words(len(broken), confidence)})")
    if any(broken.values()):
        raise SystemExit(BROKEN)


def say(texts: Any, read: int) -> None:
    """Which texts are read, and which are not."""
    print(f"{len(texts):,} texts in {' and '.join(texts.names)}, read up to {read} tokens", flush=True)
    for reason, number in texts.left_out.items():
        print(f"{number:,} texts are left out: {reason}")
