"""One pass over texts: what the exits of a model read, kept in memory-mapped files, and the last exit's answers.

Nothing that exits read changes while they learn beside a frozen encoder, so they can learn from the record in seconds,
any number of times. The files are filled batch by batch; a pass that was killed goes on behind its last batch, and ends
with the same bits as one that was not.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..model.adapters import PLACEMENTS
from ..model.exit_policy import FULL_DEPTH
from ..model.heads import POOLINGS
from ..model.identity import arithmetic
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.persistence import replacing
from ..model.streams import as_row, pad_rows
from ..model.validation import refuse

POOLING = "both"  # first token, then mean: what is kept of every row and layer
MOST_ROWS = 256  # of a batch
TIMED = 3  # batches that are run to estimate how long all of them take


@dataclass(frozen=True)
class States:
    """What E exits below the last layer may read of N rows, and what the last exit answers.

    Args:
        pooled: (N, E, 2 d), the first token's state, then the mean over the tokens.
        logits: (N, C) of the last exit.
        lengths: (N,) tokens of each row.
        exit_depths: layers of all exits, the last one included.
    """

    pooled: Tensor
    logits: Tensor
    lengths: Tensor
    exit_depths: list[int]

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Tensor) -> "States":
        """Some of the rows, by their numbers, in memory."""
        return States(self.pooled[rows], self.logits[rows], self.lengths[rows], self.exit_depths)

    def read(self, number: int, pooling: str) -> Tensor:
        """What exit `number` (0-based) pools of the rows, (N, d) or (N, 2 d)."""
        kept = self.pooled[:, number].unflatten(-1, (2, -1))  # as a row of two tokens, of which the second is the mean
        return POOLINGS[pooling].pool(kept, kept.new_tensor([[0.0, 1.0]]).expand(len(self), 1, 2))


class Pass:
    """All texts through the encoder, once.

    Args:
        model: one whose exits change nothing on the way.
        rows: `input_ids` and what else the tokenizer made.
        folder: where the record is kept until it is no longer needed.

    Raises:
        ValueError: adapters in the encoder or in front of exits, which would have to be run again at every step.
    """

    def __init__(self, model: PFBerxitForSequenceClassification, rows: Dataset, folder: str | os.PathLike) -> None:
        check_still(model)
        self.model, self.rows, self.folder = model.eval(), rows, Path(folder)
        self.lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
        self.batches = list(batches_of(self.lengths, self.room))
        self.key = fingerprint(model, rows, len(self.batches))
        check_space(
            self.folder, sum(torch.Size(shape).numel() for shape in self.shapes.values()) * model.dtype.itemsize
        )

    def room(self, length: int) -> int:
        """Rows of a batch."""
        return min(MOST_ROWS, self.model.execution.room(length, self.model.device.type))

    @property
    def done(self) -> int:
        """Batches that a former run of the same pass has kept."""
        path = self.folder / "progress.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return known.get("batches", 0) if known.get("key") == self.key else 0

    def seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """An estimate of how long what is left takes, from the time of a few batches."""
        left = self.batches[self.done :]
        if not left:
            return 0.0
        sample = left[:TIMED]
        self.run(sample[0])  # warm
        start = clock()
        for numbers in sample:
            self.run(numbers)
        tokens = [sum(int(self.lengths[part].sum()) for part in batches) for batches in (left, sample)]
        return (clock() - start) * tokens[0] / tokens[1]

    def record(self, progress: bool = True) -> States:
        """Run what is left, in a fixed order, and give the whole record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done, states = self.done, self.open()
        bar = tqdm(total=len(self.rows), desc="One pass", unit=" texts", disable=None if progress else True)
        bar.update(sum(map(len, self.batches[:done])))
        with bar:
            for number, rows in enumerate(self.batches[done:], start=done + 1):
                states.pooled[rows], states.logits[rows] = self.run(rows)
                self.note(number)
                bar.update(len(rows))
        return states

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what is kept, by the name of its file."""
        size, exits = self.model.config.encoder_config().hidden_size, len(self.model.exit_depths) - 1
        read = POOLINGS[POOLING].states * size
        return {"pooled": (len(self.rows), exits, read), "logits": (len(self.rows), self.model.num_labels)}

    def open(self) -> States:
        """The files, as large as they will be."""
        parts = {
            name: mapped(self.folder / f"{name}.bin", shape, self.model.dtype) for name, shape in self.shapes.items()
        }
        return States(**parts, lengths=self.lengths, exit_depths=self.model.exit_depths)

    @torch.inference_mode()
    def run(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What exits read of some rows (B, E, 2 d), and the last exit's logits (B, C)."""
        part, seen = self.rows.select(rows.tolist()), []
        batch = pad_rows([as_row("row", row) for row in part], self.model.config.pad_token_id or 0, self.model.device)

        def keep(_: Any, inputs: tuple) -> None:
            """Called in front of every exit: number, states, what tokens weigh, mask, pooler."""
            number, states, weights, *_ = inputs
            if number < len(self.model.exit_depths) - 1:
                seen.append(POOLINGS[POOLING].pool(states, weights))

        hook = self.model.exits.register_forward_pre_hook(keep)
        try:
            logits = self.model(**batch, exit_policy=FULL_DEPTH, return_dict=True).logits
        finally:
            hook.remove()
        pooled = torch.stack(seen, dim=1) if seen else logits.new_empty(len(rows), 0, 0)
        return pooled.cpu(), logits.cpu()

    def note(self, batches: int) -> None:
        """Write down how many batches are kept."""
        with replacing(self.folder / "progress.json") as draft:
            draft.write_text(json.dumps({"key": self.key, "batches": batches}), encoding="utf-8")

    def forget(self) -> None:
        """Remove the record."""
        for name in ("pooled.bin", "logits.bin", "progress.json"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()


def check_still(model: PFBerxitForSequenceClassification) -> None:
    """Refuse a model in which what exits read would change while they learn."""
    config = model.config
    if PLACEMENTS[config.adapter_placement] != PLACEMENTS["none"]:
        refuse("adapter_placement", config.adapter_placement, "'none' here: what exits read is kept once. Adapters in "
               "front of exits learn with Trainer (distillation=1.0)")  # fmt: skip
    if config.train_backbone:
        refuse("train_backbone", True, "False here: what exits read is kept once")
    if len(model.exit_depths) < 2:
        refuse("exit_layers", config.exit_layers, "a layer below the last, too")


def batches_of(lengths: Tensor, room: Callable[[int], int]) -> Iterator[Tensor]:
    """The rows' numbers in batches of similar length, in a fixed random order, so that time left can be told."""
    order = lengths.argsort(descending=True, stable=True)
    batches, start = [], 0
    while start < len(order):
        size = room(int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    for number in torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist():
        yield batches[number]


def check_space(folder: Path, needed: int) -> None:
    """Refuse a record that the disk has no room for: a mapped file that cannot grow would end the process."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    kept = sum(path.stat().st_blocks * 512 for path in folder.glob("*.bin")) if folder.exists() else 0
    if (free := shutil.disk_usage(there).free + kept) < needed:
        raise OSError(
            f"{folder}: the record of the pass takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free."
        )


def mapped(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor whose values are a file's, made as large as needed."""
    count = torch.Size(shape).numel()
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(*shape)


def fingerprint(model: PFBerxitForSequenceClassification, rows: Dataset, batches: int) -> str:
    """What a record is of: weights, tokens, and how they are run."""
    digest, config = hashlib.sha256(), model.config
    about = [config.base_model_sha256, model.exit_depths, arithmetic(model), model.device.type, torch.__version__]
    digest.update(json.dumps([*about, config._attn_implementation, batches, torch.get_num_threads()]).encode())
    for batch in rows.select_columns(["input_ids"]).iter(1000):
        digest.update(json.dumps(batch["input_ids"]).encode())
    return digest.hexdigest()
