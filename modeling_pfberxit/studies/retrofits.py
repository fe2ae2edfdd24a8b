"""Fine-tuned classifiers, retrofitted without labels, beside what else would make them faster.

Beside them stand PF-BERxiT trained on the same labelled rows, the classifier cut to its first layers with a head that
learned from the same texts, and the classifier in 8 bits. Rows that choose settings are no rows that anything learned
from, and scores are of others again.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.tasks import encode
from ..evaluation.bounds import rows_needed
from ..evaluation.recording import Recording, record
from ..model.evidence import REGRESSION
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..training.finetuning import new_tokenizer
from ..training.retrofit_plan import LEAST_CHOOSE, LEAST_TRAIN
from ..training.retrofitted import retrofit
from .classifiers import classifier_of, int8_logits
from .paper_study import RULES, Study
from .results import added
from .retrofit_speed import timed
from .retrofit_table import as_markdown, few_texts, measure, picture
from .runs import Run, further_rows, split_rows
from .trainings import Trained, cached, content_of, name_of

DIFFER, CONFIDENCE, LAST_RESORT = (0.01, 0.02, 0.05), 0.95, 0.1
TOLERANCE = 0.5  # of values, such as STS-B's from 0 to 5
TEXTS = 10_000  # at most
FEW_TEXTS = (200, 1000, TEXTS)


def retrofits(study: Study) -> str:
    """A table for every task and seed; numbers in `results.json`, a picture in `retrofits.png`."""
    results = [measured(study, run, TEXTS) for task in study.tasks for run in study.runs(task)]
    everything = [each for each in added(study.folder, results, "asked") if each["asked"] == TEXTS]
    picture(everything, study.folder / "retrofits.png")
    return as_markdown(everything)


def texts(study: Study) -> str:
    """What few texts give, a line for each number of them."""
    runs = [run for task in study.tasks for run in study.runs(task)]
    results = [measured(study, run, number) for run in runs for number in FEW_TEXTS]
    return few_texts(added(study.folder, results, "asked"))


def speed(study: Study) -> str:
    """Milliseconds a row at the certified settings, beside the stock model and ONNX Runtime; for an idle machine."""
    tables = []
    for run in (run for task in study.tasks for run in study.runs(task)):
        retrofitted(study.folder, run, TEXTS, study.say)
        place = study.folder / "retrofits" / name_of(key_of(run, TEXTS))
        tables.append(timed(run, classifier_of(study.folder, run, study.say), place))
    return "\n\n".join(tables)


def measured(study: Study, run: Run, number: int) -> dict[str, Any]:
    """The result of one run, with so many texts at most."""
    kept = retrofitted(study.folder, run, number, study.say)
    _, labelled = study.model(RULES["pf-mlp"], run)
    return {"asked": number, **measure(kept, labelled, tolerance_of(run))}


def tolerance_of(run: Run) -> float | None:
    """How far values may lie apart and still be the same; None for labels."""
    return TOLERANCE if run.source.task.problem_type == REGRESSION else None


def retrofitted(folder: Path, run: Run, number: int, say: Callable[[str], None]) -> Trained:
    """The recordings of a retrofitted classifier: of the rows to choose settings on, and of those to report on.

    Their facts hold its certificates, and what the classifier answers in 8 bits.
    """
    key = key_of(run, number)
    kept = cached(folder, key, lambda: retrofit_and_record(folder, run, number, name_of(key), say))
    parts = (kept.chosen_on, kept.reported_on)
    return Trained(*(replace(part, source={**part.source, **run.facts()}) for part in parts))


def key_of(run: Run, number: int) -> dict[str, Any]:
    """What a retrofitted classifier is made of, with so many texts at most."""
    how = {"format": 2, "texts": number, "differ": DIFFER, "confidence": CONFIDENCE, "tolerance": tolerance_of(run)}
    return content_of(run, run.backbone, retrofit=how)


def retrofit_and_record(
    folder: Path, run: Run, number: int, name: str, say: Callable[[str], None]
) -> tuple[Recording, Recording]:
    """Retrofit the run's classifier on texts that it has not seen, and record its exits on other rows."""
    classifier, place = classifier_of(folder, run, say), folder / "retrofits" / name
    task, asked = run.source.task, further_rows(run, number)
    say(f"retrofitting it on {len(asked):,} texts ...")
    if not (place / "config.json").exists():
        file = place.with_suffix(".parquet")
        place.mkdir(parents=True, exist_ok=True)
        asked.select_columns(list(task.texts)).to_parquet(file)
        retrofit(
            str(classifier), str(file), place, columns=dict(zip(("text", "pair"), task.texts)), split="train",
            differ=possible(len(asked)), confidence=CONFIDENCE, tolerance=tolerance_of(run), seed=run.seed,
            max_length=run.budget.max_length, say=say,
        )  # fmt: skip
        file.unlink()
    model = PFBerxitForSequenceClassification.from_pretrained(place).eval()
    held_out, rows, evaluation = split_rows(run)
    tokenizer = new_tokenizer(str(place))
    chosen_on, reported_on = (encode(task, part, tokenizer, run.budget.max_length) for part in (held_out, evaluation))
    facts = {
        "train_rows": len(rows), "texts": len(asked), "points": model.config.operating_points,
        "int8": int8_logits(classifier, reported_on).tolist(),
    }  # fmt: skip
    found = record(model, chosen_on, **facts), record(model, reported_on, **facts)
    shutil.rmtree(place / "pass", ignore_errors=True)
    return found


def possible(rows: int) -> list[float]:
    """The rates that so many texts can be certified at, sharing the confidence."""
    left = rows - LEAST_CHOOSE - LEAST_TRAIN
    for first in range(len(DIFFER)):
        asked = DIFFER[first:]
        if rows_needed(asked[0], 1 - (1 - CONFIDENCE) / len(asked)) <= left:
            return list(asked)
    return [LAST_RESORT]
