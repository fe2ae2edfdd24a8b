"""Ray Data: the answers of `pfberxit predict` for Parquet files of any number, from as many processes as a cluster has.

`PFBerxitPredictor` is a class for `map_batches` in a pipeline of one's own. `predict_parquet` is a whole job, which
goes on where it was when one of its processes, or all of them, were killed.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError

from ...data.outputs import beside
from ...data.parquet import open_parquet
from ...data.parts import GrowingFolder, Part, about, write_part
from ...data.survey import Source, Survey
from ...evaluation.prediction import ANSWER, Predictor, Totals
from ...model.evidence import REGRESSION
from ...model.losses import problem_type_of
from ...model.validation import refuse, whole

ROWS_PER_PART = 16_384  # some tens of seconds of one core


class PFBerxitPredictor:
    """Tables of Arrow -> the same with label, score and exit layer, for `map_batches(..., batch_format="pyarrow")`.

    Args:
        model: a folder that every node has, or a Hub id.
        text, pair: the columns of the text and of the second text.
        asked: policy, max_length, device, dtype and batch_size, as `Predictor.load` takes them.
    """

    def __init__(self, model: str, *, text: str, pair: str | None = None, **asked: Any) -> None:
        self.names = tuple(name for name in (text, pair) if name is not None)
        self.predictor = Predictor.load(model, **asked)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The columns of the rows, renamed where they are called like ours, and our own."""
        if not isinstance(rows, pa.Table):
            refuse("batch_format", type(rows).__name__, "pyarrow, tables with a column for each text")
        return self.answered(rows)[0]

    def answered(self, rows: pa.Table) -> tuple[pa.Table, Totals]:
        """The same, and what was counted."""
        for name in self.names:
            if name not in rows.column_names:
                refuse("text", name, f"one of the columns {', '.join(rows.column_names)}")
        totals = Totals(before=0)
        answers = self.predictor.answers(rows.select(self.names).to_pylist(), self.names, totals)
        renamed = beside(rows.column_names, ANSWER)
        table = rows.rename_columns([renamed[name] for name in rows.column_names])
        for name, kind, values in zip(ANSWER, self.types, list(zip(*answers)) or [()] * len(ANSWER)):
            table = table.append_column(name, pa.array(values, kind))
        return table, totals

    @property
    def types(self) -> tuple[pa.DataType, ...]:
        """Of the columns that are added: a label is a string, but one value is a number."""
        config = self.predictor.model.config
        value = problem_type_of(config) == REGRESSION and config.num_labels == 1
        return pa.float64() if value else pa.string(), pa.float64(), pa.int64()


class PartWriter:
    """Parts of a job, by their fields -> their names, when their files are there.

    Args:
        folder: where the files go; every node must see it under this path.
        asked: as `PFBerxitPredictor` takes them.
    """

    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        self.folder, self.predictor = Path(folder), PFBerxitPredictor(**asked)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the parts that nobody has written yet."""
        for fields in zip(*(batch[name].tolist() for name in Part.__dataclass_fields__)):
            part = Part(*fields)
            if not (path := self.folder / part.name).exists():
                rows, totals = self.predictor.answered(part.read())
                write_part(path, rows, {name: getattr(totals, name) for name in ("empty", "cut", "unsure", "layers")})
        return {"name": batch["name"]}


def predict_parquet(
    model: str, dataset: str, output: str | os.PathLike, *, text: str | None = None, pair: str | None = None,
    split: str | None = None, workers: int = 2, cpus: float = 1, gpus: float = 0, rows_per_part: int = ROWS_PER_PART,
    **asked: Any,
) -> Totals:  # fmt: skip
    """Write every row of Parquet files with its answer to a folder of Parquet files, in the rows' order by name.

    Args:
        model, text, pair, asked: as `PFBerxitPredictor` takes them; columns that are certain by name need not be named.
        dataset: a file, a folder or a glob. It, the output and a folder as model are paths that every node sees.
        workers: processes, each with a model, `cpus` cores and `gpus` GPUs.
        rows_per_part: rows of an output's file, which is what a killed process loses at most.

    Raises:
        ValueError, OSError: before any row is answered: as `pfberxit predict`; the output was begun with other rows,
            another model or policy. The same call goes on with it.
    """
    whole(1)("workers", workers)
    model = os.path.abspath(model) if os.path.isdir(model) else model
    source, parts = open_parquet(dataset, text=text, pair=pair, split=split, rows_per_part=rows_per_part)
    asked = {"model": model, "text": source.names[0], "pair": dict(enumerate(source.names)).get(1), **asked}
    needs = {"num_cpus": cpus, "num_gpus": gpus}
    run = told(ray.remote(identity).options(**needs).remote(asked, source.names, source.survey))
    folder = GrowingFolder(output, parts, {**run, "rows_per_part": rows_per_part})
    missing = folder.missing()
    totals = Totals(before=source.survey.rows - sum(part.rows for part in missing))
    if missing:
        run_parts(missing, str(folder.growing), asked, workers, needs)
    for part in missing:
        add(totals, about(folder.growing / part.name))
    folder.finish()
    return totals


def identity(asked: dict[str, Any], names: tuple[str, ...], survey: Survey) -> dict[str, Any]:
    """What the answers depend on, as a process with a worker's devices finds it."""
    predictor = PFBerxitPredictor(**asked).predictor
    return predictor.identity(Source(lambda: iter(()), names, survey))


def told(answer: ray.ObjectRef) -> Any:
    """What a task returned; what it raised, as it was raised there."""
    try:
        return ray.get(answer)
    except RayTaskError as error:
        raise error.cause from None


def run_parts(parts: Sequence[Part], folder: str, asked: dict[str, Any], workers: int, needs: dict[str, float]) -> None:
    """Have all parts written; parts that a killed worker was at are begun anew by another."""
    items = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
    pool = ray.data.ActorPoolStrategy(size=workers)
    options: dict[str, Any] = {"batch_size": 1, "compute": pool, "fn_constructor_args": (folder, asked), **needs}
    for _ in items.map_batches(PartWriter, **options).iter_batches(batch_size=None):
        pass


def add(totals: Totals, counted: dict[str, int]) -> None:
    """Take a written part into account."""
    for name, count in counted.items():
        setattr(totals, name, getattr(totals, name) + count)
