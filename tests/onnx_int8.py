"""Ways to 8 bits, compared by how often the answers, and the layers rows leave after, are those of float32.

    python tests/onnx_int8.py MODEL glue --config sst2 --split train --rows 1000

All exits of all rows are evaluated in one graph, and the model's own rule is replayed on what they say. `per token` is
what `--int8` writes. `static` has ranges of activations that other texts gave; ONNX Runtime's own `dynamic`, one range
for all that a product reads.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from transformers import AutoTokenizer

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.data.texts import encode_texts, load_texts
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.evaluation.tables import table
from modeling_pfberxit.export.evidence import EvidenceFile
from modeling_pfberxit.export.made import begun
from modeling_pfberxit.export.quantised import quantised
from modeling_pfberxit.export.segments import segments_of
from modeling_pfberxit.export.verification import batches
from modeling_pfberxit.model.evidence import Evidence
from modeling_pfberxit.model.losses import problem_type_of

CALIBRATE = 128  # rows that give static ranges, none of them compared on


class Reader:
    """Batches of one row, as ONNX Runtime's calibration reads them."""

    def __init__(self, rows: list[dict[str, np.ndarray]]) -> None:
        self.rows = iter(rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one; None at the end."""
        return next(self.rows, None)


def ways(full: Path, calibration: list[dict[str, np.ndarray]]) -> dict[str, Path]:
    """A file for each way."""
    found = {"per token": full.with_name("token.onnx"), "dynamic": full.with_name("dynamic.onnx")}
    onnx.save(quantised(onnx.load(full)), found["per token"])
    quantize_dynamic(full, found["dynamic"], op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True)
    for name, per_channel in (("static", False), ("static, per channel", True)):
        found[name] = full.with_name(f"{len(found)}.onnx")
        options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "reduce_range": True}
        quantize_static(full, found[name], Reader(calibration), op_types_to_quantize=["MatMul"],
                        per_channel=per_channel, **options)  # fmt: skip
    return found


def logits_of(path: Path, given: list[dict[str, np.ndarray]]) -> torch.Tensor:
    """What all exits say, (N, E, C)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.concatenate([session.run(["logits"], batch)[0] for batch in given]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--config")
    parser.add_argument("--split")
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    model = PFBerxitForSequenceClassification.from_pretrained(options.model).eval()
    texts = load_texts(options.data, options.config, split=options.split)
    chosen = texts.rows.select(range(options.rows + CALIBRATE))
    encoded = encode_texts(chosen, texts.names, AutoTokenizer.from_pretrained(options.model), 64)
    rows = [{"input_ids": torch.tensor(ids)} for ids in encoded["input_ids"]]
    given = [{name: value.numpy() for name, value in batch.items()} for batch in batches(rows, 1, model)]
    segments, policy, kind = segments_of(model), model.config.exit_policy, problem_type_of(model.config)
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.onnx"
        onnx.save(begun(EvidenceFile, segments, policy).build(), full)
        files = {"float32": full, **ways(full, given[:CALIBRATE])}
        logits = {name: logits_of(path, given[CALIBRATE:]) for name, path in files.items()}
    lines = []
    own, its = replay(Evidence(logits["float32"]), policy, model.exit_depths, kind)
    for name, said in logits.items():
        answers, layers = replay(Evidence(said), policy, model.exit_depths, kind)
        same = (answers.argmax(-1) == own.argmax(-1)).sum().item(), (layers == its).sum().item()
        last = (said[:, -1].argmax(-1) == logits["float32"][:, -1].argmax(-1)).sum().item()
        lines.append([name, *map(str, (*same, last)), f"{(said - logits['float32']).abs().mean().item():.3f}"])
    print(table(["way", "same answer", "same layer", "same answer at full depth", "logits apart"], lines))  # noqa: T201


if __name__ == "__main__":
    main()
