"""Speed against the stock `transformers` model of the same encoder, in one run, in turn, as ratios.

* overhead: full depth with adapters and all exits, over the stock model;
* efficiency: wall-clock speed-up over layer speed-up. 1.0 means that every layer saved shows on the clock. Early exits
  after layers 3, 6 and 9: all rows at one of them (`appointed`), and rows spread over layers 6, 9 and 12 by divergence.

Weights are random: they decide nothing about speed, and exit depths are set, not learned.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ..configuration_pfberxit import PFBerxitConfig
from ..criteria import start
from ..evidence import SINGLE_LABEL, Evidence, predictions
from ..exit_policy import ExitPolicy
from ..modeling_pfberxit import PFBerxitForSequenceClassification
from ..scores import score_v1
from .exits_report import predict
from .timing import interleaved, median_ratio

EXIT_LAYERS = [3, 6, 9]


@dataclass(frozen=True)
class Line:
    """One measured case; times in milliseconds for the whole batch, ratios pair by pair against the stock model."""

    batch: int
    length: int
    case: str
    mean_depth: float
    stock_ms: float
    ms: float
    speed_up: float
    layer_speed_up: float

    @property
    def efficiency(self) -> float:
        """Wall-clock speed-up over layer speed-up."""
        return self.speed_up / self.layer_speed_up


def configuration(preset: str, **knobs: Any) -> PFBerxitConfig:
    """The library's defaults on the encoder of a preset; `paper` among the knobs takes the preset's layout as well."""
    text = resources.files("modeling_pfberxit.configuration").joinpath(f"{preset}.json").read_text()
    config = PFBerxitConfig.from_dict({**json.loads(text), "base_model_name_or_path": None})
    if knobs.pop("paper", False):
        config.exit_layers = knobs.get("exit_layers")
        return config
    return PFBerxitConfig.from_backbone(config.encoder_config(), **knobs)


def models(preset: str, paper: bool, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, ...]:
    """The stock classifier, ours with an exit at every layer, and ours with exits at `EXIT_LAYERS`; one encoder."""
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_config(configuration(preset).encoder_config())
    encoder = getattr(stock, stock.base_model_prefix)
    ours = []
    for exit_layers in (None, EXIT_LAYERS):
        model = PFBerxitForSequenceClassification(configuration(preset, paper=paper, exit_layers=exit_layers))
        model.backbone.load_state_dict(encoder.state_dict(), strict=False)
        with torch.no_grad():  # untrained exits all say the same
            for parameter in model.exits.parameters():
                parameter.normal_(0.0, 0.5)
        ours.append(model)
    return tuple(model.to(device, dtype).eval() for model in (stock, *ours))


def inputs(batch: int, length: int, vocabulary: int, device: str) -> dict[str, Tensor]:
    """Token ids without padding, the same for everyone."""
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    ids = torch.randint(5, vocabulary, (batch, length), generator=generator).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def spread_policy(model: PFBerxitForSequenceClassification, batch: dict[str, Tensor]) -> ExitPolicy:
    """Divergence with patience 1, one threshold per exit, so that a third of the rows leaves at each but the first."""
    exit_logits = model(**batch, exit_policy={"criterion": None}).exit_logits
    policy = ExitPolicy(threshold=0.0, patience=1)
    rows, exits, labels = exit_logits.shape
    state = start(rows, labels, policy, exits, SINGLE_LABEL, exit_logits.device)
    running, thresholds = torch.ones(rows, dtype=torch.bool, device=exit_logits.device), []
    for number, logits in enumerate(exit_logits.unbind(1)):
        now = predictions(logits, state.problem_type)
        scores = score_v1(now, Evidence(logits), state, policy)
        state.remember(now)
        if number == 0:
            thresholds.append(0.0)
            continue
        thresholds.append(scores[running].quantile(1 / (exits - number)).item() + 1e-6)
        running &= scores >= thresholds[-1]
        if not running.any():
            running[:] = True  # one row alone has left; later thresholds no longer matter
    return ExitPolicy(threshold=tuple(thresholds), patience=1)


def benchmark(
    preset: str,
    paper: bool,
    batch_sizes: list[int],
    lengths: list[int],
    repeats: int,
    device: str,
    dtype: torch.dtype,
) -> list[Line]:
    """All cases; the calls of one (batch, length) run in turn."""
    stock, full, early = models(preset, paper, device, dtype)
    lines = []
    for batch in batch_sizes:
        for length in lengths:
            parts = parts_of(batch, length, stock.config.vocab_size, device)
            whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            policies = {f"all at layer {k}": ExitPolicy("appointed", appointed_layer=k) for k in EXIT_LAYERS}
            policies["spread over 6, 9, 12"] = spread_policy(early, whole)
            cases = {"full depth": (full, ExitPolicy(criterion=None)), **{k: (early, p) for k, p in policies.items()}}
            calls = [
                partial(run_stock, stock, parts),
                *(partial(predict, model, parts, p) for model, p in cases.values()),
            ]
            stock_times, *times = interleaved(calls, repeats)
            for (case, (model, policy)), own in zip(cases.items(), times):
                with torch.inference_mode():
                    depth = model(**whole, exit_policy=policy).exit_layer.float().mean().item()
                lines.append(
                    Line(
                        batch, length, case, depth,
                        1000 * median(stock_times) / len(parts), 1000 * median(own) / len(parts),
                        median_ratio(stock_times, own), len(model.depths) / depth,
                    )
                )  # fmt: skip
            print(as_markdown(lines[-len(cases) :], header=len(lines) == len(cases)), flush=True)
    return lines


def run_stock(model: PreTrainedModel, parts: list[dict[str, Tensor]]) -> list[Tensor]:
    """The stock model's answers."""
    return [model(**part).logits for part in parts]


def parts_of(batch: int, length: int, vocabulary: int, device: str) -> list[dict[str, Tensor]]:
    """At batch size 1 six rows, one call each, so that rows can leave at different layers; else one batch."""
    rows = inputs(max(batch, 6), length, vocabulary, device)
    step = 1 if batch == 1 else batch
    return [{k: v[i : i + step] for k, v in rows.items()} for i in range(0, len(rows["input_ids"]), step)]


def as_markdown(lines: list[Line], header: bool = True) -> str:
    """One row per case."""
    titles = "| batch | length | case | mean depth | stock ms | ours ms | speed-up | by layers | efficiency |"
    out = [titles, "|---:|---:|---|" + "---:|" * 6] if header else []
    for line in lines:
        out.append(
            f"| {line.batch} | {line.length} | {line.case} | {line.mean_depth:.2f} | {line.stock_ms:.1f} "
            f"| {line.ms:.1f} | {line.speed_up:.2f} | {line.layer_speed_up:.2f} | {line.efficiency:.3f} |"
        )
    return "\n".join(out)


def save(lines: list[Line], path: str) -> None:
    """The same as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps([{**asdict(x), "efficiency": x.efficiency} for x in lines], indent=1) + "\n")
